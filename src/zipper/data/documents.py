"""Task templates: a row and a task make a document of segments, prompt before answer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from zipper.config import modalities_of
from zipper.data.dataset import EncodedDataset, Row, column
from zipper.modalities.base import Modality

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Segment:
    """Tokens of one modality with BOS and EOS. tokens int64 [T, Q]; scored bool [T, Q]; weight: loss
    weight of the scored tokens, 0 for a prompt without loss."""

    modality: str
    tokens: Tensor
    scored: Tensor
    weight: float


@dataclass(frozen=True)
class Document:
    """Segments in linear order. multimodal is set by the template: inferring it from later segments would
    not be causal."""

    id: str
    segments: list[Segment]
    multimodal: bool


def eligible(dataset: EncodedDataset, rows: "Dataset", task: str, corpora: Sequence[str] = ()) -> list[int]:
    """Indices of the rows that have all modalities of a task and belong to one of `corpora` (default any)."""
    fits = np.ones(len(rows), dtype=bool)
    for name in modalities_of(task):
        fits &= column(rows, dataset.modalities[name].length_column) > 0
    if corpora:
        fits &= np.array([subset.partition("/")[0] in corpora for subset in rows["subset"][:]], dtype=bool)
    return np.flatnonzero(fits).tolist()


def document(dataset: EncodedDataset, row: Row, task: str, prompt_weight: float) -> Document:
    """Document of a task: its modalities in order, the last one is the answer."""
    order = modalities_of(task)
    weights = [prompt_weight] * (len(order) - 1) + [1.0]
    segments = [
        segment(dataset.modalities[name], dataset.modalities[name].content(row), weight)
        for name, weight in zip(order, weights, strict=True)
    ]
    return Document(row["id"], segments, multimodal=len(order) > 1)


def segment(modality: Modality, content: Tensor, weight: float = 0.0) -> Segment:
    """Content int64 [Q, F] as a segment, by default of a prompt without loss."""
    layout = modality.layout
    tokens = layout.tokens(content)
    return Segment(modality.name, tokens, layout.scored(tokens), weight)


def scored_weight(
    lengths: Mapping[str, float], books: Mapping[str, Sequence[float]], task: str, prompt_weight: float
) -> dict[str, float]:
    """Sum of the loss weights of a document by modality, from the lengths of its contents.

    books: weight of each codebook. EOS is scored in the first codebook (see `TokenLayout.scored`).
    """
    found: dict[str, float] = {}
    order = modalities_of(task)
    for name, weight in zip(order, [prompt_weight] * (len(order) - 1) + [1.0], strict=True):
        pairs = lengths[name] * sum(books[name]) + books[name][0]
        found[name] = found.get(name, 0.0) + weight * pairs
    return found


def directions(tasks: Iterable[str]) -> list[tuple[str, str]]:
    """(query, source) pairs of modalities that occur in these tasks."""
    orders = map(modalities_of, tasks)
    pairs = {(b, a) for order in orders for i, a in enumerate(order) for b in order[i + 1 :] if a != b}
    return sorted(pairs)
