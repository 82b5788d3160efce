"""How far a batch of segments is, and what may therefore stand in the next column."""

import numpy as np
import torch
from torch import Tensor

from zipper.generate.alphabet import NEVER, Alphabet


class Rules:
    """What may stand where, as something to add to logits."""

    def __init__(self, alphabet: Alphabet, like: Tensor) -> None:
        """like: of the logits' device and dtype."""
        allowed = alphabet.allowed().to(like.device)
        self.table = like.new_zeros(allowed.shape).masked_fill(~allowed, float("-inf"))  # [4, V]
        self.kinds, self.bias = np.empty(0), like.new_empty(0)

    def __call__(self, kinds: np.ndarray) -> Tensor:
        """kinds int [B, Q] of `Alphabet.kinds` -> [B, Q, V], 0 or -inf."""
        if not np.array_equal(kinds, self.kinds):  # they seldom change
            self.kinds, self.bias = kinds, self.table[torch.from_numpy(kinds).to(self.table.device)]
        return self.bias


class Progress:
    """How far each row is with its segment. Arrays of the CPU: a step's few numbers cost less there."""

    def __init__(self, alphabet: Alphabet, rows: list[int], caps: np.ndarray, patience: list[int]) -> None:
        """Of these rows, at most caps[i] of content in row i of all; patience: of `Facts.patience`."""
        self.alphabet, self.caps, self.patience = alphabet, caps, np.array(patience, dtype=np.int64)
        self.columns = 1
        self.ended = np.full(len(caps), NEVER)
        self.open_rows = np.isin(np.arange(len(caps)), rows)
        self.looping = np.zeros(len(caps), dtype=bool)
        self.past = np.full((len(caps), len(patience)), -1)  # of codebook 0, latest first
        self.run = np.zeros_like(self.past)

    def kinds(self) -> np.ndarray:
        """What may stand in the next column."""
        return self.alphabet.kinds(self.columns, self.ended, self.looping | (self.columns > self.caps))

    def add(self, first: np.ndarray) -> None:
        """The next column's tokens of codebook 0, int [B]."""
        self.ended = np.where((first == self.alphabet.end) & (self.ended == NEVER), self.columns, self.ended)
        self.open_rows = self.open_rows & (self.alphabet.last_column(self.ended) > self.columns)
        if len(self.patience):
            self.run = (self.run + 1) * (self.past == first[:, None])
            self.past = np.concatenate([first[:, None], self.past[:, :-1]], axis=1)
            self.looping = self.looping | ((self.run >= self.patience).any(1) & (self.ended == NEVER))
        self.columns += 1
