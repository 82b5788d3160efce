"""`zipper.Zipper`: pre-trained towers joined by zips, with tokenizer and codec."""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from zipper.config import RunConfig, expanded
from zipper.data.documents import directions, segment
from zipper.data.statistics import LENGTH_MARGIN, DatasetStatistics
from zipper.errors import ConfigError
from zipper.generation.exported import check_units, figures_of, load_model, save_exported, with_bits
from zipper.generation.generator import Generator
from zipper.generation.live import SOFTEST, LiveTranscript, softest_speech
from zipper.generation.word_times import NO_ZIPS, Word, word_times
from zipper.hub import model_folder, push
from zipper.modalities.audio import check_audio_file, is_silent, write_audio
from zipper.modalities.base import load_modalities
from zipper.models.building import TrainedModel
from zipper.models.joining import join_towers
from zipper.models.zipper import ZipperModel

# Why a transcript is doubtful that did not end by itself.
CUT = {"stop": "", "length": "it is cut at its greatest length.", "repetition": "it repeats itself."}
WORD = re.compile(r"\w")


class Zipper(Generator):
    """Pre-trained towers joined by zips: speech recognition, text-to-speech, and any other modalities.

    Made by `from_towers` or `from_pretrained`. Attributes: as of `Generator`.
    """

    joined: RunConfig | None = None  # config of `from_towers`
    figures: Mapping[str, Any] | None = None  # of the model that was loaded, until it is trained further

    @classmethod
    def from_towers(
        cls,
        *,
        interval: Mapping[str, int] | None = None,
        frozen: Iterable[str] = (),
        seed: int = 0,
        overrides: Sequence[str] = (),
        **towers: str | Path,
    ) -> "Zipper":
        """Join pre-trained decoders by untrained zips (paper 3.1).

        towers: by modality (text, speech, ...), a folder or a Hub id user/name of a tower pre-trained with
        this package, or of a language model of the Llama family. interval: layers between zips, by modality;
        default 2. frozen: modalities whose tower is frozen. seed: of the zips' initial weights. overrides:
        `key=value` settings, as on the command line (model.zip.whiten=true).

        Raises ConfigError on an unknown modality or setting, DataError on a folder without a tower, or on a
        tower trained on other units than those of `config.codec` and the text tower's tokenizer.

        >>> towers = {"text": "assets/text-tower", "speech": "assets/speech-tower"}
        >>> model = zipper.Zipper.from_towers(**towers, interval={"text": 3, "speech": 3}, frozen=["text"])
        >>> model.network.stages
        2
        """
        interval = {} if interval is None else interval
        (network, statistics, config), modalities = join_towers(towers, interval, frozen, seed, overrides)
        model = cls(network, statistics, config, modalities)
        model.joined = config
        return model

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "Zipper":
        """Load a trained model in eval mode, onto the GPU if there is one.

        name: a folder written by `save_pretrained` or `export=`, a run folder, or a Hub id user/name.

        Raises ConfigError if the folder holds no model, DataError if a file is damaged or does not match.
        """
        folder = model_folder(str(name))
        trained = load_model(folder)
        network, statistics, config = trained
        modalities = load_modalities(config, folder)
        check_units(folder, config.model, statistics, modalities)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = cls(network.to(device), statistics, config, modalities).eval()
        model.figures = figures_of(folder)
        if not statistics.longest and not config.model.init:  # written as `from_towers` made it
            model.joined = config
        return model

    def save_pretrained(self, folder: str | Path, *, bits: Literal[16, 8, 4] = 16, **figures: Any) -> None:
        """Write a folder for `from_pretrained`. bits: of a weight, 16 is half precision; fewer round what is
        not frozen. figures: further entries of zipper.json, for example how the model was trained and its
        WER. Raises ConfigError if `folder` is a file, or on a figure that JSON does not hold."""
        trained = TrainedModel(self.network, self.statistics, with_bits(self.config, bits))
        save_exported(expanded(folder), trained, self.modalities, figures)

    def train_on(self, config: RunConfig, statistics: DatasetStatistics) -> None:
        """Set the config and the statistics of a training. `ZipperData` calls it. The model settings of
        `config` must be this model's. Directions that it was trained for before stay in use."""
        self.config, self.statistics, self.figures = config, statistics, None
        self.network.set_times(statistics.rates, statistics.seconds)
        before = self.network.used if self.joined is None or self.network.trained else []
        self.network.used = sorted({*before, *directions(config.train.tasks)})

    def transcribe(self, audio: str | Path | Tensor | np.ndarray) -> str:
        """Transcribe a recording: a file that libsndfile reads, or a waveform float32 [n] at `sample_rate`.
        One that is longer than `longest_recording` is cut at its pauses.

        Raises DataError on unusable audio, ConfigError if the model was not trained for speech recognition.
        Warns if a head of CTC doubts the transcript, or it was cut off.

        >>> model = zipper.Zipper.from_pretrained("assets/zipped")
        >>> model.transcribe("recording.flac")
        'every wednesday at five daniel slept with the clever tiger'
        """
        wave, long = self._recording(audio)
        if long:
            return " ".join(word.text for word in self.transcribe_long(wave, times=False))
        text, doubt = self._transcript(wave)
        if doubt:
            _warn(doubt)
        return text

    def _transcript(self, wave: Tensor, seed: int = 0) -> tuple[str, str]:
        """Transcript of a recording that is no longer than a prompt, and why the model doubts it."""
        [[text]] = self.generate([{"speech": wave}], ["text"], seed=seed)
        assert isinstance(text.value, str)
        return text.value, text.doubt or CUT[text.finish_reason]

    def transcribe_words(
        self, audio: str | Path | Tensor | np.ndarray, text: str | None = None
    ) -> list[Word]:
        """Words of a recording with their start and end in seconds (`generation.word_times`). text: its
        transcript, if it is known; by default what `transcribe` returns.

        Raises as `transcribe`, and ConfigError if the model has no zips, or on a transcript of a recording
        that is longer than `longest_recording`.

        >>> model = zipper.Zipper.from_pretrained("assets/zipped")
        >>> words = model.transcribe_words("recording.flac")
        >>> words[1].text, 0.3 < words[1].start < 0.5 < words[1].end < 1
        ('wednesday', True)
        """
        wave, long = self._recording(audio)
        if not isinstance(self.network, ZipperModel):
            raise ConfigError(NO_ZIPS)
        if text is None and long:
            return self.transcribe_long(wave)
        if text is None:
            return self.transcript_words(wave, self.transcribe(wave))
        if not isinstance(text, str):
            raise ConfigError(f"text={text!r} must be the transcript of the recording.")
        return self.transcript_words(wave, self.modalities["text"].read(text) if WORD.search(text) else "")

    def transcript_words(self, wave: Tensor, text: str) -> list[Word]:
        """As `transcribe_words`, of a waveform float32 [n] and the model's own transcript: it may be longer
        than a prompt, and hold digits and signs that no prompt may."""
        if not isinstance(self.network, ZipperModel):
            raise ConfigError(NO_ZIPS)
        if not WORD.search(text):
            return []
        with self._evaluating():
            written = self.modalities["text"]
            (content,) = written.encode([text])
            segments = self.encode("speech", wave), segment(written, content)
            return word_times(self.network, self.modalities, self.statistics, wave, *segments)

    def _recording(self, audio: str | Path | Tensor | np.ndarray) -> tuple[Tensor, bool]:
        """Waveform of a recording, and whether it is longer than one prompt may be."""
        self._check_trained("speech")
        wave = self.modalities["speech"].read(audio)
        return wave, self.is_long(wave)

    def is_long(self, wave: Tensor) -> bool:
        """Whether a waveform [n] is longer than `longest_recording`, and is cut at its pauses."""
        return len(wave) > round(self.longest_recording * self.sample_rate, 3)

    def transcribe_long(
        self,
        wave: Tensor,
        times: bool = True,
        doubted: Callable[[str], None] | None = None,
        seed: int = 0,
    ) -> list[Word]:
        """Words of a recording float32 [n] of any length, cut at its pauses. times, doubted, seed: as of
        `live_transcript`. Raises as `transcribe`, and ConfigError on times if the model has no zips."""
        live = self.recording_transcript(wave, times, doubted, seed)
        return [*live.feed(wave), *live.finish()]

    def recording_transcript(
        self,
        wave: Tensor,
        times: bool = True,
        doubted: Callable[[str], None] | None = None,
        seed: int = 0,
    ) -> LiveTranscript:
        """What `transcribe_long` feeds with a recording float32 [n]. Arguments and errors: as there."""
        if times and not isinstance(self.network, ZipperModel):
            raise ConfigError(NO_ZIPS)
        softest = softest_speech(wave, self.sample_rate)
        return self.live_transcript(self.longest_recording / 2, times, doubted, softest, seed)

    def transcribe_stream(self, pieces: Iterable[Tensor], *, every: float = 0.5) -> Iterator[Word]:
        """Words of sound while it arrives, once they are certain enough never to change.

        pieces: waveforms float32 [n] at `sample_rate`, of any lengths. every: seconds of sound between two
        transcripts of what is going on (`generation.live`). Words' times are NaN if the model has no zips.
        Raises as `transcribe`.

        >>> model = zipper.Zipper.from_pretrained("assets/zipped")
        >>> wave = model.modalities["speech"].read("recording.flac")
        >>> " ".join(word.text for word in model.transcribe_stream(wave.split(1600)))
        'every wednesday at five daniel slept with the clever tiger'
        """
        live = self.live_transcript(every)
        for piece in pieces:
            yield from live.feed(piece)
        yield from live.finish()

    @property
    def longest_recording(self) -> float:
        """Seconds of the longest recording that is one prompt. Raises ConfigError if the model was not
        trained for speech."""
        self._check_trained("speech")
        return int(LENGTH_MARGIN * self.statistics.longest["speech"]) / self.modalities["speech"].rate

    def live_transcript(
        self,
        every: float = 0.5,
        times: bool = True,
        doubted: Callable[[str], None] | None = None,
        softest: float = SOFTEST,
        seed: int = 0,
    ) -> LiveTranscript:
        """What `transcribe_stream` feeds. times: of words. doubted: told why the model doubts a piece; by
        default it warns. softest: amplitude (RMS) below which sound is no speech. seed: of sampling.

        Raises ConfigError if the model was not trained for speech."""
        longest = self.longest_recording
        align = self.transcript_words if times and isinstance(self.network, ZipperModel) else None

        def transcribe(wave: Tensor) -> str:
            text, doubt = ("", "") if is_silent(wave) else self._transcript(wave, seed)
            if doubt:
                (doubted or _warn)(doubt)
            return text

        return LiveTranscript(transcribe, self.sample_rate, longest, every, align, softest)

    def synthesize(self, text: str, file: str | Path | None = None) -> Tensor:
        """Synthesize speech: a waveform float32 [n] at `sample_rate`. file: optional output file (.wav,
        .flac).

        Raises ConfigError on text that has no unique reading or is too long, or if the model was not trained
        for text-to-speech, or on a file of another format or in no folder.

        >>> model = zipper.Zipper.from_pretrained("assets/zipped")
        >>> speech = model.synthesize("why did helen give the blue wallet to the quiet singer")
        >>> speech.dtype, 2 < len(speech) / model.sample_rate < 3
        (torch.float32, True)
        """
        if file is not None:
            check_audio_file(Path(file))
        [[speech]] = self.generate([{"text": text}], ["speech"])
        assert isinstance(speech.value, Tensor)
        if file is not None:
            write_audio(Path(file), speech.value, self.sample_rate)
        return speech.value

    def push_to_hub(self, repository: str, private: bool = False) -> str:
        """Upload the model, with a model card, to user/name with the token of HF_TOKEN. Returns the URL. One
        that was loaded, and not trained since, keeps its bits and figures.

        Raises DataError if the Hub refuses or is unreachable.
        """
        bits = 16 if self.figures is None else cast(Literal[16, 8, 4], self.config.export_bits)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, bits=bits, **(self.figures or {}))
            return push(Path(folder), repository, private)


def _warn(doubt: str) -> None:
    warnings.warn(f"The transcript is doubtful: {doubt}", stacklevel=3)
