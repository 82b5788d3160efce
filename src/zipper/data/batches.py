"""Collation: documents to padded tensors."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipper.data.documents import Document


class Stream(NamedTuple):
    """Tokens of one tower in a batch of documents, padded on the right."""

    tokens: Tensor  # int64 [B, T, Q]
    order: Tensor  # int64 [B, T]  index in the interleaved sequence
    valid: Tensor  # bool [B, T]  False on padding
    target: Tensor  # int64 [B, T, Q]  next token of the segment, -100 without loss
    weight: Tensor  # float32 [B, T]  loss weight
    # int64 [B, T]  at a segment's last token, index of the next modality, N if none; else -100
    next_modality: Tensor
    # int64 [N]  positions with loss in [B * T], computed on the CPU to avoid a synchronisation
    loss_index: Tensor
    segment_ends: Tensor  # int64 [M]  positions with a next-modality target in [B * T]


class Batch(NamedTuple):
    """Batch of documents.

    total: by modality, loss weight of the whole step over ranks and accumulation. segment_ends: number of
    next-modality targets of the whole step. attends_to: by (query, source), the documents int64 [R] in which
    a query token follows a source token; all documents if there is none, so that no zip of a step lacks a
    gradient. tokens: valid tokens of all streams. padding: share of padding, without unused towers. length:
    tokens of the longest document. Plain numbers do not need a device synchronisation.
    """

    ids: list[str]
    streams: dict[str, Stream]
    multimodal: Tensor  # bool [B]
    total: dict[str, float]
    segment_ends: int
    attends_to: dict[tuple[str, str], Tensor]
    tokens: int
    padding: float
    length: int

    def on(self, device: torch.device) -> "Batch":
        """Copy of the batch with its tensors on `device`."""
        streams = {name: Stream(*(t.to(device) for t in stream)) for name, stream in self.streams.items()}
        attends_to = {pair: rows.to(device) for pair, rows in self.attends_to.items()}
        return self._replace(streams=streams, multimodal=self.multimodal.to(device), attends_to=attends_to)


def collate(
    documents: Sequence[Document],
    codebooks: dict[str, int],
    total: dict[str, float] | None = None,
    segment_ends: int | None = None,
) -> Batch:
    """Batch of documents. codebooks: Q of every tower. Towers of other modalities have no valid token.
    total, segment_ends: of the whole step; default those of these documents."""
    streams = {name: _stream(documents, name, codebooks) for name in codebooks}
    own = {name: float((s.weight[..., None] * (s.target != -100)).sum()) for name, s in streams.items()}
    multimodal = torch.tensor([d.multimodal for d in documents])
    if segment_ends is None:
        segment_ends = sum(int((s.next_modality != -100).sum()) for s in streams.values())
    attends_to = {(a, b): _attends_to(documents, a, b) for a in codebooks for b in codebooks if a != b}
    used = [stream.valid for stream in streams.values() if stream.valid.any()]
    tokens, places = sum(int(valid.sum()) for valid in used), sum(valid.numel() for valid in used)
    length = int(torch.stack([stream.valid.sum(1) for stream in streams.values()]).sum(0).max())
    return Batch(
        [d.id for d in documents], streams, multimodal, total or own, segment_ends, attends_to,
        tokens, 1 - tokens / max(places, 1), length,
    )  # fmt: skip


def has_direction(document: Document, query: str, source: str) -> bool:
    """Whether tokens of the query modality attend to tokens of the source modality in a document."""
    order = [s.modality for s in document.segments if s.modality in (query, source)]
    return document.multimodal and source in order and query in order[order.index(source) :]


def _attends_to(documents: Sequence[Document], query: str, source: str) -> Tensor:
    rows = [row for row, doc in enumerate(documents) if has_direction(doc, query, source)]
    return torch.tensor(rows or range(len(documents)))


def _stream(documents: Sequence[Document], modality: str, codebooks: dict[str, int]) -> Stream:
    books, names = codebooks[modality], list(codebooks)
    lengths = [sum(len(s.tokens) for s in d.segments if s.modality == modality) for d in documents]
    rows, width = len(documents), max(*lengths, 1)
    # NumPy's views and assignments take a third of the time of PyTorch's.
    tokens = np.zeros((rows, width, books), np.int64)
    order = np.zeros((rows, width), np.int64)
    target = np.full((rows, width, books), -100)
    weight = np.zeros((rows, width), np.float32)
    next_modality = np.full((rows, width), -100)
    for row, doc in enumerate(documents):
        start = at = 0
        following = [*(s.modality for s in doc.segments[1:]), "nothing"]
        for part, then in zip(doc.segments, following, strict=False):  # a document may have no segment
            count = len(part.tokens)
            if part.modality == modality:
                end = start + count
                own = part.tokens.numpy()
                tokens[row, start:end] = own
                order[row, start:end] = np.arange(at, at + count)
                weight[row, start:end] = part.weight
                if part.weight:  # the last token of a segment, EOS, has no target
                    target[row, start : end - 1] = np.where(part.scored.numpy()[1:], own[1:], -100)
                if doc.multimodal:
                    next_modality[row, end - 1] = names.index(then) if then in names else len(names)
                start = end
            at += count
    return Stream(
        tokens=torch.from_numpy(tokens),
        order=torch.from_numpy(order),
        valid=torch.arange(width) < torch.tensor(lengths)[:, None],
        target=torch.from_numpy(target),
        weight=torch.from_numpy(weight),
        next_modality=torch.from_numpy(next_modality),
        loss_index=torch.from_numpy(np.flatnonzero((target != -100).any(-1))),
        segment_ends=torch.from_numpy(np.flatnonzero(next_modality != -100)),
    )


def spans(lengths: Sequence[float], count: int, limit: float) -> Iterator[tuple[int, int]]:
    """Beginning and end of consecutive batches of ascending lengths: of up to `count` items, and padded to
    the longest, of up to `limit` in all; one alone may be longer."""
    start = 0
    for end in range(1, len(lengths) + 1):
        longer = end < len(lengths) and (end + 1 - start) * lengths[end] > limit
        if end == len(lengths) or end - start == count or longer:
            yield start, end
            start = end
