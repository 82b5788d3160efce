"""What a Zipper remembers while documents are written.

The strict order makes states append-only: a token's state in its tower never changes once written. So each
tower keeps
the keys and values of its layers, each zip those of the tower it asks, and while one modality is written only
its own tower runs.
"""

import torch
from torch import Tensor

from zipper.model.tower import KeyValue
from zipper.model.zipper import Pair, Zipper


class Memory:
    """Grows by `extend`; rows may be ragged: an invalid token is remembered, but never looked at."""

    def __init__(self, model: Zipper, multimodal: Tensor) -> None:
        """multimodal bool [B]: of each document, known before its first token."""
        self.model, self.multimodal = model, multimodal
        self.own: dict[tuple[str, int], KeyValue] = {}  # (tower, layer)
        self.zipped: dict[tuple[int, Pair], KeyValue] = {}  # (stage, (asking, asked))
        empty = torch.zeros(len(multimodal), 0, dtype=torch.bool, device=multimodal.device)
        self.valid: dict[str, Tensor] = dict.fromkeys(model.names, empty)  # [B, T] of each tower

    def extend(self, name: str, tokens: Tensor, valid: Tensor) -> Tensor:
        """Writes tokens int64 [B, T, Q] of tower `name`, after all that is written; valid bool [B, T], padded
        on the right.

        Returns their states [B, T, D], for the tower's `logits`. Equal to the whole Zipper run on the whole
        document.
        """
        model, tower = self.model, self.model.tower(name)
        past = self.valid[name]
        position = past.sum(1, keepdim=True) + (valid.cumsum(1) - 1).clamp(min=0)  # [B, T]
        rotation, times = (
            tower.rotation(position),
            (model.time(name, position), model.time(name, position + 1)),
        )
        causal = torch.ones(valid.shape[1], valid.shape[1], dtype=torch.bool, device=valid.device).tril()
        mask = torch.cat(
            [past[:, None].expand(-1, valid.shape[1], -1), causal & valid[:, None]], dim=2
        )  # [B, T, Tpast + T]
        x = model.project(name, tower.embed(tokens), self.multimodal)
        for stage in range(model.stages + 1):
            for index in model.layers(name, stage):
                x, self.own[name, index] = tower.layers[index](x, rotation, mask, self.own.get((name, index)))
            if stage < model.stages:
                x = self._look_across(stage, name, x, *times)
        self.valid[name] = torch.cat([past, valid], dim=1)
        return tower.finish(x)

    def _look_across(self, stage: int, name: str, before: Tensor, time: Tensor, coming: Tensor) -> Tensor:
        """The zips of one stage: `name` asks the others, and leaves them what they will ask for."""
        x = before
        for other in self.model.names:
            asked = self.zipped.get((stage, (name, other)))
            if asked is not None:
                mask = (self.valid[other] & self.multimodal[:, None])[:, None].expand(-1, before.shape[1], -1)
                x = x + self.model.zip(stage, name, other)(before, coming, asked, mask)
            if (other, name) not in self.model.used:
                continue
            left = self.model.zip(stage, other, name).look_at(before, time)
            earlier = self.zipped.get((stage, (other, name)))
            if earlier is not None:
                left = KeyValue(
                    torch.cat([earlier.key, left.key], 2), torch.cat([earlier.value, left.value], 2)
                )
            self.zipped[stage, (other, name)] = left
        return x
