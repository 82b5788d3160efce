"""Stopping criteria and logits processor of a batch of segments."""

import numpy as np
import torch
from torch import Tensor

from zipper.modalities.layout import NOT_ENDED, TokenLayout


class LogitsProcessor:
    """Masks the logits of tokens that the token layout forbids."""

    def __init__(self, layout: TokenLayout, device: torch.device) -> None:
        self.forbidden = ~layout.allowed().to(device)  # [4, V]
        self.last = np.empty(0)
        self.at = torch.empty(0, dtype=torch.int64)  # forbidden tokens, as indices into [B * Q * V]

    def __call__(self, logits: Tensor, kinds: np.ndarray) -> Tensor:
        """Set logits [B, Q, V] of forbidden tokens to -inf, in place, also if they are NaN. kinds int [B, Q]:
        see `TokenLayout.kinds`."""
        if not np.array_equal(kinds, self.last):  # rarely changes
            mask = self.forbidden[torch.from_numpy(kinds).to(self.forbidden.device)]  # [B, Q, V]
            self.last, self.at = kinds, mask.flatten().nonzero()[:, 0]
        logits.view(-1).index_fill_(0, self.at, float("-inf"))  # a few: faster than a mask over all
        return logits


ROWS = ("caps", "timestep", "ended", "open_rows", "looping", "past", "run")  # arrays of StoppingCriteria


class StoppingCriteria:
    """Generation state of each row. NumPy arrays on the CPU, which have less overhead for so few numbers."""

    def __init__(
        self, layout: TokenLayout, rows: list[int], caps: np.ndarray, max_repeats: list[int]
    ) -> None:
        """rows: rows that generate. caps: maximum content length of every row. max_repeats: see
        `DatasetStatistics.max_repeats`."""
        self.layout, self.caps, self.max_repeats = layout, caps, np.array(max_repeats, dtype=np.int64)
        self.timestep = np.ones(len(caps), dtype=np.int64)  # the next one
        self.ended = np.full(len(caps), NOT_ENDED)
        self.open_rows = np.isin(np.arange(len(caps)), rows)
        self.looping = np.zeros(len(caps), dtype=bool)
        self.past = np.full((len(caps), len(max_repeats)), -1)  # of codebook 0, latest first
        self.run = np.zeros_like(self.past)

    def kinds(self) -> np.ndarray:
        """Kinds of the positions at the next timestep."""
        return self.layout.kinds(self.timestep, self.ended, self.looping | (self.timestep > self.caps))

    def add(self, first: np.ndarray) -> None:
        """Append the next timestep. first int [B]: its tokens of codebook 0."""
        self.ended = np.where(
            (first == self.layout.eos) & (self.ended == NOT_ENDED), self.timestep, self.ended
        )
        self.open_rows = self.open_rows & (self.layout.last_timestep(self.ended) > self.timestep)
        if len(self.max_repeats):
            self.run = (self.run + 1) * (self.past == first[:, None])
            self.past = np.concatenate([first[:, None], self.past[:, :-1]], axis=1)
            self.looping = self.looping | ((self.run >= self.max_repeats).any(1) & (self.ended == NOT_ENDED))
        self.timestep += 1

    def join(self, other: "StoppingCriteria") -> None:
        """Append the rows of another batch of this layout."""
        for key in ROWS:
            setattr(self, key, np.concatenate([getattr(self, key), getattr(other, key)]))

    def select(self, rows: np.ndarray) -> None:
        """Keep the rows int64 [N] in this order."""
        for key in ROWS:
            setattr(self, key, getattr(self, key)[rows])
