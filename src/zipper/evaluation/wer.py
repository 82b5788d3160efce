"""Word errors as counts, so that batches and ranks add up to the corpus figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import jiwer


@dataclass(frozen=True)
class WordErrors:
    """Substitutions, deletions and insertions together, and the words of the reference."""

    errors: int = 0
    words: int = 0

    def __add__(self, other: WordErrors) -> WordErrors:
        return WordErrors(self.errors + other.errors, self.words + other.words)

    @property
    def rate(self) -> float:
        """Errors a word of the reference, over everything that was added up."""
        return self.errors / max(self.words, 1)


class Counted(Protocol):
    """Word errors of one sentence."""

    @property
    def errors(self) -> int: ...
    @property
    def words(self) -> int: ...


def capped_rate(found: Sequence[Counted]) -> float:
    """Word error rate with the errors of each sentence capped at its words, by which runs are chosen: one
    sentence on which a model, or its ASR scorer, repeats itself must not decide."""
    errors = sum(min(one.errors, one.words) for one in found)
    return errors / max(sum(one.words for one in found), 1)


def word_errors(reference: str, hypothesis: str) -> WordErrors:
    """Of one utterance, both sides normalised. An empty reference counts its insertions."""
    if not reference or not hypothesis:
        return WordErrors(len(reference.split()) + len(hypothesis.split()), len(reference.split()))
    out = jiwer.process_words(reference, hypothesis)
    return WordErrors(
        out.substitutions + out.deletions + out.insertions, out.hits + out.substitutions + out.deletions
    )
