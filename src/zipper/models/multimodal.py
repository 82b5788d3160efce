"""Common interface of Zipper and Single Decoder for training, generation and evaluation."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from zipper.config import ModelConfig
from zipper.data.batches import Batch, Stream
from zipper.models.ctc import CtcHeads
from zipper.models.tower import Tower
from zipper.models.zip_block import TimePositions, ZipBlock

Pair = tuple[str, str]  # (query, source)
# Models in `evaluating`: how many such contexts are open, and the modes before the first of them.
EVALUATING: WeakKeyDictionary[nn.Module, tuple[Counter[str], dict[nn.Module, bool]]] = WeakKeyDictionary()
LOCK = Lock()  # of EVALUATING, for all threads


class MultimodalModel(nn.Module):
    """Model of several modalities, with one `tower` per modality; a subclass makes `towers`, or overrides it.

    used: (query, source) directions of the training tasks; initially all. stages: number of zip stages.
    certificate: of the export that the weights were loaded from (`models.certify`).
    """

    towers: nn.ModuleDict
    stages = 0
    certificate: Mapping[str, Any] = {}

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.names = list(cfg.modalities)
        self.pairs: list[Pair] = [(a, b) for a in self.names for b in self.names if a != b]
        self.used = self.pairs
        self.trained = False  # in this process
        self.next_modality_heads = nn.ModuleDict()
        self.ctc: CtcHeads | None = None  # of trainings with train.ctc

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """States [B, T, D] of every modality's tokens, for the `logits` of its tower."""
        raise NotImplementedError

    def tower(self, name: str) -> Tower:
        """Decoder of one modality: embeds its tokens and predicts the next one."""
        tower = self.towers[name]
        assert isinstance(tower, Tower)
        return tower

    def backbone(self, name: str) -> str:
        """Modality whose layers process this one: the first, for all, unless a subclass differs. Towers of
        one backbone form one sequence and attend to one another by self-attention."""
        return self.names[0]

    def reader(self, name: str) -> Tower:
        """Tower whose layers a cache runs tokens of this modality through."""
        return self.tower(name)

    def outputs(self, name: str, tokens: Tensor, x: Tensor) -> Tensor:
        """States [B, T, D] for the `logits` of the tower. x: after the layers of the `reader`."""
        return self.tower(name).finish(x)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context in eval mode, and without autocast, whose dtype caches do not have. After the last of those
        that overlap (of two streams), every module gets its own mode back: that of a frozen tower in a
        training is another one."""
        with LOCK:
            if self not in EVALUATING:
                EVALUATING[self] = Counter(), {module: module.training for module in self.modules()}
            depth, modes = EVALUATING[self]
            depth["open"] += 1
            self.eval()
        try:
            with torch.autocast(next(self.parameters()).device.type, enabled=False):
                yield
        finally:
            with LOCK:
                depth["open"] -= 1
                if not depth["open"]:
                    del EVALUATING[self]
                    for module, training in modes.items():
                        module.training = training

    @property
    def directions_used(self) -> list[Pair]:
        """(query, source) directions in which zips attend."""
        return self.used if self.stages else []

    def layers(self, name: str, stage: int) -> range:
        """Layers of the `reader` before the zips of a stage; for stage = `stages`, after the last zip."""
        cfg = self.reader(name).cfg
        first = stage * cfg.interval
        return range(first, cfg.layers if stage == self.stages else first + cfg.interval)

    def run_stages(
        self,
        states: dict[str, Tensor],
        layer: Callable[[str, int, Tensor], Tensor],
        zips: Callable[[int, dict[str, Tensor]], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """States of the given towers after all layers and zips, the only loop over them: training, cache and
        single steps differ in what a layer and the zips of a stage are.

        layer(name, index, states of that tower) and zips(stage, states before any update) return new states.
        """
        for stage in range(self.stages + 1):
            for name in states:
                for index in self.layers(name, stage):
                    states[name] = layer(name, index, states[name])
            if stage < self.stages:
                states = zips(stage, states)
        return states

    def project(self, name: str, x: Tensor, multimodal: Tensor) -> Tensor:
        """Apply the input projection, if there is one. x [B, T, D], multimodal bool [B]."""
        return x

    def zip(self, stage: int, query: str, source: str) -> ZipBlock:
        """Zip of a stage in one direction."""
        raise NotImplementedError

    def set_times(self, rates: dict[str, float], seconds: Mapping[str, list[float]] | None = None) -> None:
        """Set the token rates that zips use for time positions. Without zips, do nothing."""

    def times(
        self, name: str, tokens: Tensor, valid: Tensor, since: Tensor | None = None
    ) -> tuple[TimePositions, TimePositions, Tensor]:
        """Time positions of tokens [B, T, Q] for the zips; 0 without zips."""
        nowhere = valid.new_zeros(valid.shape, dtype=torch.float32)
        return TimePositions(nowhere), TimePositions(nowhere), nowhere[:, -1:]

    def make_next_modality_heads(self) -> nn.ModuleDict:
        """Linear heads that predict what follows a segment, from the state of its last token: one of
        `names`, or end of document. They never train the towers. The paper leaves this choice to future
        work (section 3.2).
        """
        choices, towers = len(self.names) + 1, {n: self.cfg.towers[n] for n in self.names}
        return nn.ModuleDict(
            {
                n: nn.Linear(t.width, choices)
                for n, t in towers.items()
                if self.cfg.next_modality_head and self.pairs
            }
        )


def in_document_order(parts: dict[str, Tensor], batch: Batch) -> Tensor:
    """Tokens [B, T, D] of each modality in the order of their documents: [B, batch.length, D]"""
    first = next(iter(parts.values()))
    x = first.new_zeros(len(first), batch.length + 1, first.shape[-1])  # one more position, for padding
    for name, part in parts.items():
        stream = batch.streams[name]
        at = torch.where(stream.valid, stream.order, batch.length)[..., None].expand_as(part)
        x = x.scatter(1, at, part)
    return x[:, : batch.length]


def of_modality(x: Tensor, stream: Stream) -> Tensor:
    """Tokens [B, T, D] of a modality in x [B, length, D], which has the order of the documents."""
    return x.gather(1, stream.order[..., None].expand(-1, -1, x.shape[-1]))
