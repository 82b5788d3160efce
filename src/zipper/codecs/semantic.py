"""Semantic units of speech, 25 a second: clusters of a frozen speech encoder's states, or the rounded outputs
of a small head over it that has learned to recognise letters.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipper.clusters import nearest
from zipper.cpu import MULTIPLIES_BFLOAT16
from zipper.hashes import digest

SAMPLE_RATE, HOP = 16_000, 640  # Hz, samples of a unit
FITTED = ("mean", "deviation", "centroids")  # buffers that are fitted to data
HEAD, CONVOLUTIONS = 256, 3  # width of a letter head
WINDOW = 30 * SAMPLE_RATE  # samples that the encoder sees at once; longer audio is cut


class Convolutions(nn.Module):
    """Residual convolutions over time with layer normalisation: [B, F, HEAD] -> [B, F, HEAD]. In training
    their products are of bfloat16, where a CPU has instructions for it."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.convolutions = nn.ModuleList(nn.Conv1d(HEAD, HEAD, 5, padding=2) for _ in range(CONVOLUTIONS))
        self.norms = nn.ModuleList(nn.LayerNorm(HEAD) for _ in range(CONVOLUTIONS))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """valid bool [B, F]"""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.dropout(x, self.dropout, self.training) * valid[..., None]  # silence beyond the end
            rough = self.training and (x.device.type != "cpu" or MULTIPLIES_BFLOAT16)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=rough):
                y = convolution(x.transpose(1, 2)).transpose(1, 2)
            x = x + norm(F.gelu(y.float()))
        return x


class LetterHead(nn.Module):
    """Convolutions over an encoder's states, 13 frames in all (half a second), to a few scalars, which are
    rounded to a unit (finite scalar quantisation, arXiv 2309.15505). It is trained to recognise the letters
    of transcripts from the rounded scalars by CTC, so that units hold what tells words apart, and little
    else, as the supervised semantic tokens of CosyVoice 2 (arXiv 2412.10117).

    levels [n]: of each scalar, which is between 0 and levels - 1.
    """

    levels: Tensor

    def __init__(self, width: int, units: int, dropout: float = 0.15) -> None:
        """units: a power of 2."""
        super().__init__()
        self.narrow = nn.Linear(width, HEAD)
        self.body = Convolutions(dropout)
        self.norm = nn.LayerNorm(HEAD)
        bits = units.bit_length() - 1
        self.register_buffer("levels", torch.tensor([4.0] * (bits // 2) + [2.0] * (bits % 2)), False)
        self.down = nn.Linear(HEAD, len(self.levels))

    def forward(self, states: Tensor, valid: Tensor) -> Tensor:
        """states [B, F, D], valid bool [B, F] -> scalars [B, F, n], not rounded"""
        x = self.down(self.norm(self.body(self.narrow(states), valid)))
        return (x.tanh() + 1) * (self.levels - 1) / 2

    def grid(self) -> Tensor:
        """Scalars of each unit: [units, n]"""
        return torch.cartesian_prod(*(torch.arange(float(count)) for count in self.levels)).view(
            -1, len(self.levels)
        )


class SemanticEncoder(nn.Module, ABC):
    """Waveforms to units: the nearest centroid of an encoder's standardised states, or of the scalars that a
    letter head makes of them.

    Without standardisation a few dimensions of large variance decide alone (LOG.md).

    teacher: encoder and layer, in words. Buffers (FITTED): `mean` and `deviation` [D] of the states, and
    `centroids` [V, D or n], which is 0 until all three, and the head, are fitted. A codec's
    folder holds what is fitted alone (`fitted`). An encoder attends to the whole window, so units are not
    causal.
    """

    teacher: str

    def __init__(self, width: int, units: int, letters: bool = False) -> None:
        super().__init__()
        self.head = LetterHead(width, units) if letters else None
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.register_buffer("centroids", torch.zeros(units, len(self.head.levels) if self.head else width))

    @property
    def fingerprint(self) -> str:
        """Changes with the meaning of the units."""
        return f"{self.teacher} {digest(self)}"

    @torch.no_grad()
    def states(self, wave: Tensor) -> Tensor:
        """wave float32 [n] at SAMPLE_RATE -> states [F, D], F = ceil(n / HOP)."""
        wave = F.pad(wave, (0, -len(wave) % HOP))
        return torch.cat([self.window_states(part) for part in wave.split(WINDOW)])

    @torch.no_grad()
    def forward(self, wave: Tensor) -> Tensor:
        """wave float32 [n] at SAMPLE_RATE -> units int64 [F], F = ceil(n / HOP)."""
        return self.units(self.states(wave))

    def units(self, states: Tensor) -> Tensor:
        """states [F, D] -> units int64 [F]"""
        return nearest(self.features(states), self.get_buffer("centroids"))

    @torch.no_grad()
    def features(self, states: Tensor) -> Tensor:
        """What centroids are nearest to: states [F, D] of a whole waveform -> [F, D or n]"""
        x = self.standardised(states)
        return x if self.head is None else self.head(x[None], x.new_ones(1, len(x), dtype=torch.bool))[0]

    def fitted(self) -> dict[str, Tensor]:
        """State that is fitted to data: FITTED and the head's weights."""
        state = self.state_dict()
        return {name: w for name, w in state.items() if name in FITTED or name.startswith("head.")}

    def standardised(self, states: Tensor) -> Tensor:
        """states [F, D] -> [F, D], each dimension with mean 0 and variance 1 in the data of the fit."""
        return (states - self.get_buffer("mean")) / self.get_buffer("deviation")

    @abstractmethod
    def window_states(self, wave: Tensor) -> Tensor:
        """wave float32 [F * HOP], at most WINDOW -> states [F, D]."""
