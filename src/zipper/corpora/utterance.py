"""One recorded sentence, and the manifest (JSON lines) that lists them."""

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
import torchaudio.functional as AF
from torch import Tensor

from zipper.errors import DataError
from zipper.units.text import NORMALISER, normalise

SPLITS = ("train", "dev", "test")
FIRST = 4000  # training sentences that a corpus of sentences begins with; those of dev and test come next
SILENCE = 1e-4  # of full scale, -80 dB


@dataclass(frozen=True)
class Utterance:
    """`text` is normalised; `audio` is a file that soundfile reads, absolute."""

    id: str
    audio: str
    text: str
    speaker: str
    split: str

    def check_text(self) -> None:
        """Raises DataError on a transcript that no model could be held to."""
        if digits := re.findall(r"\S*\d\S*", self.text):
            raise DataError(
                f"Utterance {self.id}: its text has digits ({digits[0]!r}), which have no one reading. "
                "Write them in words."
            )
        if not normalise(self.text):
            raise DataError(f"Utterance {self.id}: its text {self.text!r} normalises to nothing.")
        if normalise(self.text) != self.text:
            raise DataError(
                f"Utterance {self.id}: its text {self.text!r} is not normalised ({NORMALISER}: "
                f"{normalise(self.text)!r})."
            )

    def wave(self, sample_rate: int, longest: float = math.inf) -> Tensor:
        """float32 [n] at `sample_rate` Hz, channels averaged.

        Raises DataError on a file that is missing, damaged, empty, silent, not finite, or of more than
        `longest` seconds.
        """
        path = Path(self.audio)
        if not path.exists():
            raise DataError(
                f"Utterance {self.id}: {path} does not exist. Make the corpus again, or fix its manifest."
            )
        try:
            info = sf.info(path)
            if info.frames > longest * info.samplerate:
                raise DataError(
                    f"Utterance {self.id}: {path} has {info.frames / info.samplerate:.1f} s, more than "
                    f"data.max_seconds={longest:g}. Cut it, or allow more."
                )
            samples, rate = sf.read(path, dtype="float32", always_2d=True)
        except sf.LibsndfileError as error:
            raise DataError(f"Utterance {self.id}: {path} cannot be read as audio ({error}).") from error
        if len(samples) == 0:
            raise DataError(f"Utterance {self.id}: {path} holds no samples.")
        if not np.isfinite(samples).all():
            raise DataError(f"Utterance {self.id}: {path} holds NaN or infinite samples.")
        if np.abs(samples).max() < SILENCE:
            raise DataError(
                f"Utterance {self.id}: {path} is silent (nothing over {SILENCE:g} of full scale)."
            )
        wave = torch.from_numpy(samples).mean(dim=1)
        return wave if rate == sample_rate else AF.resample(wave, rate, sample_rate)


def write_manifest(path: Path, utterances: list[Utterance]) -> None:
    """One JSON object a line; written aside and renamed, so that it is whole or absent."""
    aside = path.with_suffix(".part")
    aside.write_text("".join(json.dumps(asdict(u)) + "\n" for u in utterances))
    aside.rename(path)


def read_manifest(path: Path) -> list[Utterance]:
    """All utterances of a manifest, in its order."""
    return [Utterance(**json.loads(line)) for line in path.read_text().splitlines()]


def sentences_hash(texts: Iterable[str]) -> str:
    """What a tower or codec was trained on, as its JSON says it."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
