"""Zipper: towers joined by zips (paper 3.1). Any number of towers; one tower alone is plain pre-training."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipper.config import ModelConfig
from zipper.data.batches import Batch
from zipper.models.multimodal import MultimodalModel
from zipper.models.tower import KeyValue, Tower
from zipper.models.zip_block import TimePositions, ZipBlock, cross_attention_mask, gate, mlp


class InputProjection(nn.Module):
    """Input projection of a tower (paper 3.1: h0 = ReLU(MLP(embedding)), 3 layers)."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.mlp = mlp(width, width, 3)
        if kind == "residual":
            self.gate = gate(0.0)  # starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]"""
        return self.combine(x, self.mlp(x))

    def combine(self, x: Tensor, y: Tensor) -> Tensor:
        """x [..., D] and y, what the MLP makes of it -> [..., D]"""
        return F.relu(y) if self.kind == "paper" else x + self.gate.tanh() * y


class CrossAttentionMask(NamedTuple):
    """Cross-attention of one direction in a batch: documents, mask, and time positions."""

    documents: Tensor | None  # int64 [R]; None: all of them
    mask: Tensor  # bool [R, Tq, Tk]
    query: TimePositions  # [R, Tq]
    source: TimePositions  # [R, Tk]

    @classmethod
    def of(
        cls, batch: Batch, a: str, b: str, query: TimePositions, source: TimePositions
    ) -> "CrossAttentionMask":
        """Mask of query tower a over source tower b."""
        mask = cross_attention_mask(batch.streams[a].order, batch.streams[b].order, batch.streams[b].valid)
        mask = mask & batch.multimodal[:, None, None]
        rows = batch.attends_to[a, b]
        if len(rows) == len(mask):
            return cls(None, mask, query, source)
        return cls(rows, mask[rows], TimePositions(query.time[rows]), TimePositions(source.time[rows]))

    def rows(self, x: Tensor) -> Tensor:
        """The documents of x [B, T, D] in which the direction occurs: [R, T, D]"""
        return x if self.documents is None else x[self.documents]

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Add y [R, T, D] to the same documents of x [B, T, D]."""
        return x + y if self.documents is None else x.index_add(0, self.documents, y.to(x.dtype))


class ZipperModel(MultimodalModel):
    """Zipper model. Stage n runs `interval` layers of every tower, then all its zips on the states before
    any update. The remaining layers follow the last stage."""

    def __init__(
        self, cfg: ModelConfig, rates: dict[str, float], seconds: Mapping[str, list[float]] | None = None
    ) -> None:
        """rates, seconds: see `set_times`."""
        super().__init__(cfg)
        for name in self.names:  # not persistent: set from the statistics
            self.register_buffer(
                f"seconds_{name}", torch.zeros(cfg.towers[name].vocabulary), persistent=False
            )
        self.set_times(rates, seconds)
        towers = {name: cfg.towers[name] for name in self.names}
        self.towers = nn.ModuleDict({name: Tower(tower) for name, tower in towers.items()})
        self.stages = min(t.layers // t.interval for t in towers.values()) if self.pairs else 0
        self.zips = nn.ModuleList(
            nn.ModuleDict(
                {
                    _key(a, b): ZipBlock(cfg.zips.get(_key(a, b), cfg.zip), towers[a].width, towers[b].width)
                    for a, b in self.pairs
                }
            )
            for _ in range(self.stages)
        )
        projected = {n: t for n, t in towers.items() if self.pairs and t.input_projection != "none"}
        self.projections = nn.ModuleDict(
            {n: InputProjection(t.input_projection, t.width) for n, t in projected.items()}
        )
        self.next_modality_heads = self.make_next_modality_heads()

    def set_times(self, rates: dict[str, float], seconds: Mapping[str, list[float]] | None = None) -> None:
        """Put all towers on one time axis. rates: mean tokens per second of each tower. seconds: expected
        duration of each token of a tower's first codebook, [V]; default 1 / rate."""
        self.rates = rates
        for name in self.names:
            buffer = self.get_buffer(f"seconds_{name}")
            each = (seconds or {}).get(name) or [1 / rates[name]] * len(buffer)
            # A padded embedding has more rows than the tokenizer.
            each = each + [0.0] * (len(buffer) - len(each))
            buffer.copy_(torch.tensor(each))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """See MultimodalModel."""
        x, rotations, times, next_time = {}, {}, {}, {}
        for name in self.names:
            stream, tower = batch.streams[name], self.tower(name)
            position = torch.arange(stream.tokens.shape[1], device=stream.tokens.device)[None]
            x[name] = self.project(name, tower.embed(stream.tokens), batch.multimodal)
            rotations[name] = tower.rotation(position)
            times[name], next_time[name], _ = self.times(name, stream.tokens, stream.valid)
        directions = {
            (a, b): CrossAttentionMask.of(batch, a, b, next_time[a], times[b])
            for a, b in self.pairs
            if (a, b) in self.used
        }

        def layer(name: str, index: int, states: Tensor) -> Tensor:
            return self.tower(name).layers[index](states, rotations[name])

        def zips(stage: int, before: dict[str, Tensor]) -> dict[str, Tensor]:
            after = dict(before)
            for (a, b), cross in directions.items():
                block = self.zip(stage, a, b)
                source = block.project_source(cross.rows(before[b]), cross.source)
                after[a] = cross.add(after[a], block(cross.rows(before[a]), cross.query, source, cross.mask))
            return after

        x = self.run_stages(x, layer, zips)
        return {name: self.tower(name).finish(x[name]) for name in self.names}

    def project(self, name: str, x: Tensor, multimodal: Tensor) -> Tensor:
        """Apply the input projection, except in unimodal documents. x [B, T, D], multimodal bool [B]."""
        if name not in self.projections:
            return x
        return torch.where(multimodal[:, None, None], self.projections[name](x), x)

    def times(
        self, name: str, tokens: Tensor, valid: Tensor, since: Tensor | None = None
    ) -> tuple[TimePositions, TimePositions, Tensor]:
        """Times of tokens int64 [B, T, Q] in seconds. since [B, 1]: end of the preceding tokens.

        Returns [B, T] the time of each token as a source (the middle of its span) and as a query (the end of
        the token that it predicts), and [B, 1] the end of the last valid token.
        """
        exact = torch.float64 if self.tower(name).weight.dtype == torch.float64 else torch.float32
        each = self.get_buffer(f"seconds_{name}").to(exact)[tokens[..., 0]] * valid  # [B, T]
        end = each.cumsum(1) + (0.0 if since is None else since)
        return TimePositions(end - each / 2), TimePositions(end + 1 / self.rates[name]), end[:, -1:]

    def backbone(self, name: str) -> str:
        return name

    def zip(self, stage: int, query: str, source: str) -> ZipBlock:
        block = self.zips[stage][_key(query, source)]  # type: ignore[index]  # a ModuleDict
        assert isinstance(block, ZipBlock)
        return block


@contextmanager
def recorded_attention(model: ZipperModel, query: str, source: str) -> Iterator[list[Tensor]]:
    """Context that collects the weights of one direction's cross-attention in every forward pass of this
    thread, with their gradient: [R, Tq, Tk] per zip, mean over heads, for the documents in which the
    direction occurs."""
    found: list[Tensor] = []
    mine = threading.get_ident()

    def keep(block: ZipBlock, inputs: tuple[Tensor, TimePositions, KeyValue, Tensor], _: Tensor) -> None:
        if threading.get_ident() == mine:
            found.append(block.weights(*inputs).mean(1))

    hooks = [model.zip(stage, query, source).register_forward_hook(keep) for stage in range(model.stages)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _key(query: str, source: str) -> str:
    return f"{query}_from_{source}"
