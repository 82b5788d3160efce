"""Scores of generated segments: errors as counts, which add up over batches and ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import jiwer
from torch import Tensor

Row = Mapping[str, Any]  # encoded utterance
Rows = Sequence[Row]


@dataclass(frozen=True)
class WordErrors:
    """Number of errors (substitutions, deletions, insertions) and of words in the reference."""

    errors: int = 0
    words: int = 0

    def __add__(self, other: WordErrors) -> WordErrors:
        return WordErrors(self.errors + other.errors, self.words + other.words)

    @property
    def rate(self) -> float:
        """Word error rate."""
        return self.errors / max(self.words, 1)


@dataclass(frozen=True)
class Score:
    """Errors of one generated segment.

    seconds: duration of the row, or of the generated segment if it has one. reference, hypothesis: what was
    compared, as text. stopped: finish reason of decoding.
    """

    id: str
    errors: int
    words: int
    seconds: float
    reference: str
    hypothesis: str
    stopped: str

    @property
    def counts(self) -> WordErrors:
        return WordErrors(self.errors, self.words)

    def entry(self) -> dict[str, str | int | float]:
        """Entry of `per_utterance` in a result file."""
        return asdict(self)


class Generated(Protocol):
    """Interface of `generation.generate.GenerationOutput`."""

    @property
    def content(self) -> Tensor: ...
    @property
    def finish_reason(self) -> str: ...


class Journal(Protocol):
    """Interface of `evaluation.journal.Journal`."""

    pieces: dict[str, Any]

    def add(self, key: str, value: Any) -> None: ...


class Scorer(ABC):
    """Scores generated segments of one modality.

    name: of the model that scores, if there is one. costly: an evaluation scores `evaluate.spoken` rows at
    most, and adds no control with mismatched prompts. identity: entries of
    every result that say what scored.
    """

    name: str | None = None
    costly = False
    identity: Mapping[str, str] = {}

    @abstractmethod
    def score(
        self,
        rows: Rows,
        outputs: Sequence[Generated],
        dataset: str,
        kept: Journal | None = None,
        name: str = "",
    ) -> list[Score]:
        """Scores of segments, one for each row. dataset: fingerprint of the rows' dataset. kept: journal that
        stores finished work under `name`."""

    def check(self, rows: Rows) -> None:  # noqa: B027  # a hook
        """Raises DataError if something that scoring needs of these rows is missing."""

    def describe(self, rows: Rows, found: Sequence[Score], dataset: str) -> dict[str, Any]:
        """Further entries of a result file."""
        return {}


class TextScorer(Scorer):
    """Word errors of texts.

    reference: text of a row. hypothesis: text of generated content int64 [Q, F].
    """

    def __init__(self, reference: Callable[[Row], str], hypothesis: Callable[[Tensor], str]) -> None:
        self.reference, self.hypothesis = reference, hypothesis

    def score(
        self,
        rows: Rows,
        outputs: Sequence[Generated],
        dataset: str,
        kept: Journal | None = None,
        name: str = "",
    ) -> list[Score]:
        """See Scorer."""
        out = []
        for row, segment in zip(rows, outputs, strict=True):
            reference, hypothesis = self.reference(row), self.hypothesis(segment.content)
            errors, seconds = word_errors(reference, hypothesis), round(row["seconds"], 3)
            out.append(
                Score(
                    row["id"],
                    errors.errors,
                    errors.words,
                    seconds,
                    reference,
                    hypothesis,
                    segment.finish_reason,
                )
            )
        return out


def total_errors(found: Iterable[Score]) -> WordErrors:
    """Errors of a corpus."""
    return sum((one.counts for one in found), WordErrors())


def capped_rate(found: Sequence[Score]) -> float:
    """Word error rate with the errors of each sentence capped at its number of words.

    Used for model selection, so that one sentence with repetition does not decide.
    """
    errors = sum(min(one.errors, one.words) for one in found)
    return errors / max(sum(one.words for one in found), 1)


def word_errors(reference: str, hypothesis: str) -> WordErrors:
    """Word errors of one utterance with normalised texts. An empty reference counts insertions."""
    out = jiwer.process_words(reference, hypothesis)
    return WordErrors(
        out.substitutions + out.deletions + out.insertions, out.hits + out.substitutions + out.deletions
    )
