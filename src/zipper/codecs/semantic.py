"""Semantic units of speech: clusters of a frozen speech encoder's states, 25 a second."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipper.hashes import digest

SAMPLE_RATE, HOP = 16_000, 640  # Hz, samples of a unit
WINDOW = 30 * SAMPLE_RATE  # samples that the encoder sees at once; longer audio is cut


class SemanticEncoder(nn.Module, ABC):
    """Waveforms to units: states of an encoder, standardised, then the nearest centroid.

    Without standardisation a few dimensions of large variance decide alone (LOG.md: 66 % of letters wrong,
    and 21 % with it).

    teacher: encoder and layer, in words. Buffers: `mean` and `deviation` [D] of the states, and `centroids`
    [V, D], which is 0 until all three are fitted. The state is what the codec's folder holds; exact: names of
    matrices that it holds in half precision, not in 8 bits. An encoder attends to the whole window, so units
    are not causal.
    """

    teacher: str
    exact: tuple[str, ...] = ("centroids",)

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.register_buffer("centroids", torch.zeros(units, width))

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
        return nearest(self.standardised(states), self.get_buffer("centroids"))

    def standardised(self, states: Tensor) -> Tensor:
        """states [F, D] -> [F, D], each dimension with mean 0 and variance 1 in the data of the fit."""
        return (states - self.get_buffer("mean")) / self.get_buffer("deviation")

    @abstractmethod
    def window_states(self, wave: Tensor) -> Tensor:
        """wave float32 [F * HOP], at most WINDOW -> states [F, D]."""


def nearest(x: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest centre of each row: x [N, D], centres [V, D] -> int64 [N]."""
    return (centres.square().sum(1) - 2 * x @ centres.T).argmin(1)
