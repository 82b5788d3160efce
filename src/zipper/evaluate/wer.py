"""Word errors as counts, so that batches and ranks add up to the corpus figure."""

from __future__ import annotations

from dataclasses import dataclass

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


def word_errors(reference: str, hypothesis: str) -> WordErrors:
    """Of one utterance, both sides normalised. An empty reference counts its insertions."""
    if not reference or not hypothesis:
        return WordErrors(len(reference.split()) + len(hypothesis.split()), len(reference.split()))
    out = jiwer.process_words(reference, hypothesis)
    return WordErrors(
        out.substitutions + out.deletions + out.insertions, out.hits + out.substitutions + out.deletions
    )
