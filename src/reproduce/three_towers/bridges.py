"""Zips of a pair that was not trained, made of those of two pairs that were: by composing them, or with a
bridge that learned from text and speech alone."""

from collections.abc import Iterator, Sequence

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

    def __init__(self, source: int, hub: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(source)
        self.layers = nn.Sequential(
            nn.Conv1d(source, hub, KERNEL, padding="same"), nn.GELU(),
            nn.Conv1d(hub, hub, KERNEL, padding="same", dilation=3), nn.GELU(),
            nn.Conv1d(hub, hub, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.norm(x).transpose(1, 2)).transpose(1, 2)


@torch.no_grad()
def source_states(
    model: ZipperModel, batch: Batch, query: str, source: str
) -> tuple[list[Tensor], list[Tensor]]:
    """States of the source [B, Tk, C] and attention weights [B, Tq, Tk] (mean over heads) of each stage."""
    states, weights, hooks = list[Tensor](), list[Tensor](), []
    for stage in range(model.stages):
        block = model.zip(stage, query, source)
        hooks += [
            block.source_norm.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0])),
            block.register_forward_hook(lambda one, given, _: weights.append(one.weights(*given).mean(1))),
        ]
    try:
        model.eval()(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return states, weights


def pair_batches(
    model: ZipperModel, dataset: EncodedDataset, rows: Sequence[Row], task: str
) -> Iterator[Batch]:
    """Batches of the documents of a task."""
    books = {name: model.cfg.towers[name].codebooks for name in model.names}
    for start in range(0, len(rows), BATCH):
        yield collate([document(dataset, row, task, 0.0) for row in rows[start : start + BATCH]], books)


def hub_targets(text: list[Tensor], weights: Tensor) -> tuple[list[Tensor], Tensor]:
    """Hub states that belong to each source token [B, Tk, D], by stage, and the attention it gets [B, Tk].

    The hub's token j attends to what token j + 1 says, so a source token belongs to the tokens after those
    that attend to it. text: hub states [B, Tq, D]. weights [B, Tq, Tk]."""
    share = weights[:, :-1]  # [B, Tq - 1, Tk]
    total = share.sum(1)  # [B, Tk]
    mixed = [share.transpose(1, 2) @ states[:, 1:] / total[..., None].clamp(min=1e-6) for states in text]
    return mixed, total


def train_bridges(
    model: ZipperModel, dataset: EncodedDataset, rows: Sequence[Row], query: str, epochs: int, seed: int
) -> list[Bridge]:
    """Bridge from speech to text for each stage of the zips of `query` from text, from pairs of text and
    speech alone: it predicts the text state whose token a frame belongs to, in the coordinates that the zips
    of `query` read (whitened)."""
    torch.manual_seed(seed)
    readers = [model.zip(stage, query, "text") for stage in range(model.stages)]
    kept = []
    order = sorted(rows, key=lambda row: row["frames"])
    for heard, written in zip(
        pair_batches(model, dataset, order, "asr"), pair_batches(model, dataset, order, "tts"), strict=True
    ):
        speech, weights = source_states(model, heard, "text", "speech")
        text, _ = source_states(model, written, "speech", "text")
        sharpest = max(weights, key=lambda one: float(one.amax(-1).mean()))
        targets, total = hub_targets(text, sharpest)
        kept.append((speech, [_read(r, t) for r, t in zip(readers, targets, strict=True)], total))
    bridges = [Bridge(states.shape[-1], model.cfg.towers["text"].width) for states in kept[0][0]]
    parameters = [p for bridge in bridges for p in bridge.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    steps = epochs * len(kept)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for step in range(steps):
        speech, targets, total = kept[int(torch.randint(len(kept), ()))]
        loss = torch.zeros(())
        for bridge, reader, states, target in zip(bridges, readers, speech, targets, strict=True):
            error = (_read(reader, bridge(states), grad=True) - target).square().mean(-1)
            loss = loss + (error * total).sum() / total.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"bridge step {step}: loss {float(loss):.3f}", flush=True)
    return [bridge.eval().requires_grad_(False) for bridge in bridges]


def _read(reader: ZipBlock, states: Tensor, grad: bool = False) -> Tensor:
    """Source states in the (whitened) coordinates of a zip's first linear layer."""
    with torch.set_grad_enabled(grad):
        return reader.projection[0](reader.source_norm(states))


def mean_states(model: ZipperModel, dataset: EncodedDataset, rows: Sequence[Row], task: str) -> list[Tensor]:
    """Mean state of the first modality of a task's documents, by stage: [D]."""
    source, query = task.split(">")
    sums = [torch.zeros(model.cfg.towers[source].width) for _ in range(model.stages)]
    count = 0
    for batch in pair_batches(model, dataset, rows, task):
        states, _ = source_states(model, batch, query, source)
        valid = batch.streams[source].valid
        sums = [total + one[valid].sum(0) for total, one in zip(sums, states, strict=True)]
        count += int(valid.sum())
    return [total / count for total in sums]


def use_zips(model: ZipperModel, query: str, source: str, blocks: Sequence[ZipBlock]) -> None:
    """Let `query` attend to `source` by these zips."""
    for stage, block in enumerate(blocks):
        stage_zips = model.zips[stage]
        assert isinstance(stage_zips, nn.ModuleDict)
        stage_zips[f"{query}_from_{source}"] = block
    model.used = sorted({*model.used, (query, source)})
