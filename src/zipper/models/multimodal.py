"""What training, writing and evaluating need of a model, be it a Zipper or the Single Decoder."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from zipper.config import ModelConfig, TowerConfig
from zipper.data.batches import Batch
from zipper.models.tower import Tower
from zipper.models.zip_block import TimePositions, ZipBlock, accept_old_state

Pair = tuple[str, str]  # (asking, asked)


class MultimodalModel(nn.Module):
    """Reads and writes several modalities, each through its own `tower`.

    used: the directions that a training's tasks look in; all, until it narrows them. stages: of zips.
    """

    stages = 0

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.names = list(cfg.modalities)
        self.pairs: list[Pair] = [(a, b) for a in self.names for b in self.names if a != b]
        self.used = self.pairs
        self.next_modality_heads = nn.ModuleDict()
        self.register_load_state_dict_pre_hook(accept_old_state)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """States [B, T, D] of every modality's tokens, for its tower's `logits`."""
        raise NotImplementedError

    def tower(self, name: str) -> Tower:
        """What embeds a modality's tokens, runs them, and tells the next one."""
        raise NotImplementedError

    def backbone(self, name: str) -> str:
        """The modality whose layers run this one: towers of one backbone stand in one line and see each
        other by self-attention."""
        raise NotImplementedError

    @property
    def directions_used(self) -> list[Pair]:
        """The directions in which zips look."""
        return self.used if self.stages else []

    def layers(self, name: str, stage: int) -> range:
        """Layers that a tower runs before the zips of a stage; stage = `stages`: those after the last zip."""
        cfg: TowerConfig = self.cfg.towers[name]
        first = stage * cfg.interval
        return range(first, cfg.layers if stage == self.stages else first + cfg.interval)

    def project(self, name: str, x: Tensor, multimodal: Tensor) -> Tensor:
        """The input projection, where there is one. x [B, T, D], multimodal bool [B]."""
        return x

    def zip(self, stage: int, query: str, source: str) -> ZipBlock:
        """Of a stage, in one direction."""
        raise NotImplementedError

    def set_times(self, rates: dict[str, float], seconds: Mapping[str, list[float]] | None = None) -> None:
        """Tells the zips how fast tokens follow one another; without zips, nothing is to be told."""

    def times(
        self, name: str, tokens: Tensor, valid: Tensor, since: Tensor | None = None
    ) -> tuple[TimePositions, TimePositions, Tensor]:
        """Where the zips place tokens [B, T, Q]; without zips, nowhere."""
        nowhere = valid.new_zeros(valid.shape, dtype=torch.float32)
        return TimePositions(nowhere), TimePositions(nowhere), nowhere[:, -1:]

    def make_next_modality_heads(self) -> nn.ModuleDict:
        """What follows a segment, from the state of its last token: one of `names`, or nothing more. It reads
        the towers and never moves them (the paper leaves the choice to future work, section 3.2)."""
        choices, towers = len(self.names) + 1, {n: self.cfg.towers[n] for n in self.names}
        return nn.ModuleDict(
            {n: nn.Linear(t.width, choices) for n, t in towers.items() if self.cfg.switch and self.pairs}
        )
