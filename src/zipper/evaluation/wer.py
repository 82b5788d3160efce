"""Word errors as counts, which add up over batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import jiwer


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


class Counted(Protocol):
    """Object with word errors of one sentence."""

    @property
    def errors(self) -> int: ...
    @property
    def words(self) -> int: ...


def capped_rate(found: Sequence[Counted]) -> float:
    """Word error rate with the errors of each sentence capped at its number of words.

    Used for model selection, so that one sentence with repetition does not decide.
    """
    errors = sum(min(one.errors, one.words) for one in found)
    return errors / max(sum(one.words for one in found), 1)


def word_errors(reference: str, hypothesis: str) -> WordErrors:
    """Word errors of one utterance with normalised texts. An empty reference counts insertions."""
    if not reference or not hypothesis:
        return WordErrors(len(reference.split()) + len(hypothesis.split()), len(reference.split()))
    out = jiwer.process_words(reference, hypothesis)
    return WordErrors(
        out.substitutions + out.deletions + out.insertions, out.hits + out.substitutions + out.deletions
    )
