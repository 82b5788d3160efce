"""Token layout of a modality: the token ids that are allowed at each timestep."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipper.config import TowerConfig
from zipper.errors import ConfigError
from zipper.modalities.delay import (
    LAGS,
    Pattern,
    Specials,
    extra_timesteps,
    from_timesteps,
    scored,
    to_timesteps,
)

NOT_ENDED = 2**30  # EOS timestep of a segment without EOS
FREE, CONTENT, END, FILLER = range(4)  # content or EOS, content, EOS, filler


class TokenLayout(NamedTuple):
    """Vocabulary, special tokens and pattern of one modality.

    A modality with a filler follows a pattern of `modalities.delay`, and its special tokens come after the
    codes. One without (text) has one codebook, and its BOS and EOS may be any tokens.
    """

    vocabulary: int
    codebooks: int
    bos: int
    eos: int
    filler: int | None
    pattern: Pattern = "delay"

    @classmethod
    def after(cls, codes: int, codebooks: int, pattern: Pattern = "delay") -> "TokenLayout":
        """Layout of `codes` codes in each codebook, followed by BOS, EOS and filler."""
        return cls(codes + len(Specials._fields), codebooks, *Specials.after(codes), pattern)

    @classmethod
    def of(cls, tower: TowerConfig) -> "TokenLayout":
        """Layout of a tower with a resolved config. Raises ConfigError if a special token is missing: without
        a filler, generation in several codebooks would never end."""
        if len(tower.specials) < 2 + (tower.codebooks > 1):
            raise ConfigError(
                f"specials={tower.specials} with codebooks={tower.codebooks}: give the ids of BOS, EOS and, "
                "with several codebooks, filler; or leave both out."
            )
        bos, eos, *filler = tower.specials
        return cls(tower.vocabulary, tower.codebooks, bos, eos, filler[0] if filler else None, tower.pattern)

    @property
    def specials(self) -> list[int]:
        """Ids of BOS, EOS and filler, as in a tower's config."""
        return [self.bos, self.eos, *([] if self.filler is None else [self.filler])]

    @property
    def codes(self) -> int:
        """Number of ids that content may have: ids are below it."""
        return self.vocabulary if self.filler is None else self.bos

    @property
    def extra_timesteps(self) -> int:
        """Timesteps of a segment beyond its content."""
        return extra_timesteps(self.codebooks, self.pattern)

    def tokens(self, content: Tensor) -> Tensor:
        """Tokens int64 [S, Q] of content int64 [Q, F]. Inverse of `content`."""
        if self.filler is not None:
            return to_timesteps(content, self.codes, self.pattern)
        return torch.from_numpy(np.concatenate(([self.bos], content[0].numpy(), [self.eos])))[:, None]

    def scored(self, tokens: Tensor) -> Tensor:
        """Mask bool [S, Q] of the tokens of a segment that a loss counts: content, and EOS."""
        if self.filler is not None:
            return scored(tokens, self.codes)
        return torch.from_numpy(np.arange(len(tokens))[:, None] > 0)

    def allowed(self) -> Tensor:
        """Allowed ids of each kind of position (FREE, CONTENT, END, FILLER): bool [4, V]."""
        allowed = torch.zeros(4, self.vocabulary, dtype=torch.bool)
        allowed[CONTENT] = True
        allowed[CONTENT, [i for i in (self.bos, self.eos, self.filler) if i is not None]] = False
        allowed[END, self.eos] = True
        allowed[FREE] = allowed[CONTENT] | allowed[END]
        allowed[FILLER, self.eos if self.filler is None else self.filler] = True  # for finished rows
        return allowed

    def kinds(self, timestep: int | np.ndarray, ended: np.ndarray, must_end: np.ndarray) -> np.ndarray:
        """Kind of each codebook's position at a timestep >= 1: int [B, Q], indices into the rows of
        `allowed`.

        timestep: of all rows, or of each, int [B]. ended int [B]: timestep of the row's EOS, or NOT_ENDED.
        must_end bool [B]: codebook 0 may only predict EOS.
        """
        first = np.where(ended > timestep, np.where(must_end, END, FREE), FILLER)[:, None]
        delay = LAGS[self.pattern] * np.arange(1, self.codebooks)
        since = np.asarray(timestep)[..., None] - delay
        due = (since >= 1) & (since < ended[:, None])  # [B, Q - 1]
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
        return from_timesteps(tokens, self.codes, self.pattern)

    def complete(self, tokens: Tensor) -> Tensor:
        """Content [Q, F] of the positions that are complete so far. tokens int64 [S, Q]: the start of a
        segment, BOS first."""
        lag = LAGS[self.pattern]
        ends = (tokens[:, 0] == self.eos).nonzero()
        known = len(tokens) - 1 - lag * (self.codebooks - 1)
        frames = max(0, min(known, int(ends[0]) - 1 if len(ends) else known))
        return torch.stack([tokens[1 + lag * q :][:frames, q] for q in range(self.codebooks)])
