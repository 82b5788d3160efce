"""How far a batch of segments is, and what may therefore stand in the next column."""

import numpy as np
import torch
from torch import Tensor

from zipper.modalities.layout import NOT_ENDED, TokenLayout


class LogitsProcessor:
    """What may stand where, laid over logits."""

    def __init__(self, layout: TokenLayout, device: torch.device) -> None:
        self.forbidden = ~layout.allowed().to(device)  # [4, V]
        self.last, self.mask = np.empty(0), self.forbidden

    def __call__(self, logits: Tensor, kinds: np.ndarray) -> Tensor:
        """logits [B, Q, V], -inf wherever `kinds` int [B, Q] (of `Alphabet.kinds`) forbids a token; whatever
        stood there, NaN included."""
        if not np.array_equal(kinds, self.last):  # they seldom change
            self.last, self.mask = kinds, self.forbidden[torch.from_numpy(kinds).to(self.forbidden.device)]
        return logits.masked_fill(self.mask, float("-inf"))


class StoppingCriteria:
    """How far each row is with its segment. Arrays of the CPU: a step's few numbers cost less there."""

    def __init__(
        self, layout: TokenLayout, rows: list[int], caps: np.ndarray, max_repeats: list[int]
    ) -> None:
        """Of these rows, at most caps[i] of content in row i of all; patience: of `Facts.patience`."""
        self.layout, self.caps, self.max_repeats = layout, caps, np.array(max_repeats, dtype=np.int64)
        self.timestep = 1
        self.ended = np.full(len(caps), NOT_ENDED)
        self.open_rows = np.isin(np.arange(len(caps)), rows)
        self.looping = np.zeros(len(caps), dtype=bool)
        self.past = np.full((len(caps), len(max_repeats)), -1)  # of codebook 0, latest first
        self.run = np.zeros_like(self.past)

    def kinds(self) -> np.ndarray:
        """What may stand in the next column."""
        return self.layout.kinds(self.timestep, self.ended, self.looping | (self.timestep > self.caps))

    def add(self, first: np.ndarray) -> None:
        """The next column's tokens of codebook 0, int [B]."""
        self.ended = np.where(
            (first == self.layout.eos) & (self.ended == NOT_ENDED), self.timestep, self.ended
        )
        self.open_rows = self.open_rows & (self.layout.last_timestep(self.ended) > self.timestep)
        if len(self.max_repeats):
            self.run = (self.run + 1) * (self.past == first[:, None])
            self.past = np.concatenate([first[:, None], self.past[:, :-1]], axis=1)
            self.looping = self.looping | ((self.run >= self.max_repeats).any(1) & (self.ended == NOT_ENDED))
        self.timestep += 1
