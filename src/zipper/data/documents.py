"""Task templates: a row and a task make a document of segments, prompt before answer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from zipper.config import TASKS
from zipper.data.dataset import EncodedDataset, Row, column
from zipper.modalities.delay import Pattern, scored, to_timesteps
from zipper.modalities.tokenizer import Tokenizer


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


def eligible(rows: Dataset, task: str, corpora: Sequence[str] = ()) -> list[int]:
    """Indices of the rows that have all modalities of a task and belong to one of `corpora` (default any)."""
    fits = np.ones(len(rows), dtype=bool)
    for name in TASKS[task]:
        fits &= column(rows, {"text": "subwords", "speech": "frames"}[name]) > 0
    if corpora:
        fits &= np.array([subset.partition("/")[0] in corpora for subset in rows["subset"][:]], dtype=bool)
    return np.flatnonzero(fits).tolist()


def document(dataset: EncodedDataset, row: Row, task: str, prompt_weight: float) -> Document:
    """Document of a task: its modalities in order, the last one is the answer."""
    order = TASKS[task]
    weights = [prompt_weight] * (len(order) - 1) + [1.0]
    segments = [segment(dataset, row, name, weight) for name, weight in zip(order, weights, strict=True)]
    return Document(row["id"], segments, multimodal=len(order) > 1)


def segment(dataset: EncodedDataset, row: Row, modality: str, weight: float) -> Segment:
    """Segment of one modality of a row."""
    if modality == "speech":
        return speech_segment(dataset.row_codes(row), dataset.codes, weight, dataset.pattern)
    return text_segment(row["ids"], dataset.tokenizer, weight)


def text_segment(ids: Sequence[int], subwords: Tokenizer, weight: float) -> Segment:
    """Text ids as a segment of one codebook."""
    tokens = torch.tensor([subwords.bos, *ids, subwords.eos])[:, None]
    return Segment("text", tokens, torch.arange(len(tokens))[:, None] > 0, weight)


def speech_segment(codes: Tensor, size: int, weight: float, pattern: Pattern = "delay") -> Segment:
    """Codes int64 [Q, F] with values below `size` as a segment (see `modalities.delay`)."""
    tokens = to_timesteps(codes, size, pattern)
    return Segment("speech", tokens, scored(tokens, size), weight)


def scored_weight(
    dataset: EncodedDataset,
    subwords: float,
    frames: float,
    task: str,
    prompt_weight: float,
    codebook_weights: Sequence[float] = (),
) -> dict[str, float]:
    """Sum of the loss weights of a document by modality, from its text length and its frames (see
    `scored`)."""
    books = codebook_weights or [1.0] * dataset.codebooks
    pairs = {"text": subwords + 1.0, "speech": frames * sum(books) + books[0]}
    order = TASKS[task]
    return {name: pairs[name] * (1.0 if name == order[-1] else prompt_weight) for name in order}


def directions(tasks: Iterable[str]) -> list[tuple[str, str]]:
    """(query, source) pairs of modalities that occur in these tasks."""
    pairs = {(b, a) for task in tasks for i, a in enumerate(TASKS[task]) for b in TASKS[task][i + 1 :]}
    return sorted(pairs)
