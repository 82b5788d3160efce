"""Towers joined by zips (paper 3.1). N towers; two is the usual number, one is plain pre-training."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipper.data.batch import Batch
from zipper.model.tower import Tower
from zipper.model.zip_block import ZipBlock, cross_mask, mlp
from zipper.schema import ModelConfig, TowerConfig

Pair = tuple[str, str]  # (asking, asked)


class InputProjection(nn.Module):
    """Adapts a tower's embeddings to the multimodal task (paper 3.1: h0 = ReLU(MLP(embedding)), 3 layers)."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.mlp = mlp(width, width, 3)
        if kind == "residual":
            self.gate = nn.Parameter(torch.zeros(()))  # starts as the tower's own embedding

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]"""
        return F.relu(self.mlp(x)) if self.kind == "paper" else x + self.gate.tanh() * self.mlp(x)


class Zipper(nn.Module):
    """Stage n runs `interval` layers of every tower; then all zips of the stage look across, at states from
    before any of them is updated. Layers left over run after the last zip."""

    def __init__(self, cfg: ModelConfig, rates: dict[str, float]) -> None:
        """rates: tokens a second of each tower, on average; they place all towers on one axis of time."""
        super().__init__()
        self.cfg, self.rates = cfg, rates
        self.names = list(cfg.modalities)
        towers = {name: cfg.towers[name] for name in self.names}
        self.towers = nn.ModuleDict({name: Tower(tower) for name, tower in towers.items()})
        self.pairs: list[Pair] = [(a, b) for a in self.names for b in self.names if a != b]
        self.used = self.pairs  # a training whose tasks never look one way narrows this, and saves that work
        self.stages = min(t.layers // t.interval for t in towers.values()) if self.pairs else 0
        self.zips = nn.ModuleList(
            nn.ModuleDict(
                {_key(a, b): ZipBlock(cfg.zip, towers[a].width, towers[b].width) for a, b in self.pairs}
            )
            for _ in range(self.stages)
        )
        projected = {n: t for n, t in towers.items() if self.pairs and t.input_projection != "none"}
        self.projections = nn.ModuleDict(
            {n: InputProjection(t.input_projection, t.width) for n, t in projected.items()}
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """States [B, T, D] of every tower, for its `logits`."""
        x, rotations, times, coming = {}, {}, {}, {}
        for name in self.names:
            stream, tower = batch.streams[name], self.tower(name)
            position = torch.arange(stream.tokens.shape[1], device=stream.tokens.device)[None]
            x[name] = self.project(name, tower.embed(stream.tokens), batch.multimodal)
            rotations[name] = tower.rotation(position)
            times[name], coming[name] = self.time(name, position), self.time(name, position + 1)
        masks = {
            (a, b): cross_mask(batch.streams[a].place, batch.streams[b].place, batch.streams[b].valid)
            & batch.multimodal[:, None, None]
            for a, b in self.pairs
            if (a, b) in self.used
        }
        for stage in range(self.stages):
            for name in self.names:
                for index in self.layers(name, stage):
                    x[name], _ = self.tower(name).layers[index](x[name], rotations[name], None, None)
            before = dict(x)
            for (a, b), mask in masks.items():
                block = self.zip(stage, a, b)
                asked = block.look_at(before[b], times[b])
                x[a] = x[a] + block(before[a], coming[a], asked, mask)
        for name in self.names:
            for index in self.layers(name, self.stages):
                x[name], _ = self.tower(name).layers[index](x[name], rotations[name], None, None)
        return {name: self.tower(name).finish(x[name]) for name in self.names}

    def layers(self, name: str, stage: int) -> range:
        """Layers that a tower runs before the zips of a stage; stage = `stages`: those after the last zip."""
        cfg: TowerConfig = self.cfg.towers[name]
        first = stage * cfg.interval
        return range(first, cfg.layers if stage == self.stages else first + cfg.interval)

    def project(self, name: str, x: Tensor, multimodal: Tensor) -> Tensor:
        """The input projection, skipped in documents of one modality. x [B, T, D], multimodal bool [B]."""
        if name not in self.projections:
            return x
        return torch.where(multimodal[:, None, None], self.projections[name](x), x)

    def time(self, name: str, position: Tensor) -> Tensor:
        """position int64 [B, T] within the tower -> seconds [B, T], by the tower's mean rate.

        A token is asked at the time of its own end, and asks with that of the token it is about to predict.
        """
        exact = torch.float64 if self.tower(name).embedding.weight.dtype == torch.float64 else torch.float32
        return position.to(exact) / self.rates[name]

    def tower(self, name: str) -> Tower:
        tower = self.towers[name]
        assert isinstance(tower, Tower)
        return tower

    def zip(self, stage: int, asking: str, asked: str) -> ZipBlock:
        block = self.zips[stage][_key(asking, asked)]  # type: ignore[index]  # a ModuleDict
        assert isinstance(block, ZipBlock)
        return block


def _key(asking: str, asked: str) -> str:
    return f"{asking}_from_{asked}"
