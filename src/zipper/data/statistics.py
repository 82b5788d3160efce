"""Statistics of the training data that a trained model keeps: units, rates, lengths."""

import itertools
import math
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from zipper.data.dataset import EncodedDataset, column, limit_rows
from zipper.modalities.base import Column, Modality

LENGTH_MARGIN = 1.5  # generation limits, relative to the largest value of the training split
OLD_NAMES = {"store": "fingerprint", "store_without_audio": "fingerprint_without_audio"}


@dataclass(frozen=True)
class DatasetStatistics:
    """Statistics of the training data by modality. Plain numbers, stored in checkpoints.

    fingerprint: of the encoded dataset. reads: fingerprint of each modality. rates: mean tokens per second.
    seconds: expected duration of each token; none: 1 / rate. longest: content of a segment. ratio[a][b]:
    largest ratio of the length in a to the length in b. repeats: see `Modality.repeats`. towers: hashes of
    the pre-trained towers (`tower_hashes`). fingerprint_without_audio: fingerprint without the content of the
    recordings.
    """

    fingerprint: str
    reads: dict[str, str]
    rates: dict[str, float]
    seconds: dict[str, list[float]]
    longest: dict[str, int]
    ratio: dict[str, dict[str, float]]
    repeats: dict[str, list[int]]
    towers: dict[str, str] = field(default_factory=dict)
    fingerprint_without_audio: str = ""

    def cap(self, name: str, to: str | None, length: int) -> int:
        """Maximum length of generated content of modality `name`, after content of `length` of
        modality `to`."""
        if to is None or to not in self.ratio.get(name, {}):
            return math.ceil(LENGTH_MARGIN * self.longest[name])
        return math.ceil(LENGTH_MARGIN * self.ratio[name][to] * length) + 1

    def max_repeats(self, name: str) -> list[int]:
        """Repeated frames that are allowed for periods 1, 2, ...; empty without loop detection."""
        return [math.ceil(LENGTH_MARGIN * run) + 1 for run in self.repeats.get(name, [])]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DatasetStatistics":
        """Invert `to_dict`. Accepts the names of older checkpoints and exports."""
        return cls(**{OLD_NAMES.get(name, name): value for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, for checkpoints that load with weights_only=True."""
        return asdict(self)


def saved_statistics(kept: dict[str, Any]) -> DatasetStatistics:
    """Statistics of a checkpoint's hyperparameters or an export's JSON. Older ones call them facts."""
    return DatasetStatistics.from_dict(kept.get("statistics") or kept["facts"])


def measure_statistics(
    dataset: EncodedDataset, only: int | None = None, towers: dict[str, str] | None = None
) -> DatasetStatistics:
    """Statistics of `only` utterances of the training split, or of all. Unimodal data has no ratio.
    towers: `tower_hashes`."""
    rows = limit_rows(dataset.splits["train"], only)
    values = partial(column, rows)
    lengths = {name: values(one.length_column) for name, one in dataset.modalities.items()}
    expected = {name: one.token_seconds(values) for name, one in dataset.modalities.items()}
    repeats = {name: one.repeats(values) for name, one in dataset.modalities.items()}
    return DatasetStatistics(
        fingerprint=dataset.fingerprint,
        reads={name: one.fingerprint for name, one in dataset.modalities.items()},
        rates={name: _rate(one, lengths[name], values) for name, one in dataset.modalities.items()},
        seconds={name: each for name, each in expected.items() if each},
        longest={name: int(length.max()) for name, length in lengths.items()},
        ratio=_ratios(lengths),
        repeats={name: runs for name, runs in repeats.items() if runs},
        towers=towers or {},
        fingerprint_without_audio=dataset.fingerprint_without_audio,
    )


def _rate(modality: Modality, lengths: np.ndarray, values: Column) -> float:
    """Tokens per second: that of the modality, or the mean over rows with a duration."""
    seconds = values("seconds")
    timed = (lengths > 0) & (seconds > 0)
    # One after another, as older checkpoints summed them: np.sum differs in the last digits.
    total = float(seconds[timed].astype(np.float64).cumsum()[-1]) if timed.any() else 0.0
    return modality.rate if modality.fixed_rate or not total else int(lengths[timed].sum()) / total


def _ratios(lengths: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """ratio[a][b]: see `DatasetStatistics`."""
    found: dict[str, dict[str, float]] = {}
    for a, b in itertools.permutations(lengths, 2):
        both = (lengths[a] > 0) & (lengths[b] > 0)
        if both.any():
            found.setdefault(a, {})[b] = float((lengths[a][both] / lengths[b][both]).max())
    return found
