"""Codes to columns and back: the delay pattern or the parallel one (MusicGen, arXiv 2306.05284, section 2.2),
with begin and end.

Q = 3 codebooks, F = 3 frames; B begin, E end, - filler; on the left delay, on the right parallel:

    codebook 0   B  a0 a1 a2 E  -         B  a0 a1 a2 E
    codebook 1   B  -  b0 b1 b2 -         B  b0 b1 b2 -
    codebook 2   B  -  -  c0 c1 c2        B  c0 c1 c2 -

The end stands in codebook 0 alone and decides the stop: the Q - 2 columns after it that the delay pattern
has are then forced. With Q = 1 both are the paper's speech tower. Fillers are neither scored nor sampled.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from zipper.errors import DataError


class Specials(NamedTuple):
    """Ids after the codes of a codebook."""

    bos: int
    eos: int
    filler: int

    @classmethod
    def after(cls, codes: int) -> "Specials":
        return cls(codes, codes + 1, codes + 2)


def vocabulary(codes: int) -> int:
    """Codes, begin, end and filler."""
    return codes + len(Specials._fields)


Pattern = Literal["delay", "parallel"]
LAGS: dict[str, int] = {"delay": 1, "parallel": 0}  # columns that a codebook stands behind the one before it


def extra_timesteps(codebooks: int, pattern: Pattern) -> int:
    """Columns of a segment that are more than its frames: begin, end, and what is then forced."""
    return 1 + max(1, LAGS[pattern] * (codebooks - 1))


def to_timesteps(codes: Tensor, size: int, pattern: Pattern = "delay") -> Tensor:
    """codes int64 [Q, F], each below `size` -> columns int64 [S, Q]. DataError on a code out of range."""
    if codes.numel() == 0:
        raise DataError("An utterance without a single frame has no columns.")
    if codes.min() < 0 or codes.max() >= size:
        raise DataError(f"Codes {int(codes.min())} to {int(codes.max())} do not lie within 0 and {size - 1}.")
    books, frames = codes.shape
    special, lag = Specials.after(size), LAGS[pattern]
    out = codes.new_full((frames + extra_timesteps(books, pattern), books), special.filler)
    out[0] = special.bos
    for q in range(books):
        out[1 + lag * q : 1 + lag * q + frames, q] = codes[q]
    out[1 + frames, 0] = special.eos
    return out


def from_timesteps(out: Tensor, size: int, pattern: Pattern = "delay") -> Tensor:
    """The inverse of `to_columns`: columns int64 [S, Q] -> codes [Q, F], F up to the end (or to the last
    whole frame).

    Raises DataError where a special stands in the place of a code: it is never clamped into one.
    """
    special, lag = Specials.after(size), LAGS[pattern]
    if len(out) == 0 or not bool((out[0] == special.bos).all()):
        raise DataError("Columns of speech start with begin in every codebook; these do not.")
    books = out.shape[1]
    ends = (out[:, 0] == special.eos).nonzero()
    whole = len(out) - 1 - lag * (books - 1)  # frames of which all has been written, should there be no end
    frames = int(ends[0]) - 1 if len(ends) else max(whole, 0)
    codes = torch.stack([out[1 + lag * q : 1 + lag * q + frames, q] for q in range(books)])
    if codes.shape[1] != frames or bool((codes >= size).any()):
        raise DataError(f"A special stands where one of the {frames} frames should have a code.")
    return codes


def scored(tokens: Tensor, size: int) -> Tensor:
    """Which entries of the columns are predicted: codes, and the end in codebook 0. bool [S, Q]."""
    special = Specials.after(size)
    due = tokens < size
    due[:, 0] |= tokens[:, 0] == special.eos
    return due
