"""Codes to columns and back: the delay pattern (MusicGen, arXiv 2306.05284, section 2.2), with begin and end.

Q = 3 codebooks, F = 3 frames; B begin, E end, - filler:

    codebook 0   B  a0 a1 a2 E  -
    codebook 1   B  -  b0 b1 b2 -
    codebook 2   B  -  -  c0 c1 c2

The end stands in codebook 0 alone and decides the stop: the Q - 2 columns after it are then forced. With Q =
1 this is the paper's speech tower. Fillers are neither scored nor sampled.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from zipper.errors import DataError


class Specials(NamedTuple):
    """Ids after the codes of a codebook."""

    begin: int
    end: int
    filler: int

    @classmethod
    def after(cls, codes: int) -> "Specials":
        return cls(codes, codes + 1, codes + 2)


def vocabulary(codes: int) -> int:
    """Codes, begin, end and filler."""
    return codes + len(Specials._fields)


def columns(frames: int, codebooks: int) -> int:
    """Columns that `frames` frames take: 1 + F + max(1, Q - 1)."""
    return 1 + frames + max(1, codebooks - 1)


def delay(codes: Tensor, size: int) -> Tensor:
    """codes int64 [Q, F], each below `size` -> columns int64 [S, Q]. DataError on a code out of range."""
    if codes.numel() == 0:
        raise DataError("An utterance without a single frame has no columns.")
    if codes.min() < 0 or codes.max() >= size:
        raise DataError(f"Codes {int(codes.min())} to {int(codes.max())} do not lie within 0 and {size - 1}.")
    books, frames = codes.shape
    special = Specials.after(size)
    out = codes.new_full((columns(frames, books), books), special.filler)
    out[0] = special.begin
    for q in range(books):
        out[1 + q : 1 + q + frames, q] = codes[q]
    out[1 + frames, 0] = special.end
    return out


def undelay(out: Tensor, size: int) -> Tensor:
    """The inverse of `delay`: columns int64 [S, Q] -> codes [Q, F], F up to the end (or to the last whole
    frame).

    Raises DataError where a special stands in the place of a code: it is never clamped into one.
    """
    special = Specials.after(size)
    if len(out) == 0 or not bool((out[0] == special.begin).all()):
        raise DataError("Columns of speech start with begin in every codebook; these do not.")
    books = out.shape[1]
    ends = (out[:, 0] == special.end).nonzero()
    whole = len(out) - books  # frames whose last codebook has been written, should there be no end
    frames = int(ends[0]) - 1 if len(ends) else max(whole, 0)
    codes = torch.stack([out[1 + q : 1 + q + frames, q] for q in range(books)])
    if codes.shape[1] != frames or bool((codes >= size).any()):
        raise DataError(f"A special stands where one of the {frames} frames should have a code.")
    return codes


def scored(tokens: Tensor, size: int) -> Tensor:
    """Which entries of the columns are predicted: codes, and the end in codebook 0. bool [S, Q]."""
    special = Specials.after(size)
    due = tokens < size
    due[:, 0] |= tokens[:, 0] == special.end
    return due
