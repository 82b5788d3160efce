"""Which ids a tower may write in which column: content and specials never take each other's place."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipper.config import TowerConfig
from zipper.modalities.delay import LAGS, Pattern, Specials, extra_timesteps, from_timesteps

NOT_ENDED = 2**30  # the column in which a segment ends that has not ended yet
FREE, CONTENT, END, FILLER = range(4)  # kinds of place: content or the end, each of them alone, what fills


class TokenLayout(NamedTuple):
    """Text is a stream of one codebook whose specials are its tokenizer's; all other streams follow a pattern
    of `units.pattern`, specials last."""

    vocabulary: int
    codebooks: int
    bos: int
    eos: int
    filler: int | None
    pattern: Pattern = "delay"

    @classmethod
    def of(cls, name: str, tower: TowerConfig) -> "TokenLayout":
        """Of the tower of that modality."""
        if name == "text":
            begin, end = tower.specials
            return cls(tower.vocabulary, 1, begin, end, None)
        special = Specials.after(tower.vocabulary - len(Specials._fields))
        ids = special.bos, special.eos, special.filler
        return cls(tower.vocabulary, tower.codebooks, *ids, tower.pattern)

    def allowed(self) -> Tensor:
        """bool [4, V]: the ids of each kind of place."""
        allowed = torch.zeros(4, self.vocabulary, dtype=torch.bool)
        allowed[CONTENT] = True
        allowed[CONTENT, [i for i in (self.bos, self.eos, self.filler) if i is not None]] = False
        allowed[END, self.eos] = True
        allowed[FREE] = allowed[CONTENT] | allowed[END]
        allowed[FILLER, self.eos if self.filler is None else self.filler] = True  # rows that wait do write
        return allowed

    def kinds(self, column: int, ended: np.ndarray, must_end: np.ndarray) -> np.ndarray:
        """What may stand in a column >= 1 of each row: int [B, Q], a row of `allowed`.

        ended int [B]: column of the row's end, NEVER if there is none yet. must_end bool [B]: nothing but
        the end is left to codebook 0.
        """
        first = np.where(ended > column, np.where(must_end, END, FREE), FILLER)[:, None]
        behind = LAGS[self.pattern] * np.arange(1, self.codebooks)
        due = (column - 1 - behind >= 0) & (column - behind < ended[:, None])  # [B, Q - 1]
        return np.concatenate([first, np.where(due, CONTENT, FILLER)], axis=1)

    def with_fillers(self, column: Tensor) -> Tensor:
        """column int64 [B, Q] as chosen: where nothing lags, the others fill beside an end."""
        if LAGS[self.pattern] or self.filler is None or self.codebooks == 1:
            return column
        first = column[:, :1]
        return torch.cat([first, torch.where(first == self.eos, self.filler, column[:, 1:])], dim=1)

    def last_timestep(self, ended: np.ndarray) -> np.ndarray:
        """Of a segment whose end stands in column `ended`: the other codebooks have yet to catch up."""
        return ended - 2 + extra_timesteps(self.codebooks, self.pattern)

    def content(self, tokens: Tensor) -> Tensor:
        """columns int64 [S, Q] of a whole segment, begin and end included -> content [Q, F]."""
        if self.filler is None:
            return tokens[1:-1].T
        return from_timesteps(tokens, self.vocabulary - len(Specials._fields), self.pattern)
