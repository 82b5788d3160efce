"""One sentence, recorded or written or both, and the manifest (JSON lines) that lists them."""

import hashlib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor

from zipper.corpora.audio import read_wave
from zipper.errors import DataError
from zipper.modalities.normalise import NORMALISER, normalise, unreadable

SPLITS = ("train", "dev", "test")
FIRST = 4000  # training sentences that a corpus of sentences begins with; those of dev and test come next


@dataclass(frozen=True)
class Utterance:
    """`text` is normalised (one that is `unreadable` stays as it was, to be refused); `audio` is a file that
    soundfile reads, absolute. None of the one: the corpus is speech, or text, alone.

    subset: CORPUS/PART by the corpus' own names. start, seconds: the piece of the file that is meant; all of
    it.
    """

    id: str
    audio: str | None
    text: str | None
    speaker: str
    split: str
    subset: str = ""
    start: float = 0.0
    seconds: float | None = None

    def check_text(self) -> None:
        """Raises DataError on a transcript that no model could be held to. None is no transcript's fault."""
        if self.text is None:
            return
        if not self.text:
            raise DataError(f"Utterance {self.id}: {self.audio} has no transcript.")
        if reason := unreadable(self.text):
            raise DataError(f"Utterance {self.id}: its text {reason}")
        if not normalise(self.text):
            raise DataError(f"Utterance {self.id}: its text {self.text!r} normalises to nothing.")
        if normalise(self.text) != self.text:
            raise DataError(
                f"Utterance {self.id}: its text {self.text!r} is not normalised ({NORMALISER}: "
                f"{normalise(self.text)!r})."
            )

    def wave(self, sample_rate: int, longest: float = math.inf) -> Tensor:
        """float32 [n] at `sample_rate` Hz, channels averaged. DataError where `read_wave` finds none."""
        if not self.audio:
            raise DataError(
                f"Utterance {self.id} has no audio. Name its file, or take it out of the manifest."
            )
        try:
            return read_wave(Path(self.audio), sample_rate, self.start, self.seconds, longest)
        except DataError as error:
            raise DataError(f"Utterance {self.id}: {error}") from error


def write_manifest(path: Path, utterances: list[Utterance]) -> None:
    """One JSON object a line; written aside and renamed, so that it is whole or absent."""
    aside = path.with_suffix(f".{os.getpid()}.part")
    aside.write_text("".join(json.dumps(asdict(u)) + "\n" for u in utterances), encoding="utf-8")
    aside.rename(path)


def read_manifest(path: Path) -> list[Utterance]:
    """All utterances of a manifest, in its order."""
    return [Utterance(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def sentences_hash(texts: Iterable[str]) -> str:
    """What a tower or codec was trained on, as its JSON says it."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def normal_text(text: str) -> str:
    """As an Utterance holds it: normalised, or as it was where it has no one reading."""
    return text if unreadable(text) else normalise(text)


def check_ids(utterances: list[Utterance], where: str) -> None:
    """Raises DataError where two utterances share an id: one of them would be lost."""
    seen: dict[str, Utterance] = {}
    for u in utterances:
        if u.id in seen:
            raise DataError(
                f"{where}: the id {u.id} stands twice, at {seen[u.id].audio or 'a text'} and at "
                f"{u.audio or 'a text'}. Ids must differ; rename one of them."
            )
        seen[u.id] = u


def hold_out(utterances: list[Utterance], dev: int, test: int, seed: int) -> list[Utterance]:
    """Splits a corpus that has none of its own: whole speakers (books, of text) go to test until it has
    `test` utterances, then to dev, the rest to train. With fewer than three speakers single utterances are
    held out.

    Raises DataError where nothing would be left to train on.
    """
    groups: dict[str, list[Utterance]] = {}
    for u in utterances:
        groups.setdefault(u.speaker, []).append(u)
    if len(groups) < len(SPLITS):
        groups = {u.id: [u] for u in utterances}
    left = {"test": test, "dev": dev}
    chosen: dict[str, str] = {}
    for name in sorted(groups, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest()):
        split = next((split for split, count in left.items() if count > 0), "train")
        left[split] = left.get(split, 0) - len(groups[name])
        chosen.update({u.id: split for u in groups[name]})
    out = [replace(u, split=chosen[u.id]) for u in utterances]
    if not any(u.split == "train" for u in out):
        raise DataError(
            f"{len(utterances)} utterances of {len(groups)} speakers are all taken by data.test={test} and "
            f"data.dev={dev}. Ask for fewer, or add data."
        )
    return out
