"""A row and a task make a document: segments of tokens in one linear order, prompt before answer."""

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
    """A run of tokens of one modality: begin, content, end. tokens int64 [T, Q]; scored bool [T, Q].

    weight is the loss weight of its scored tokens; 0 for what is given and not to be learnt.
    """

    modality: str
    tokens: Tensor
    scored: Tensor
    weight: float


@dataclass(frozen=True)
class Document:
    """multimodal is set by the template, never inferred from what comes later: that would not be causal."""

    id: str
    segments: list[Segment]
    multimodal: bool


def eligible(rows: Dataset, task: str, corpora: Sequence[str] = ()) -> list[int]:
    """Which rows can be a document of a task: they hold all of its modalities, and are of one of `corpora`
    (none: of any)."""
    fits = np.ones(len(rows), dtype=bool)
    for name in TASKS[task]:
        fits &= column(rows, {"text": "subwords", "speech": "frames"}[name]) > 0
    if corpora:
        fits &= np.array([subset.partition("/")[0] in corpora for subset in rows["subset"][:]], dtype=bool)
    return np.flatnonzero(fits).tolist()


def document(dataset: EncodedDataset, row: Row, task: str, prompt_weight: float) -> Document:
    """The template of a task: its modalities in order, the last one the answer."""
    order = TASKS[task]
    weights = [prompt_weight] * (len(order) - 1) + [1.0]
    segments = [segment(dataset, row, name, weight) for name, weight in zip(order, weights, strict=True)]
    return Document(row["id"], segments, multimodal=len(order) > 1)


def segment(dataset: EncodedDataset, row: Row, modality: str, weight: float) -> Segment:
    """One modality of a row as tokens, begin and end included."""
    if modality == "speech":
        return speech_segment(dataset.row_codes(row), dataset.codes, weight, dataset.pattern)
    return text_segment(row["ids"], dataset.tokenizer, weight)


def text_segment(ids: Sequence[int], subwords: Tokenizer, weight: float) -> Segment:
    """Subwords as columns of one codebook."""
    tokens = torch.tensor([subwords.bos, *ids, subwords.eos])[:, None]
    return Segment("text", tokens, torch.arange(len(tokens))[:, None] > 0, weight)


def speech_segment(codes: Tensor, size: int, weight: float, pattern: Pattern = "delay") -> Segment:
    """codes int64 [Q, F], each below `size`, as columns (`units.pattern`)."""
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
    """Sum of loss weights that a document scores, by modality, from the counts alone (see `scored`)."""
    books = codebook_weights or [1.0] * dataset.codebooks
    pairs = {"text": subwords + 1.0, "speech": frames * sum(books) + books[0]}
    order = TASKS[task]
    return {name: pairs[name] * (1.0 if name == order[-1] else prompt_weight) for name in order}


def directions(tasks: Iterable[str]) -> list[tuple[str, str]]:
    """(asking, asked) pairs of modalities that occur in these tasks; other directions stay idle."""
    pairs = {(b, a) for task in tasks for i, a in enumerate(TASKS[task]) for b in TASKS[task][i + 1 :]}
    return sorted(pairs)
