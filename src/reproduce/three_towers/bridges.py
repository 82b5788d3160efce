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
from zipper.models.zip_block import TimePositions, ZipBlock
from zipper.models.zipper import ZipperModel, recorded_attention

BATCH = 25  # documents
KERNEL, DILATIONS = 5, (1, 3, 9)  # frames


class BridgedZip(ZipBlock):
    """A trained zip from text whose keys and values come from another tower: a bridge takes the place of its
    projection g. bridge: [B, T, C] -> [B, T, D]."""

    def __init__(self, block: ZipBlock, bridge: nn.Module) -> None:
        nn.Module.__init__(self)
        self.cfg, self.heads, self.size = block.cfg, block.heads, block.size
        for name, part in block.named_children():
            setattr(self, name, part)
        self.attention_gate, self.feed_forward_gate = block.attention_gate, block.feed_forward_gate
        self.bridge = bridge

    def projected(self, source: Tensor) -> Tensor:
        return self.bridge(source)


class Composed(nn.Module):
    """The projection g of a zip from the hub, of what the hub's own zip would add to the hub's states if it
    attended to one source token alone, on the hub's mean state."""

    def __init__(self, block: ZipBlock, mean: Tensor, reader: ZipBlock) -> None:
        """block: zip of the hub. mean: state of the hub [D]. reader: zip from the hub."""
        super().__init__()
        self.block, self.mean, self.reader = block, mean, reader

    def forward(self, source: Tensor) -> Tensor:
        block = self.block
        h = F.relu(block.projected(source))
        return self.reader.projected(self.mean + block.attention_gate.tanh() * block.to_out(block.to_v(h)))


class Bridge(nn.Module):
    """Projected states of text from the states of another tower: [B, T, C] -> [B, T, D]. Convolutions over
    time, to both sides, because a source is known as a whole."""

    def __init__(self, source: int, mean: Tensor) -> None:
        """source: width C. mean: of the projected states [D], where all frames start."""
        super().__init__()
        hub, last = len(mean), nn.Conv1d(len(mean), len(mean), 1)
        nn.init.zeros_(last.weight)
        last.bias = nn.Parameter(mean.clone())
        self.norm = nn.RMSNorm(source)
        self.first = nn.Conv1d(source, hub, 1)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(hub, hub, KERNEL, padding="same", dilation=dilation),
                nn.GELU(),
                nn.Conv1d(hub, hub, 1),
            )
            for dilation in DILATIONS
        )
        self.last = nn.Sequential(nn.GELU(), last)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.norm(x).transpose(1, 2))
        for layer in self.layers:
            x = x + layer(x)
        return self.last(x).transpose(1, 2)


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
    for start in range(0, len(rows), BATCH):
        yield collate(
            [document(dataset, row, task, 0.0) for row in rows[start : start + BATCH]], model.cfg.codebooks
        )


class PairStates(NamedTuple):
    """States of text and of a source in the same documents, each read without the other."""

    text: Source
    source: Source
    share: Tensor  # [B, T, S]: of each timestep of the source, in the tokens of the text (`shares`)


def read_pair(model: ZipperModel, known: Batch, heard: Batch, source: str) -> PairStates:
    """known: documents that begin with their text. heard: the same ones, beginning with their `source`."""
    text, _ = both_sides(model, known, source, "text")
    with recorded_attention(model, "text", source) as attention:
        other, _ = both_sides(model, heard, "text", source)
    return PairStates(text, other, shares(torch.stack(attention).mean(0), text.valid, other.valid))


def shares(attention: Tensor, text: Tensor, source: Tensor) -> Tensor:
    """How much each timestep of a source has to do with each token of its text, by the attention [B, S, T]
    of the zips that were trained to read it: [B, T, S]. A query predicts the token after it."""
    attention = F.pad(attention[:, :-1], (0, 0, 1, 0)) * text[:, :, None] * source[:, None]
    return attention.transpose(1, 2)


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
    given it. The queries are of other documents: `asked`, pairs of text and `query`, in random order. In the
    first half of the steps it also learns, with a weight that falls to 0, to project each timestep to where
    the zips project the tokens that it shares in: without that, zips from a source longer than its text do
    not find out what to attend to. epochs: passes over `pairs`.
    """
    torch.manual_seed(seed)
    dataset, rows = pairs
    length = dataset.modalities[source].length_column
    order = sorted(rows, key=lambda row: row[length])
    readers = [model.zip(stage, query, "text") for stage in range(model.stages)]
    kept = [
        read_pair(model, known, heard, source)
        for known, heard in zip(
            pair_batches(model, dataset, order, f"text>{source}"),
            pair_batches(model, dataset, order, f"{source}>text"),
            strict=True,
        )
    ]
    questions = [
        both_sides(model, batch, query, "text")[1]
        for batch in pair_batches(model, asked[0], asked[1], f"text>{query}")
    ]
    bridges = []
    for stage, reader in enumerate(readers):
        with torch.no_grad():
            projected = torch.cat([reader.projected(one.text.states[stage][one.text.valid]) for one in kept])
        bridges.append(Bridge(kept[0].source.states[stage].shape[-1], projected.mean(0)))
    zips = [BridgedZip(reader, bridge) for reader, bridge in zip(readers, bridges, strict=True)]
    optimiser = torch.optim.AdamW(
        [p for one in bridges for p in one.parameters()], lr=2e-3, weight_decay=0.01
    )
    steps = epochs * len(kept)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for step in range(steps):
        pair = kept[int(torch.randint(len(kept), ()))]
        chosen = questions[int(torch.randint(len(questions), ()))]
        who = torch.randint(len(chosen.times.time), (len(pair.share),))
        at = TimePositions(chosen.times.time[who])
        missed, apart = torch.zeros(()), torch.zeros(())
        for stage, (reader, bridged) in enumerate(zip(readers, zips, strict=True)):
            x = chosen.states[stage][who]
            with torch.no_grad():
                expected = given(reader, x, at, pair.text.states[stage], pair.text)
                tokens = reader.projected(pair.text.states[stage])
            found = given(bridged, x, at, pair.source.states[stage], pair.source)
            missed = missed + (found - expected).square().sum() / expected.square().sum() / len(zips)
            projected = bridged.projected(pair.source.states[stage])
            apart = apart + misplaced(projected, tokens, pair.share) / len(zips)
        optimiser.zero_grad()
        (missed + max(0.0, 1 - 2 * step / steps) * apart).backward()
        nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(
                f"bridge step {step}: {float(missed):.3f} of the variance that text gives is missed, "
                f"{float(apart):.3f} of that of its tokens",
                flush=True,
            )
    return [bridge.eval().requires_grad_(False) for bridge in bridges]


def misplaced(found: Tensor, tokens: Tensor, share: Tensor) -> Tensor:
    """Squared error of projected states [B, T, D] against those of the tokens [B, S, D] that they share in,
    relative to the tokens' variance: []."""
    weight = share.sum(-1)  # [B, T]
    expected = share @ tokens / weight.clamp(min=1e-6)[..., None]
    center = (weight[..., None] * expected).sum((0, 1)) / weight.sum()
    error, variance = (found - expected).square().sum(-1), (expected - center).square().sum(-1)
    return (weight * error).sum() / (weight * variance).sum()


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
