"""Training losses: next-token prediction and next-modality prediction; masking of history and prompts."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor

from zipper.config import TrainConfig
from zipper.data.batches import Batch, Stream
from zipper.modalities.layout import TokenLayout
from zipper.models.multimodal import MultimodalModel
from zipper.models.tower import Tower
from zipper.models.zipper import ZipperModel, recorded_attention


def training_loss(
    model: MultimodalModel, batch: Batch, train: TrainConfig, slices: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one of the `slices` of a step, whose mean over slices is the loss of the step: [], and its
    parts before `train.ctc` and `train.guide` weigh them: the modalities of the batch, ctc, guide,
    next_modality."""
    guided, attention = model.ctc if train.guide else None, []
    with ExitStack() as recording:
        if guided is not None and isinstance(model, ZipperModel):
            pairs = [(head.answer, head.prompt) for head in guided.own()]
            attention = [recording.enter_context(recorded_attention(model, *pair)) for pair in pairs]
        states = model(batch)
    loss, parts = states[model.names[0]].new_zeros(()), dict[str, Tensor]()
    for name, stream in batch.streams.items():
        books = train.codebook_weights if len(train.codebook_weights) == stream.tokens.shape[-1] else []
        part = stream_loss(model.tower(name), states[name], stream, books)
        part = part * slices / max(batch.total[name], 1.0)
        if batch.total[name]:
            parts[name] = part
        loss = loss + part
    if model.ctc is not None and train.ctc:
        parts["ctc"] = model.ctc(states, batch) * slices
        loss = loss + train.ctc * parts["ctc"]
        if guided is not None:
            parts["guide"] = guided.guide(states, batch, attention) * slices
            loss = loss + train.guide * parts["guide"]
    if model.next_modality_heads:
        part = next_modality_loss(model, states, batch) * slices / max(batch.segment_ends, 1)
        parts["next_modality"], loss = part, loss + part
    return loss, parts


def stream_loss(
    tower: Tower, states: Tensor, stream: Stream, codebook_weights: Sequence[float] = ()
) -> Tensor:
    """Weighted sum of cross-entropies over scored (token, codebook) pairs, in float32 or float64: []

    codebook_weights: of each codebook; default 1.

    Logits are computed only for scored tokens, because the head is a large share of a small tower's cost.
    """
    index = stream.loss_index
    loss = tower.cross_entropy(_select(states, index), _select(stream.target, index))  # [N, Q]
    if codebook_weights:
        loss = loss * torch.tensor(codebook_weights, dtype=loss.dtype).to(loss.device, non_blocking=True)
    return (loss.sum(-1) * _select(stream.weight, index)).sum()


def _select(x: Tensor, index: Tensor) -> Tensor:
    """x [B, T, ...] at indices [N] into [B * T]: [N, ...]"""
    return x.flatten(0, 1).index_select(0, index)


@torch.no_grad()
def not_finite(model: MultimodalModel, batch: Batch) -> list[str]:
    """Ids of the utterances whose own loss is not finite."""
    states, found = model(batch), set[int]()
    for name, stream in batch.streams.items():
        target = _select(stream.target, stream.loss_index)
        loss = model.tower(name).cross_entropy(_select(states[name], stream.loss_index), target).sum(-1)
        loss = loss * _select(stream.weight, stream.loss_index)
        found |= {index // stream.valid.shape[1] for index in stream.loss_index[~loss.isfinite()].tolist()}
    return [batch.ids[row] for row in sorted(found)]


def mask_history(batch: Batch, model: MultimodalModel, share: float, span: int) -> Batch:
    """History masking: replace random spans of the answer's input tokens by fillers, about `share` of them.

    Masked tokens are still predicted, but are not visible as input, so that a speech tower relies on the text
    instead of its own past. span: timesteps per span.
    """
    return _masked(batch, model, share, span, lambda stream: stream.weight > 0)


def mask_prompt(batch: Batch, model: MultimodalModel, share: float, span: int) -> Batch:
    """Prompt masking: replace random spans of the prompt's tokens by fillers, as SpecAugment does in time
    (arXiv 1904.08779). A prompt has a loss weight below 1. span: timesteps per span."""
    return _masked(batch, model, share, span, lambda stream: stream.weight < 1)


def _masked(
    batch: Batch, model: MultimodalModel, share: float, span: int, where: Callable[[Stream], Tensor]
) -> Batch:
    """BOS and towers without a filler (text) are left unchanged."""
    streams = dict(batch.streams)
    for name, stream in streams.items():
        layout = TokenLayout.of(model.tower(name).cfg)
        if layout.filler is None:
            continue
        begun = torch.rand(stream.valid.shape, device=stream.valid.device) < 1 - (1 - share) ** (1 / span)
        spans = F.pad(begun[:, None].float(), (span - 1, 0))
        hidden = F.max_pool1d(spans, span, stride=1)[:, 0] > 0
        hidden &= where(stream) & (stream.tokens[..., 0] != layout.bos)
        streams[name] = stream._replace(tokens=torch.where(hidden[..., None], layout.filler, stream.tokens))
    return batch._replace(streams=streams)


def next_modality_loss(model: MultimodalModel, states: dict[str, Tensor], batch: Batch) -> Tensor:
    """Sum of cross-entropies of the next-modality heads: []. No gradient reaches the towers."""
    loss = states[model.names[0]].new_zeros(())
    for name, stream in batch.streams.items():
        logits = model.next_modality_heads[name](_select(states[name], stream.segment_ends).detach())
        loss = loss + F.cross_entropy(
            logits, _select(stream.next_modality, stream.segment_ends), reduction="sum"
        )
    return loss
