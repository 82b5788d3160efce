"""Single Decoder baseline (paper 4.1.2): one decoder whose vocabulary is extended by the speech units."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from zipper.config import ModelConfig, TowerConfig
from zipper.data.batches import Batch
from zipper.models.multimodal import MultimodalModel, in_document_order, of_modality
from zipper.models.tower import Tower, cross_entropy


class SingleDecoderModel(MultimodalModel):
    """All modalities in one sequence, in document order, with full causal self-attention.

    The first modality is the one of the pre-trained decoder. A timestep of another modality is the sum of its
    codebooks' embeddings, as in a separate tower. Head 0 predicts over the first codebooks of all modalities,
    the other heads over their own codebook.

    Rows of the extended vocabulary: first codebooks of all modalities in order, then all other codebooks.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        """cfg: resolved, so that all towers have the shape of the first."""
        super().__init__(cfg)
        towers = [cfg.towers[name] for name in self.names]
        self.joint = sum(tower.vocabulary for tower in towers)  # entries of head 0
        rows = sum(tower.vocabulary * tower.codebooks for tower in towers)
        self.decoder = Tower(replace(towers[0], vocabulary=rows, codebooks=1))
        first, other = 0, self.joint
        # A plain dict, because the decoder owns all weights.
        self.shared_towers: dict[str, SharedTower] = {}
        for name, tower in zip(self.names, towers, strict=True):
            self.shared_towers[name] = SharedTower(self.decoder, tower, first, other, self.joint)
            first, other = first + tower.vocabulary, other + tower.vocabulary * (tower.codebooks - 1)
        self.next_modality_heads = self.make_next_modality_heads()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """See MultimodalModel."""
        streams = {name: batch.streams[name] for name in self.names}
        x = in_document_order({n: self.shared_towers[n].embed(s.tokens) for n, s in streams.items()}, batch)
        states = self.decoder.run(x)
        return {name: of_modality(states, stream) for name, stream in streams.items()}

    def tower(self, name: str) -> Tower:
        return self.shared_towers[name]

    @torch.no_grad()
    def start_from(self, tower: Tower) -> None:
        """Load a pre-trained tower: a decoder of the same vocabulary, or a tower of the first modality, whose
        vocabulary is extended.

        Existing rows are copied bit for bit. New rows are drawn from a normal distribution with the mean and
        the deviation of the existing ones, because identical rows would stay indistinguishable for many
        steps.
        """
        weights = tower.state_dict()
        for name in ("embedding.weight", "head"):  # head: only if untied
            if name in weights:
                weights[name] = self._grown(weights[name])
        self.decoder.load_state_dict(weights)

    def _grown(self, old: Tensor) -> Tensor:
        rows = len(self.decoder.embedding.weight)
        if len(old) == rows:
            return old
        grown = old.mean(0) + old.std(0) * torch.randn((rows, old.shape[1]), dtype=old.dtype)
        first = self.shared_towers[self.names[0]]
        grown[(first.offset[:, None] + torch.arange(first.cfg.vocabulary)).flatten()] = old  # [Q, V]
        return grown


class SharedTower(Tower):
    """One modality's rows of a decoder's vocabulary, with the layers that all modalities share."""

    def __init__(self, decoder: Tower, cfg: TowerConfig, first: int, other: int, joint: int) -> None:
        """first, other: first rows of the modality's first codebook and of its other codebooks. joint:
        rows of head 0."""
        nn.Module.__init__(self)
        self.cfg, self.decoder = cfg, decoder
        self.layers, self.norm, self.embedding = decoder.layers, decoder.norm, decoder.embedding
        self.first, self.joint = first, joint
        self.other = other

    def cross_entropy(self, states: Tensor, target: Tensor) -> Tensor:
        """See Tower. The first codebook competes with those of all modalities."""
        shared = states @ self._rows[: self.joint].T  # [N, joint]
        first = target[:, :1]
        first = cross_entropy(shared[:, None], torch.where(first < 0, first, first + self.first))
        if self.cfg.codebooks == 1:
            return first
        own = states @ self._others.T
        own = own.unflatten(-1, (self.cfg.codebooks - 1, self.cfg.vocabulary))
        return torch.cat([first, cross_entropy(own, target[:, 1:])], dim=1)

    @property
    def weight(self) -> Tensor:
        first = self._rows[self.first : self.first + self.cfg.vocabulary]
        return torch.cat([first, self._others]) if self.cfg.codebooks > 1 else first

    @property
    def offset(self) -> Tensor:
        books = torch.arange(self.cfg.codebooks, device=self.embedding.weight.device)
        offset = (books - 1) * self.cfg.vocabulary + self.other
        return torch.where(books == 0, self.first, offset)

    @property
    def _others(self) -> Tensor:
        return self._rows[self.other :][: (self.cfg.codebooks - 1) * self.cfg.vocabulary]

    @property
    def _rows(self) -> Tensor:
        """The decoder's head. Read on each call, because sharding replaces the Parameter."""
        return self.decoder.weight
