"""One recorded sentence, and the manifest (JSON lines) that lists them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
import torchaudio.functional as AF
from torch import Tensor

from zipper.errors import DataError

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Utterance:
    """`text` is normalised; `audio` is a file that soundfile reads, absolute."""

    id: str
    audio: str
    text: str
    speaker: str
    split: str

    def wave(self, sample_rate: int) -> Tensor:
        """float32 [n] at `sample_rate` Hz, channels averaged. Raises DataError on an unusable file."""
        path = Path(self.audio)
        if not path.exists():
            raise DataError(
                f"Utterance {self.id}: {path} does not exist. Make the corpus again, or fix its manifest."
            )
        try:
            samples, rate = sf.read(path, dtype="float32", always_2d=True)
        except sf.LibsndfileError as error:
            raise DataError(f"Utterance {self.id}: {path} cannot be read as audio ({error}).") from error
        if len(samples) == 0:
            raise DataError(f"Utterance {self.id}: {path} holds no samples.")
        if not np.isfinite(samples).all():
            raise DataError(f"Utterance {self.id}: {path} holds NaN or infinite samples.")
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
