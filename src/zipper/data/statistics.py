"""Statistics of the training data that a trained model keeps: units, rates, lengths."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset

from zipper.data.dataset import PERIODS, EncodedDataset, column, limit_rows
from zipper.modalities.tokenizer import Tokenizer

LENGTH_MARGIN = 1.5  # generation limits, relative to the largest value of the training split
OLD_NAMES = {"store": "fingerprint", "store_without_audio": "fingerprint_without_audio"}
SUBWORDS_PER_SECOND = 4.0  # default without speech


@dataclass(frozen=True)
class DatasetStatistics:
    """Statistics of the training data by modality. Plain numbers, stored in checkpoints.

    fingerprint: of the encoded dataset. reads: id of the codec or tokenizer. rates: mean tokens per second.
    seconds: expected duration of each text token, from its letters. longest: text tokens or frames of a
    segment. ratio[a][b]: largest ratio of the length in a to the length in b. repeats: for periods 1, 2, ...
    the largest number of consecutive frames whose first code equals that one period before. towers: hashes of
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
        """Maximum length of generated content of modality `name`, after `length` text tokens or frames of
        modality `to`."""
        if to is None or to not in self.ratio.get(name, {}):
            return math.ceil(LENGTH_MARGIN * self.longest[name])
        return math.ceil(LENGTH_MARGIN * self.ratio[name][to] * length) + 1

    def max_repeats(self, name: str) -> list[int]:
        """Repeated frames that are allowed for periods 1, 2, ...; empty without loop detection (text)."""
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
    subwords, frames = column(rows, "subwords"), column(rows, "frames")
    both = (subwords > 0) & (frames > 0)
    a, b = subwords[both], frames[both]
    seconds = sum(column(rows, "seconds")[both].tolist())
    rate = int(a.sum()) / seconds if seconds else SUBWORDS_PER_SECOND
    return DatasetStatistics(
        fingerprint=dataset.fingerprint,
        reads={name: units_id(dataset, name) for name in ("text", "speech")},
        rates={"text": rate, "speech": dataset.info["frame_rate"]},
        seconds={"text": seconds_of_subwords(dataset, rows)},
        longest={"text": int(subwords.max()), "speech": int(frames.max())},
        ratio={"text": {"speech": float((a / b).max())}, "speech": {"text": float((b / a).max())}}
        if both.any()
        else {},
        repeats={"speech": column(rows, "repeats").max(axis=0).tolist()},
        towers=towers or {},
        fingerprint_without_audio=dataset.fingerprint_without_audio,
    )


def seconds_of_subwords(dataset: EncodedDataset, rows: Dataset) -> list[float]:
    """Expected duration of each text token in seconds, [V], from a linear fit of duration against letters.

    The slope is the duration of a letter, or of the space before a word. The intercept is the silence around
    a sentence; BOS and EOS get half of it each.
    """
    letters = letters_of(dataset.tokenizer)
    letter_count, duration = column(rows, "letters"), column(rows, "seconds")
    both = (letter_count > 0) & (duration > 0)
    if not both.any():
        return [1 / SUBWORDS_PER_SECOND] * len(letters)
    letter_count, duration = letter_count[both], duration[both]
    slope, constant = (
        np.polyfit(letter_count, duration, 1) if len(set(letter_count.tolist())) > 1 else (0.0, 0.0)
    )
    if slope <= 0 or constant < 0:  # too few sentences, or all of one length
        slope, constant = duration.sum() / letter_count.sum(), 0.0
    seconds = slope * letters
    seconds[[dataset.tokenizer.bos, dataset.tokenizer.eos]] = constant / 2
    return [round(float(one), 5) for one in seconds]


def units_id(dataset: EncodedDataset, modality: str) -> str:
    """Id of the units of a modality: the fingerprint of its codec or tokenizer."""
    return dataset.info["fingerprint"]["codec" if modality == "speech" else "tokenizer"]


def joint_units_id(dataset: EncodedDataset) -> str:
    """Id of the units of a single decoder that is trained on text and speech."""
    return f"{units_id(dataset, 'text')} + {units_id(dataset, 'speech')}"


def letters_of(subwords: Tokenizer) -> np.ndarray:
    """Letters of each token, with the space before a word: int64 [V]; 0 for BOS and EOS."""
    letters = np.array([len(subwords.piece(i)) for i in range(subwords.vocabulary)])
    letters[[subwords.bos, subwords.eos]] = 0
    return letters


def longest_repeats(row: np.ndarray) -> list[int]:
    """For each period up to PERIODS frames, the longest run of elements of a row [F] that equal the one a
    period before."""
    found = []
    for period in range(1, PERIODS + 1):
        same = row[period:] == row[:-period]
        different = np.flatnonzero(np.concatenate([[False], same, [False]]) == 0)
        found.append(int(np.diff(different).max()) - 1)
    return found
