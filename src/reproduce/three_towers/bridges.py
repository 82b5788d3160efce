"""Zips of a pair that was not trained, made of those of two pairs that were: by composing them, or with a
bridge that learned from text and the source alone, by distillation."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipper.data.batches import Batch, collate
from zipper.data.dataset import EncodedDataset, Row
from zipper.data.documents import document
from zipper.models.tower import KeyValue
from zipper.models.zip_block import TimePositions, ZipBlock
from zipper.models.zipper import ZipperModel

BATCH = 25  # documents
KERNEL = 5  # frames


class BridgedZip(ZipBlock):
    """A trained zip whose source states come from another tower over a bridge: [B, T, C] -> [B, T, D]."""

    def __init__(self, block: ZipBlock, bridge: nn.Module) -> None:
        nn.Module.__init__(self)
        self.cfg, self.heads, self.size = block.cfg, block.heads, block.size
        for name, part in block.named_children():
            setattr(self, name, part)
        self.attention_gate, self.feed_forward_gate = block.attention_gate, block.feed_forward_gate
        self.bridge = bridge

    def project_source(self, source: Tensor, times: TimePositions) -> KeyValue:
        return super().project_source(self.bridge(source), times)


class Composed(nn.Module):
    """What the hub's zip would add to the hub's states if it attended to one source token alone, on the hub's
    mean state."""

    def __init__(self, block: ZipBlock, mean: Tensor) -> None:
        super().__init__()
        self.block, self.mean = block, mean

    def forward(self, source: Tensor) -> Tensor:
        block = self.block
        h = F.relu(block.projection(block.source_norm(source)))
        return self.mean + block.attention_gate.tanh() * block.to_out(block.to_v(h))


class Bridge(nn.Module):
    """States of the hub from those of another tower: [B, T, C] -> [B, T, D]. Convolutions over time, to both
    sides, because a source is known as a whole."""

    def __init__(self, source: int, mean: Tensor) -> None:
        """source: width C. mean: state of the hub [D] at which all frames start; random states would be far
        from any, and zips that whiten their source make them large."""
        super().__init__()
        hub, last = len(mean), nn.Conv1d(len(mean), len(mean), 1)
        nn.init.zeros_(last.weight)
        last.bias = nn.Parameter(mean.clone())
        self.norm = nn.RMSNorm(source)
        self.layers = nn.Sequential(
            nn.Conv1d(source, hub, KERNEL, padding="same"), nn.GELU(),
            nn.Conv1d(hub, hub, KERNEL, padding="same", dilation=3), nn.GELU(),
            nn.Conv1d(hub, hub, KERNEL, padding="same", dilation=9), nn.GELU(),
            last,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.norm(x).transpose(1, 2)).transpose(1, 2)


class Source(NamedTuple):
    """A modality's states as zips see them: by stage [B, T, C], their times, and which are no padding."""

    states: list[Tensor]
    times: TimePositions
    valid: Tensor  # bool [B, T]


class Queries(NamedTuple):
    """Query states by stage [B, T, D], and their times."""

    states: list[Tensor]
    times: TimePositions


@torch.no_grad()
def both_sides(model: ZipperModel, batch: Batch, query: str, source: str) -> tuple[Source, Queries]:
    """What the zips of a pair get in documents of its task."""
    sources, inputs, hooks = list[Tensor](), list[tuple[Tensor, TimePositions]](), []
    for stage in range(model.stages):
        block = model.zip(stage, query, source)
        hooks += [
            block.source_norm.register_forward_pre_hook(lambda _, given: sources.append(given[0])),
            block.register_forward_pre_hook(lambda _, given: inputs.append((given[0], given[1]))),
        ]
    try:
        model.eval()(batch)
    finally:
        for hook in hooks:
            hook.remove()
    stream = batch.streams[source]
    times, _, _ = model.times(source, stream.tokens, stream.valid)
    return Source(sources, times, stream.valid), Queries([x for x, _ in inputs], inputs[0][1])


def pair_batches(
    model: ZipperModel, dataset: EncodedDataset, rows: Sequence[Row], task: str
) -> Iterator[Batch]:
    """Batches of the documents of a task."""
    books = {name: model.cfg.towers[name].codebooks for name in model.names}
    for start in range(0, len(rows), BATCH):
        yield collate([document(dataset, row, task, 0.0) for row in rows[start : start + BATCH]], books)


def train_bridges(
    model: ZipperModel,
    pairs: tuple[EncodedDataset, Sequence[Row]],
    asked: tuple[EncodedDataset, Sequence[Row]],
    query: str,
    source: str,
    epochs: int,
    seed: int,
) -> list[Bridge]:
    """Bridge from `source` to text for each stage of the zips of `query` from text.

    It learns, from pairs of text and `source` alone, to make these zips give a query what the text would have
    given it. The queries are of other documents: `asked`, pairs of text and `query`, in random order. epochs:
    passes over `pairs`.
    """
    torch.manual_seed(seed)
    dataset, rows = pairs
    length = dataset.modalities[source].length_column
    order = sorted(rows, key=lambda row: row[length])
    readers = [model.zip(stage, query, "text") for stage in range(model.stages)]
    kept = []
    for known, heard in zip(
        pair_batches(model, dataset, order, f"text>{source}"),
        pair_batches(model, dataset, order, f"{source}>text"),
        strict=True,
    ):
        text, _ = both_sides(model, known, source, "text")
        other, _ = both_sides(model, heard, "text", source)
        kept.append((text, other))
    questions = [
        both_sides(model, batch, query, "text")[1]
        for batch in pair_batches(model, asked[0], asked[1], f"text>{query}")
    ]
    bridges = [
        Bridge(states.shape[-1], torch.cat([text.states[stage][text.valid] for text, _ in kept]).mean(0))
        for stage, states in enumerate(kept[0][1].states)
    ]
    optimiser = torch.optim.AdamW(
        [p for one in bridges for p in one.parameters()], lr=2e-3, weight_decay=0.01
    )
    steps = epochs * len(kept)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for step in range(steps):
        text, other = kept[int(torch.randint(len(kept), ()))]
        chosen = questions[int(torch.randint(len(questions), ()))]
        who = torch.randint(len(chosen.times.time), (len(text.valid),))
        at, loss = TimePositions(chosen.times.time[who]), torch.zeros(())
        for stage, (reader, bridge) in enumerate(zip(readers, bridges, strict=True)):
            x = chosen.states[stage][who]
            with torch.no_grad():
                expected = given(reader, x, at, text.states[stage], text)
            found = given(reader, x, at, bridge(other.states[stage]), other)
            loss = loss + (found - expected).square().sum() / expected.square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(
                f"bridge step {step}: {float(loss) / len(readers):.3f} of the variance is missed", flush=True
            )
    return [bridge.eval().requires_grad_(False) for bridge in bridges]


def given(reader: ZipBlock, x: Tensor, at: TimePositions, states: Tensor, source: Source) -> Tensor:
    """What a zip adds to queries x [B, Tq, D] that attend to all states [B, Tk, C]."""
    mask = source.valid[:, None].expand(-1, x.shape[1], -1)
    return reader(x, at, reader.project_source(states, source.times), mask)


def mean_states(model: ZipperModel, dataset: EncodedDataset, rows: Sequence[Row], task: str) -> list[Tensor]:
    """Mean state of the first modality of a task's documents, by stage: [D]."""
    source, query = task.split(">")
    sums = [torch.zeros(model.cfg.towers[source].width) for _ in range(model.stages)]
    count = 0
    for batch in pair_batches(model, dataset, rows, task):
        found, _ = both_sides(model, batch, query, source)
        sums = [total + one[found.valid].sum(0) for total, one in zip(sums, found.states, strict=True)]
        count += int(found.valid.sum())
    return [total / count for total in sums]


def use_zips(model: ZipperModel, query: str, source: str, blocks: Sequence[ZipBlock]) -> None:
    """Let `query` attend to `source` by these zips."""
    for stage, block in enumerate(blocks):
        stage_zips = model.zips[stage]
        assert isinstance(stage_zips, nn.ModuleDict)
        stage_zips[f"{query}_from_{source}"] = block
    model.used = sorted({*model.used, (query, source)})
