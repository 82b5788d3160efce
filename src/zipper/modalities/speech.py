"""Speech: waveforms in codec codes, scored by the word errors of an external ASR model."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from zipper.codecs.codec import Codec
from zipper.codecs.load import copy_codec, load_codec, with_copied_codec
from zipper.codecs.streaming import DecoderStream
from zipper.config import RunConfig, expanded
from zipper.errors import DataError
from zipper.modalities.audio import checked_wave, read_wave, write_audio
from zipper.modalities.base import LIMIT, Column, Modality
from zipper.modalities.delay import Pattern
from zipper.modalities.layout import TokenLayout
from zipper.modalities.scoring import Scorer

PERIODS = 8  # longest period of repetitions, in frames


class Speech(Modality):
    """Values are waveforms float32 [n] at `sample_rate`; content is the codes int64 [Q, F] of a codec."""

    name = "speech"
    column, tokens_column, length_column, units_key = "audio", "codes", "frames", "codec"
    names_file, fixed_rate, suffix = True, True, ".wav"

    def __init__(self, codec: Codec, pattern: Pattern = "delay", batch_seconds: float = 8.0) -> None:
        """batch_seconds: of audio in a batch of `encode`."""
        self.codec, self.network = codec, codec.network
        self.layout = TokenLayout.after(codec.codes, codec.codebooks, pattern)
        self.fingerprint, self.rate = codec.fingerprint, codec.frame_rate
        self.sample_rate: int = codec.sample_rate
        self.batch_cost = batch_seconds * codec.sample_rate

    @classmethod
    def load(cls, cfg: RunConfig, folder: Path | None = None) -> Self:
        """The codec of the config, or of the exported model in `folder`, if it has one."""
        return cls(
            load_codec(with_copied_codec(cfg.codec, folder)), cfg.codec.pattern, cfg.codec.batch_seconds
        )

    @property
    def description(self) -> str:
        return self.codec.description

    def export(self, folder: Path) -> None:
        copy_codec(self.codec, folder)

    def read(
        self,
        raw: str | Path | Tensor | np.ndarray,
        start: float = 0.0,
        seconds: float | None = None,
        longest: float = math.inf,
        limit: str = LIMIT,
    ) -> Tensor:
        """Waveform of a file, or of `seconds` of it from `start`; or a waveform float [n] at `sample_rate`.
        Raises DataError if it cannot be read, holds no sound, or is longer than `longest` seconds."""
        if isinstance(raw, Tensor | np.ndarray):
            return checked_wave(raw)
        if not isinstance(raw, str | Path):
            raise DataError(f"{raw!r} is no recording. Give the path of a file, or a waveform [n].")
        return read_wave(expanded(raw), self.sample_rate, start, seconds, longest, limit)

    def encode(self, values: list[Tensor]) -> list[Tensor]:
        return self.codec.encode(values)

    def decode(self, content: Tensor) -> Tensor:
        return self.codec.decode(content)

    def decode_stream(self, pieces: Iterable[Tensor], seconds: float) -> Iterator[Tensor]:
        """Waveform of content that arrives in pieces int64 [Q, F]: float32 [n] each, about `seconds` long."""
        decoder, frames = DecoderStream(self.codec), max(1, round(min(seconds * self.rate, 1e9)))
        waiting = torch.zeros(self.codebooks, 0, dtype=torch.int64)
        for piece in pieces:
            waiting = torch.cat([waiting, piece], dim=1)
            if waiting.shape[1] < frames:
                continue
            if len(wave := decoder.push(waiting)):
                yield wave
            waiting = waiting[:, :0]
        if len(wave := decoder.push(waiting, last=True)):
            yield wave

    def write(self, value: Tensor, stem: Path) -> Path:
        """STEM.wav"""
        file = stem.with_name(f"{stem.name}.wav")
        write_audio(file, value, self.sample_rate)
        return file

    def cost(self, value: Tensor) -> float:
        return len(value)

    def seconds(self, value: Tensor) -> float:
        return len(value) / self.sample_rate

    def length_text(self, length: int) -> str:
        return f"{length / self.rate:.1f} s, {length} frames"

    def features(self) -> dict[str, Any]:
        import datasets

        repeats = datasets.Sequence(datasets.Value("int32"), length=PERIODS)  # `longest_repeats`
        return {**super().features(), "repeats": repeats}

    def row(self, content: Tensor) -> dict[str, Any]:
        return {**super().row(content), "repeats": longest_repeats(content[0].numpy())}

    def info(self) -> dict[str, Any]:
        """Codebooks, codes of a codebook, frames per second, and kbps."""
        codec = self.codec
        return {
            "codebooks": codec.codebooks,
            "codes": codec.codes,
            "frame_rate": codec.frame_rate,
            "kbps": codec.kbps,
        }

    def repeats(self, column: Column) -> list[int]:
        return column("repeats").max(axis=0).tolist()

    def scorer(self, cfg: RunConfig) -> Scorer:
        # Imported here, because generation without scores needs neither an ASR model nor Lightning.
        from zipper.modalities.asr_scorer import load_asr_scorer
        from zipper.modalities.speech_scorer import SpeechScorer

        return SpeechScorer(self, load_asr_scorer(cfg.asr_scorer, self.codec.semantic), cfg.build)


def longest_repeats(row: np.ndarray) -> list[int]:
    """For each period up to PERIODS frames, the longest run of elements of a row [F] that equal the one a
    period before."""
    found = []
    for period in range(1, PERIODS + 1):
        same = row[period:] == row[:-period]
        different = np.flatnonzero(np.concatenate([[False], same, [False]]) == 0)
        found.append(int(np.diff(different).max()) - 1)
    return found
