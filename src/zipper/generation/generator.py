"""A trained network with its modalities, which generates segments after prompts (paper 3.2)."""

import atexit
import collections.abc
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, NamedTuple, SupportsFloat

from torch import Tensor, nn

from zipper.config import RunConfig, SamplingConfig, check_list, with_overrides
from zipper.data.documents import Document, Segment
from zipper.data.statistics import DatasetStatistics
from zipper.errors import ConfigError
from zipper.generation.generate import FinishReason, generate
from zipper.generation.prompts import prompt_of, prompt_segment
from zipper.generation.stream import stream
from zipper.generation.threads import few_threads
from zipper.modalities.base import Modality
from zipper.modalities.speech import Speech
from zipper.models.multimodal import MultimodalModel

# Of streams that are left open: they are closed while what they use is still there.
STREAMS = weakref.WeakSet[collections.abc.Generator[Tensor, None, None]]()
Prompt = Mapping[str, Any]  # {"text": "hello"} or {"speech": a path, or a waveform float32 [n]}


@atexit.register
def _close_streams() -> None:
    for pieces in [*STREAMS]:
        pieces.close()


class GeneratedSegment(NamedTuple):
    """Generated segment. value: as its modality decodes it: text, or a waveform float32 [n] at
    `Zipper.sample_rate`. doubt: why the model doubts it, or empty (`GenerationOutput`)."""

    modality: str
    value: Any
    finish_reason: FinishReason
    doubt: str = ""


class Generator(nn.Module):
    """Generates segments after prompts.

    network: towers and zips. modalities: by name, with tokenizer and codec. statistics: lengths and rates of
    the training data. config: model and training settings.
    """

    def __init__(
        self,
        network: MultimodalModel,
        statistics: DatasetStatistics,
        config: RunConfig,
        modalities: dict[str, Modality],
    ) -> None:
        super().__init__()
        self.network, self.statistics, self.config = network, statistics, config
        self.modalities = modalities

    @property
    def sample_rate(self) -> int:
        """Sample rate of input and output waveforms in Hz. Raises ConfigError if no modality has any."""
        rates = [one.sample_rate for one in self.modalities.values() if one.sample_rate]
        if not rates:
            raise ConfigError("This model has no modality of waveforms.")
        return rates[0]

    def generate(
        self,
        prompts: Sequence[Prompt],
        order: Sequence[str] | Literal["auto"],
        *,
        seed: int = 0,
        overrides: Sequence[str] = (),
    ) -> list[list[GeneratedSegment]]:
        """Generate one segment of each modality of `order` after each prompt, each from the segment before it
        (paper 3.2). The prompts of one call form a batch and do not affect one another.

        order: modalities, or auto: the model chooses. seed: of sampling. overrides: decoding settings that
        differ from the config, for example `speech.temperature=0.7` or `text.beams=4`.

        Raises ConfigError on a prompt or an order that the model was not trained for.

        >>> model = zipper.Zipper.from_pretrained("assets/zipped")
        >>> [[text, speech]] = model.generate([{"speech": "recording.flac"}], ["text", "speech"])
        >>> text.value
        'every wednesday at five daniel slept with the clever tiger'
        """
        decode = self._decode(overrides)
        with self._evaluating(len(prompts)):
            documents = [self.document(str(at), one) for at, one in enumerate(prompts)]
            found = generate(self.network, documents, order, self.statistics, decode, seed)
            return [
                [
                    GeneratedSegment(
                        o.modality, self.modalities[o.modality].decode(o.content), o.finish_reason, o.doubt
                    )
                    for o in outputs
                ]
                for outputs in found
            ]

    def stream(
        self, text: str, *, seconds: float = 0.2, seed: int = 0, overrides: Sequence[str] = ()
    ) -> Iterator[Tensor]:
        """Speak a text while its speech is generated: pieces float32 [n] of the waveform at `sample_rate`,
        about `seconds` long. Joined, they are what `synthesize` returns, to within rounding.

        With a causal codec the first piece comes after `seconds` of speech are generated. Raises as
        `synthesize`, and ConfigError on beam search, on candidates, or on no finite, positive `seconds`,
        before the first piece.
        """
        pieces = self._stream(text, seconds, seed, overrides)
        STREAMS.add(pieces)
        return pieces

    def _stream(
        self, text: str, seconds: float, seed: int, overrides: Sequence[str]
    ) -> collections.abc.Generator[Tensor, None, None]:
        if not (isinstance(seconds, SupportsFloat) and 0 < seconds < math.inf):
            raise ConfigError(f"seconds={seconds!r} must be a positive number, the length of a piece.")
        document, decode = self.document("0", {"text": text}), self._decode(overrides)
        speech = self.modalities["speech"]
        assert isinstance(speech, Speech)
        with self._evaluating():
            content = stream(self.network, document, "speech", self.statistics, decode, seed)
            yield from speech.decode_stream(content, seconds)

    def document(self, name: str, prompt: Prompt) -> Document:
        """Document of a prompt. Raises as `encode`, and ConfigError on an unknown modality."""
        if not isinstance(prompt, Mapping) or len(prompt) != 1:
            raise ConfigError(
                f"A prompt is one segment, as {{'text': 'hello'}}, not {shorten(repr(prompt), 80)}."
            )
        [(modality, value)] = prompt.items()
        return prompt_of(name, self.encode(modality, value))

    def encode(self, name: str, raw: Any, start: float = 0.0, seconds: float | None = None) -> Segment:
        """Encode a raw input or a value of modality `name` as a prompt segment: a text, the path of a
        recording (`seconds` of it from `start`), or a waveform float32 [n] at `sample_rate`.

        Raises ConfigError if a text is empty or has no unique reading, or if the input is too long; DataError
        if a file cannot be read.
        """
        self._check_trained(name)
        if not (0 <= start < math.inf and (seconds is None or 0 < seconds < math.inf)):
            raise ConfigError(
                f"start={start:g}, seconds={seconds}: a part of a recording begins at 0 or later, and is "
                "longer than 0 s."
            )
        if (start or seconds is not None) and not isinstance(raw, str | Path):
            raise ConfigError("start and seconds are of a file. Give the part of a waveform that is meant.")
        return prompt_segment(self.modalities[name], raw, self.statistics.longest[name], start, seconds)

    def _decode(self, overrides: Sequence[str]) -> dict[str, SamplingConfig]:
        """Decoding settings by modality. overrides: that differ from the config. Raises ConfigError."""
        check_list(overrides)
        return with_overrides(self.config, [f"decode.{one}" for one in overrides]).decode

    @contextmanager
    def _evaluating(self, rows: int = 1) -> Iterator[None]:
        """Context in eval mode, for a batch of `rows` prompts."""
        with self.network.evaluating(), few_threads(self.network, rows):
            yield

    def _check_trained(self, modality: str) -> None:
        if modality not in self.network.names:
            known = ", ".join(self.network.names)
            raise ConfigError(f"This model has no tower for {modality}, only for {known}.")
        if not self.statistics.longest.get(modality):
            raise ConfigError(
                "This model has not been trained: its zips are random. Train it with ZipperModule, or load a "
                "trained one (Zipper.from_pretrained)."
            )
