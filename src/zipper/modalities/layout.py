"""Token layout of a modality: the token ids that are allowed at each timestep."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipper.config import TowerConfig
from zipper.modalities.delay import LAGS, Pattern, Specials, extra_timesteps, from_timesteps

NOT_ENDED = 2**30  # EOS timestep of a segment without EOS
FREE, CONTENT, END, FILLER = range(4)  # content or EOS, content, EOS, filler


class TokenLayout(NamedTuple):
    """Vocabulary, special tokens and pattern of one modality.

    Text has one codebook and the special tokens of its tokenizer. Other modalities follow a pattern of
    `modalities.delay`, and their special tokens come after the codes.
    """

    vocabulary: int
    codebooks: int
    bos: int
    eos: int
    filler: int | None
    pattern: Pattern = "delay"

    @classmethod
    def of(cls, name: str, tower: TowerConfig) -> "TokenLayout":
        """Token layout of the tower of modality `name`."""
        if name == "text":
            begin, end = tower.specials
            return cls(tower.vocabulary, 1, begin, end, None)
        special = Specials.after(tower.vocabulary - len(Specials._fields))
        ids = special.bos, special.eos, special.filler
        return cls(tower.vocabulary, tower.codebooks, *ids, tower.pattern)

    def allowed(self) -> Tensor:
        """Allowed ids of each kind of position (FREE, CONTENT, END, FILLER): bool [4, V]."""
        allowed = torch.zeros(4, self.vocabulary, dtype=torch.bool)
        allowed[CONTENT] = True
        allowed[CONTENT, [i for i in (self.bos, self.eos, self.filler) if i is not None]] = False
        allowed[END, self.eos] = True
        allowed[FREE] = allowed[CONTENT] | allowed[END]
        allowed[FILLER, self.eos if self.filler is None else self.filler] = True  # for finished rows
        return allowed

    def kinds(self, timestep: int, ended: np.ndarray, must_end: np.ndarray) -> np.ndarray:
        """Kind of each codebook's position at a timestep >= 1: int [B, Q], indices into the rows of
        `allowed`.

        ended int [B]: timestep of the row's EOS, or NOT_ENDED. must_end bool [B]: codebook 0 may only predict
        EOS.
        """
        first = np.where(ended > timestep, np.where(must_end, END, FREE), FILLER)[:, None]
        delay = LAGS[self.pattern] * np.arange(1, self.codebooks)
        due = (timestep - 1 - delay >= 0) & (timestep - delay < ended[:, None])  # [B, Q - 1]
        return np.concatenate([first, np.where(due, CONTENT, FILLER)], axis=1)

    def with_fillers(self, tokens: Tensor) -> Tensor:
        """Put fillers beside EOS where the pattern has no delay. tokens int64 [B, Q] -> [B, Q]."""
        if LAGS[self.pattern] or self.filler is None or self.codebooks == 1:
            return tokens
        first = tokens[:, :1]
        return torch.cat([first, torch.where(first == self.eos, self.filler, tokens[:, 1:])], dim=1)

    def last_timestep(self, ended: np.ndarray) -> np.ndarray:
        """Last timestep of a segment whose EOS is at timestep `ended`. The delayed codebooks end later."""
        return ended - 2 + extra_timesteps(self.codebooks, self.pattern)

    def content(self, tokens: Tensor) -> Tensor:
        """Content [Q, F] of a complete segment. tokens int64 [S, Q], with BOS and EOS."""
        if self.filler is None:
            return tokens[1:-1].T
        return from_timesteps(tokens, self.vocabulary - len(Specials._fields), self.pattern)
