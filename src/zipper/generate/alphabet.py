"""Which ids a tower may write in which column: content and specials never take each other's place."""

from typing import NamedTuple

import torch
from torch import Tensor

from zipper.schema import TowerConfig
from zipper.units.pattern import Specials, undelay
from zipper.units.text import Subwords

NEVER = 2**30  # the column in which a segment ends that has not ended yet


class Alphabet(NamedTuple):
    """Text is a stream of one codebook whose specials stand first; all other streams follow the delay pattern
    of `units.pattern`, specials last."""

    vocabulary: int
    codebooks: int
    begin: int
    end: int
    filler: int | None

    @classmethod
    def of(cls, name: str, tower: TowerConfig) -> "Alphabet":
        """Of the tower of that modality."""
        if name == "text":
            return cls(tower.vocabulary, 1, Subwords.begin, Subwords.end, None)
        special = Specials.after(tower.vocabulary - len(Specials._fields))
        return cls(tower.vocabulary, tower.codebooks, special.begin, special.end, special.filler)

    def legal(self, column: int, ended: Tensor, must_end: Tensor) -> Tensor:
        """What may stand in a column >= 1 of each row: bool [B, Q, V].

        ended int64 [B]: column of the row's end, NEVER if there is none yet. must_end bool [B]: nothing but
        the end is left to codebook 0.
        """
        content = torch.ones(self.vocabulary, dtype=torch.bool, device=ended.device)
        content[[i for i in (self.begin, self.end, self.filler) if i is not None]] = False
        only_end, only_filler = torch.zeros_like(content), torch.zeros_like(content)
        only_end[self.end] = True
        only_filler[self.end if self.filler is None else self.filler] = True  # rows that wait do write
        head = torch.where(must_end[:, None], only_end, content | only_end)
        first = torch.where((ended > column)[:, None], head, only_filler)[:, None]
        book = torch.arange(1, self.codebooks, device=ended.device)
        due = (column - 1 - book >= 0) & (column - book < ended[:, None])  # [B, Q - 1]
        return torch.cat([first, torch.where(due[..., None], content, only_filler)], dim=1)

    def last_column(self, ended: Tensor) -> Tensor:
        """Of a segment whose end stands in column `ended`: the other codebooks have yet to catch up."""
        return ended - 1 + max(1, self.codebooks - 1)

    def content(self, columns: Tensor) -> Tensor:
        """columns int64 [S, Q] of a whole segment, begin and end included -> content [Q, F]."""
        if self.filler is None:
            return columns[1:-1].T
        return undelay(columns, self.vocabulary - len(Specials._fields))
