"""Utterances (audio, text or both), their manifest (JSON lines), and held-out splits."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from torch import Tensor

from zipper.disk import write_atomic
from zipper.errors import DataError
from zipper.modalities.audio import read_wave
from zipper.modalities.normalise import normalise, unreadable
from zipper.modalities.resampling import resample

SPLITS = ("train", "dev", "test")
FIRST = 4000  # training sentences of the synthetic corpus that precede dev and test


@dataclass(frozen=True)
class Utterance:
    """Sentence with its recording, its text, or both.

    audio: absolute path; None in a text-only corpus. text: normalised, or raw if it is `unreadable` and will
    be rejected; None in a speech-only corpus. subset: CORPUS/PART in the corpus' own terms. start, seconds:
    segment of the file in seconds; seconds=None: to the end. other: raw inputs of further modalities, by
    column. speed: at which the recording is played.
    """

    id: str
    audio: str | None
    text: str | None
    speaker: str
    split: str
    subset: str = ""
    start: float = 0.0
    seconds: float | None = None
    other: dict[str, str] = field(default_factory=dict, hash=False)
    speed: float = 1.0

    def raw(self, column: str) -> str | None:
        """Raw input of the modality with this column; None if the corpus has none, "" if only this utterance
        lacks it."""
        return {"text": self.text, "audio": self.audio, **self.other}.get(column)

    def wave(self, sample_rate: int) -> Tensor:
        """Mono waveform float32 [n] at `sample_rate` Hz, at its speed. Raises DataError as `read_wave`."""
        if not self.audio:
            raise DataError(
                f"Utterance {self.id} has no audio. Name its file, or remove it from the manifest."
            )
        try:
            wave = read_wave(Path(self.audio), sample_rate, self.start, self.seconds)
        except DataError as error:
            raise DataError(f"Utterance {self.id}: {error}") from error
        return resample(wave, round(sample_rate * self.speed), sample_rate)


def write_manifest(path: Path, utterances: list[Utterance]) -> None:
    """Writes one JSON object per line, atomically."""
    write_atomic(path, "".join(json.dumps(asdict(u)) + "\n" for u in utterances).encode())


def read_manifest(path: Path) -> list[Utterance]:
    """Utterances of a manifest, in its order."""
    return [Utterance(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def sentences_hash(texts: Iterable[str]) -> str:
    """Hash of training sentences, stored with a tower or codec."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def normal_text(text: str) -> str:
    """Text of an Utterance: normalised, or unchanged if it is `unreadable`."""
    return text if unreadable(text) else normalise(text)


def check_ids(utterances: list[Utterance], where: str) -> None:
    """Raises DataError if two utterances share an id."""
    seen: dict[str, Utterance] = {}
    for u in utterances:
        if u.id in seen:
            raise DataError(
                f"{where}: the id {u.id} is not unique: it is used for {seen[u.id].audio or 'a text'} and "
                f"{u.audio or 'a text'}. Ids must differ; rename one of them."
            )
        seen[u.id] = u


def check_names(utterances: list[Utterance]) -> None:
    """Raises DataError if the name of a file or a speaker is not UTF-8."""
    for u in utterances:
        for name in filter(None, (u.audio, u.speaker, u.id, *u.other.values())):
            if any("\ud800" <= letter <= "\udfff" for letter in name):
                raise DataError(f"{name!r}: the name of a file or folder is not UTF-8. Rename it.")


def hold_out(
    utterances: list[Utterance], dev: int, test: int, seed: int, only: str | None = None
) -> list[Utterance]:
    """Splits a corpus without splits of its own.

    Whole speakers (files of a text corpus) go to test until it has `test` utterances, then to dev; the rest
    is train. With fewer than three speakers, single utterances are held out. only: a split that gets all.
    Raises DataError if nothing would be left for training.
    """
    if only:
        return [replace(u, split=only) for u in utterances]
    groups: dict[str, list[Utterance]] = {}
    for u in utterances:
        groups.setdefault(u.speaker, []).append(u)
    if len(groups) < len(SPLITS):
        groups = {u.id: [u] for u in utterances}
    left = {"test": test, "dev": dev}
    chosen: dict[str, str] = {}
    for name in sorted(groups, key=lambda name: _hash(f"{seed} {name}")):
        split = next((split for split, count in left.items() if count > 0), "train")
        left[split] = left.get(split, 0) - len(groups[name])
        chosen |= {u.id: split for u in groups[name]}
    if "train" not in chosen.values():
        raise DataError(
            f"{len(utterances)} utterances of {len(groups)} speakers all go to data.test={test} and "
            f"data.dev={dev}. Reduce them, or add data."
        )
    return [replace(u, split=chosen[u.id]) for u in utterances]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()
