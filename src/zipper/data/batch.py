"""Documents to tensors: what moves to the device."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zipper.data.document import Document


class Stream(NamedTuple):
    """One tower's share of a batch of documents, padded on the right."""

    tokens: Tensor  # int64 [B, T, Q]
    place: Tensor  # int64 [B, T]  index in the one linear order of the document
    valid: Tensor  # bool [B, T]  False on padding
    target: Tensor  # int64 [B, T, Q]  what comes next in the segment, -100 where no loss is due
    weight: Tensor  # float32 [B, T]  of that loss


class Batch(NamedTuple):
    """`total`: by modality, the loss weight of the whole step, over ranks and accumulation."""

    ids: list[str]
    streams: dict[str, Stream]
    multimodal: Tensor  # bool [B]
    total: dict[str, float]

    def on(self, device: torch.device) -> "Batch":
        """The same batch with its tensors there."""
        streams = {name: Stream(*(t.to(device) for t in stream)) for name, stream in self.streams.items()}
        return self._replace(streams=streams, multimodal=self.multimodal.to(device))


def collate(
    documents: Sequence[Document],
    codebooks: dict[str, int],
    total: dict[str, float] | None = None,
) -> Batch:
    """codebooks: Q of every tower. A tower that a document leaves silent has no valid token there."""
    streams = {name: _stream(documents, name, q) for name, q in codebooks.items()}
    own = {name: float((s.weight[..., None] * (s.target != -100)).sum()) for name, s in streams.items()}
    multimodal = torch.tensor([d.multimodal for d in documents])
    return Batch([d.id for d in documents], streams, multimodal, total or own)


def _stream(documents: Sequence[Document], modality: str, codebooks: int) -> Stream:
    lengths = [sum(len(s.tokens) for s in d.segments if s.modality == modality) for d in documents]
    rows, width = len(documents), max(*lengths, 1)
    stream = Stream(
        tokens=torch.zeros(rows, width, codebooks, dtype=torch.int64),
        place=torch.zeros(rows, width, dtype=torch.int64),
        valid=torch.arange(width) < torch.tensor(lengths)[:, None],
        target=torch.full((rows, width, codebooks), -100),
        weight=torch.zeros(rows, width),
    )
    for row, doc in enumerate(documents):
        start = place = 0
        for part in doc.segments:
            count = len(part.tokens)
            if part.modality == modality:
                end = start + count
                stream.tokens[row, start:end] = part.tokens
                stream.place[row, start:end] = torch.arange(place, place + count)
                stream.weight[row, start:end] = part.weight
                if part.weight:  # the last token of a segment, its end, has nothing to predict
                    stream.target[row, start : end - 1] = torch.where(part.scored, part.tokens, -100)[1:]
                start = end
            place += count
    return stream
