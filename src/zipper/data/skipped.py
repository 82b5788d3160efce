"""Utterances that cannot be used: found before encoding where possible, listed, and limited to a budget."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from zipper.corpora.utterance import Utterance
from zipper.disk import write_atomic
from zipper.errors import DataError
from zipper.modalities.base import Modality

SKIP_BUDGET = 0.01  # share of a corpus that may be unusable


class Skipped(TypedDict):
    """Utterance that cannot be used."""

    id: str
    reason: str


def usable_utterances(
    utterances: list[Utterance], modalities: Mapping[str, Modality]
) -> tuple[list[Utterance], list[Skipped]]:
    """Usable utterances, and those whose raw input is missing or refused."""
    usable: list[Utterance] = []
    skipped: list[Skipped] = []
    for u in utterances:
        try:
            for one in modalities.values():
                check_raw(u, one)
            usable.append(u)
        except DataError as error:
            skipped.append(Skipped(id=u.id, reason=str(error)))
    return usable, skipped


def check_raw(u: Utterance, modality: Modality) -> None:
    """Raises DataError if an utterance lacks an input that its corpus has, or if it cannot be used."""
    raw = u.raw(modality.column)
    if raw == "":
        raise DataError(f"Utterance {u.id} has no {modality.column}. Add it, or remove the utterance.")
    try:
        if raw is not None:
            modality.check(raw)
    except DataError as error:
        raise DataError(f"Utterance {u.id}: {error}") from error


def check_budget(folder: Path, skipped: list[Skipped], utterances: int) -> None:
    """Raises DataError if more than SKIP_BUDGET of the utterances are skipped. folder: holds the lists."""
    if len(skipped) > SKIP_BUDGET * utterances:
        raise DataError(
            f"{len(skipped)} of {utterances} utterances cannot be used, more than {SKIP_BUDGET:.0%}; "
            f"{folder}/*.skipped lists them, the first: {skipped[0]['reason']}"
        )


def list_skipped(file: Path, skipped: list[Skipped]) -> None:
    """Write JSON lines atomically."""
    write_atomic(file, "".join(json.dumps(entry) + "\n" for entry in skipped).encode())
