"""Codec codes to timesteps with BOS and EOS and back, in the delay or the parallel pattern (MusicGen, arXiv
2306.05284, section 2.2).

Q = 3 codebooks, F = 3 frames; B is BOS, E is EOS, - is filler. Left: delay, right: parallel.

    codebook 0   B  a0 a1 a2 E  -         B  a0 a1 a2 E
    codebook 1   B  -  b0 b1 b2 -         B  b0 b1 b2 -
    codebook 2   B  -  -  c0 c1 c2        B  c0 c1 c2 -

Only codebook 0 has an EOS, which ends the segment. In the delay pattern the Q - 2 timesteps after EOS are
forced. With Q = 1 both patterns equal the paper's speech tower. Fillers are neither scored nor sampled.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipper.errors import DataError


class Specials(NamedTuple):
    """Special token ids of a codebook. They follow its codes."""

    bos: int
    eos: int
    filler: int

    @classmethod
    def after(cls, codes: int) -> "Specials":
        """Special ids of a codebook of `codes` codes."""
        return cls(codes, codes + 1, codes + 2)


Pattern = Literal["delay", "parallel"]
LAGS: dict[str, int] = {"delay": 1, "parallel": 0}  # timesteps between adjacent codebooks


def extra_timesteps(codebooks: int, pattern: Pattern) -> int:
    """Timesteps of a segment beyond its frames: BOS, EOS, and those forced after EOS."""
    return 1 + max(1, LAGS[pattern] * (codebooks - 1))


def to_timesteps(codes: Tensor, size: int, pattern: Pattern = "delay") -> Tensor:
    """Convert codes int64 [Q, F] with values below `size` to tokens int64 [S, Q].

    Raises DataError on a code out of range or on an empty utterance.
    """
    if codes.numel() == 0:
        raise DataError("Content without frames has no tokens.")
    own = codes.numpy()  # whose views and assignments take a third of the time of PyTorch's
    if own.min() < 0 or own.max() >= size:
        raise DataError(f"Codes {own.min()} to {own.max()} are not all within 0 to {size - 1}.")
    books, frames = own.shape
    special, lag = Specials.after(size), LAGS[pattern]
    out = np.full((frames + extra_timesteps(books, pattern), books), special.filler)
    out[0] = special.bos
    for q in range(books):
        out[1 + lag * q : 1 + lag * q + frames, q] = own[q]
    out[1 + frames, 0] = special.eos
    return torch.from_numpy(out)


def from_timesteps(out: Tensor, size: int, pattern: Pattern = "delay") -> Tensor:
    """Invert `to_timesteps`: tokens int64 [S, Q] -> codes int64 [Q, F]. F ends at EOS, or at the last
    complete frame.

    Raises DataError if a special token takes the position of a code.
    """
    special, lag = Specials.after(size), LAGS[pattern]
    if len(out) == 0 or not bool((out[0] == special.bos).all()):
        raise DataError("Tokens must start with BOS in every codebook.")
    books = out.shape[1]
    ends = (out[:, 0] == special.eos).nonzero()
    complete = len(out) - 1 - lag * (books - 1)  # complete frames, without EOS
    frames = int(ends[0]) - 1 if len(ends) else max(complete, 0)
    codes = torch.stack([out[1 + lag * q : 1 + lag * q + frames, q] for q in range(books)])
    if codes.shape[1] != frames or bool((codes >= size).any()):
        raise DataError(f"One of the {frames} frames has a special token in place of a code.")
    return codes


def scored(tokens: Tensor, size: int) -> Tensor:
    """Mask bool [S, Q] of the scored tokens: codes, and EOS in codebook 0."""
    special = Specials.after(size)
    own = tokens.numpy()
    due = own < size
    due[:, 0] |= own[:, 0] == special.eos
    return torch.from_numpy(due)
