"""Codebooks of a residual quantiser, trained by moving averages, with replacement of dead codes.

EnCodec's own update divides a replaced code by its old average in the same call, which undoes the
replacement, so a badly initialised codebook stays collapsed. This module replaces it for training; inference
uses the package.
"""

import torch
from encodec.quantization import ResidualVectorQuantizer
from encodec.quantization.core_vq import EuclideanCodebook
from torch import Tensor, nn

from zipper.clusters import k_means, means, nearest

LEAST = 1e-30  # moving average of a unit that is no longer seen


class CodebookLearner(nn.Module):
    """Quantises with a straight-through gradient, and moves the codes towards the latents assigned to
    them."""

    def __init__(self, quantizer: ResidualVectorQuantizer, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.books: list[EuclideanCodebook] = [layer._codebook for layer in quantizer.vq.layers]

    def forward(self, latents: Tensor, codebooks: int, units: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """latents [B, D, F] -> (latents quantised by the first `codebooks`, [B, D, F]; commitment loss
        []). units int64 [B, F]: codes of the first codebook, if it is semantic; its vectors become the means
        of the latents of each unit."""
        flat = latents.transpose(1, 2).flatten(0, 1)  # [B * F, D]
        residual, quantised = flat, torch.zeros_like(flat)
        commitment = flat.new_zeros(())
        for level, book in enumerate(self.books):
            with torch.no_grad():
                code = self.code(level, residual.detach(), units)
                chosen = book.embed[code]
                if self.training:
                    self._move(book, residual.detach(), code, revive=units is None or level > 0)
            if level < codebooks:
                commitment = commitment + (residual - chosen).square().mean()
                quantised = quantised + chosen
            residual = residual - chosen
        through = flat + (quantised - flat).detach()
        return through.unflatten(0, (latents.shape[0], -1)).transpose(1, 2), commitment

    def code(self, level: int, residual: Tensor, units: Tensor | None) -> Tensor:
        """Code of each residual [N, D] in codebook `level`: int64 [N]. units: see `forward`."""
        return nearest(residual, self.books[level].embed) if units is None or level else units.flatten()

    @torch.no_grad()
    def initialise(self, latents: Tensor, units: Tensor | None = None, rounds: int = 20) -> None:
        """Initialise each codebook by k-means on latents [N, D] or on the residual of the codebook before
        it; the first by the means of each unit, if there are units int64 [N]."""
        residual = latents
        for level, book in enumerate(self.books):
            if level == 0 and units is not None:
                code, centres = units, means(residual, units, len(book.embed))
            else:
                centres = k_means(residual, len(book.embed), rounds)
                code = nearest(residual, centres)
            count = torch.bincount(code, minlength=len(centres)).float()
            book.embed.copy_(centres)
            # As after many updates on batches of this kind.
            share = count / len(residual) * 160
            book.cluster_size.copy_(share.clamp(min=1e-3))
            book.embed_avg.copy_(centres * book.cluster_size[:, None])
            book.inited.fill_(1)
            residual = residual - centres[code]

    def _move(self, book: EuclideanCodebook, residual: Tensor, code: Tensor, revive: bool) -> None:
        count = torch.bincount(code, minlength=len(book.embed)).to(residual.dtype)
        total = torch.zeros_like(book.embed).index_add_(0, code, residual)
        book.cluster_size.lerp_(count, 1 - self.decay)
        book.embed_avg.lerp_(total, 1 - self.decay)
        # Dead: used less than a tenth as often as the average code, within the moving average.
        dead = book.cluster_size < 0.1 * book.cluster_size.mean()
        if revive and dead.any():
            fresh = residual[torch.randint(len(residual), (int(dead.sum()),), device=residual.device)]
            usual = book.cluster_size.mean()
            book.cluster_size[dead] = usual
            book.embed_avg[dead] = fresh * usual
        # A unit that is seen no more keeps its vector: both sums decay below what a float can hold.
        kept = book.cluster_size > LEAST
        book.embed[kept] = book.embed_avg[kept] / book.cluster_size[kept, None]
