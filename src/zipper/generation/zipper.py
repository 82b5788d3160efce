"""`zipper.Zipper`: pre-trained towers joined by zips, with the tokenizer and the codec of their tokens."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any, Literal, NamedTuple

import soundfile as sf
import torch
from torch import Tensor, nn

from zipper.codecs.codec import Codec
from zipper.codecs.load import load_codec
from zipper.config import RunConfig, changed
from zipper.corpora.audio import read_wave
from zipper.data.documents import Document, Segment, directions, speech_segment, text_segment
from zipper.data.statistics import BEYOND, SUBWORDS_PER_SECOND, DatasetStatistics
from zipper.errors import ConfigError, DataError
from zipper.generation.exported import (
    INFO,
    TOKENIZER,
    is_exported,
    load_exported,
    load_trained,
    save_exported,
)
from zipper.generation.generate import GenerationOutput, Stop, write
from zipper.hub import model_folder, push
from zipper.modalities.normalise import normalise, unreadable
from zipper.modalities.tokenizer import Tokenizer
from zipper.models.building import TrainedModel, build_model, load_pretrained, set_trainable
from zipper.models.multimodal import MultimodalModel
from zipper.models.resolve import Units, resolve_units

Prompt = Mapping[str, Any]  # {"text": "hello"} or {"speech": a path, or a waveform float32 [n]}


class Written(NamedTuple):
    """A segment that was generated. value: str, or a waveform float32 [n] at `Zipper.sample_rate`."""

    modality: str
    value: str | Tensor
    finish_reason: Stop


class Zipper(nn.Module):
    """Recognises speech and speaks text; made of pre-trained towers, or loaded as it was trained.

    network: towers and zips. tokenizer, codec: of text and speech. statistics: of the data that it was
    trained on (lengths, rates). config: how it was made and trained.
    """

    def __init__(
        self,
        network: MultimodalModel,
        statistics: DatasetStatistics,
        config: RunConfig,
        tokenizer: Tokenizer,
        codec: Codec,
    ) -> None:
        super().__init__()
        self.network, self.statistics, self.config = network, statistics, config
        self.tokenizer, self.codec = tokenizer, codec

    @classmethod
    def from_towers(
        cls,
        *,
        interval: Mapping[str, int] | None = None,
        frozen: Sequence[str] = (),
        seed: int = 0,
        overrides: Sequence[str] = (),
        **towers: str | Path,
    ) -> "Zipper":
        """Joins pre-trained decoders by zips that are yet to be trained (paper, section 3.1).

        towers: by modality (text, speech), a folder or user/name of the hub: a tower that was pre-trained
        here, or a language model of the Llama family. interval: layers from one zip to the next, by modality;
        2 where nothing is said. frozen: modalities whose tower stays as it is. seed: of the zips. overrides:
        `key=value` settings, as on the command line (model.zip.whiten=true).

        Raises ConfigError on a modality or setting that there is not, DataError on a folder that holds no
        tower, or one that reads other units than `config.codec` and the text tower's tokenizer give.

        >>> towers = {"text": "assets/text-tower", "speech": "assets/speech-tower"}
        >>> model = zipper.Zipper.from_towers(**towers, interval={"text": 3, "speech": 3}, frozen=["text"])
        >>> model.network.stages
        2
        """
        interval = interval or {}
        if unknown := sorted({*frozen, *interval} - {*towers}):
            raise ConfigError(f"{unknown[0]!r} has no tower: towers are given for {', '.join(towers)}.")
        settings = [f"model.modalities={json.dumps([*towers])}", f"seed={seed}"]
        for name, init in towers.items():
            settings += [f"model.towers.{name}.init={init}", f"model.towers.{name}.frozen={name in frozen}"]
            settings += [f"model.towers.{name}.interval={interval[name]}"] if name in interval else []
        config = changed(RunConfig(), [*settings, *overrides])
        if "text" not in towers:
            raise ConfigError("text=... is missing: its tower's folder holds the tokenizer.")
        tokenizer = Tokenizer.load(model_folder(str(towers["text"])) / TOKENIZER)
        codec = load_codec(config.codec)
        units = Units.of(tokenizer, codec, config.codec.pattern)
        config = resolve_units(config, units)
        rates = {"text": SUBWORDS_PER_SECOND, "speech": codec.frame_rate}
        statistics = DatasetStatistics("", units.reads, rates, {}, {}, {}, {})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = build_model(config.model, rates)
        load_pretrained(network)
        set_trainable(network, config.model)
        return cls(network, statistics, config, tokenizer, codec)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "Zipper":
        """A trained model, in eval: a folder that `save_pretrained` or `export=` wrote, a run's folder, or
        user/name of one on the hub. On a GPU where there is one.

        Raises ConfigError where the folder holds no model, DataError where a part is damaged or does not fit.
        """
        folder = model_folder(str(name))
        if is_exported(folder):
            trained, _ = load_exported(folder)
        elif (folder / "config.yaml").is_file():
            checkpoint = folder / "checkpoints" / "best.ckpt"
            if not checkpoint.is_file():
                raise ConfigError(
                    f"{folder} has no checkpoints/best.ckpt yet: its training has not come to a validation."
                )
            trained = load_trained(checkpoint)
        else:
            raise ConfigError(
                f"{folder} is no model: it holds neither {INFO} (an exported model) nor config.yaml (a run). "
                "Run `make train`, or name assets/zipped."
            )
        network, statistics, config = trained
        codec, tokenizer = load_codec(config.codec), Tokenizer.load(folder / TOKENIZER)
        for modality, own in (("speech", codec.fingerprint), ("text", tokenizer.fingerprint)):
            if modality in network.names and statistics.reads[modality] != own:
                raise DataError(
                    f"{folder} reads {modality} units of {statistics.reads[modality]!r}, but these are "
                    f"{own!r}."
                )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(network.eval().to(device), statistics, config, tokenizer, codec)

    def save_pretrained(self, folder: str | Path, **figures: Any) -> None:
        """Writes what `from_pretrained` reads, weights in half precision. figures: what else zipper.json is
        to say: how it was made, how good it is."""
        trained = TrainedModel(self.network, self.statistics, self.config)
        save_exported(Path(folder), trained, self.tokenizer, figures)

    def train_on(self, config: RunConfig, statistics: DatasetStatistics) -> None:
        """Takes the tasks of a config, whose model is this one's, and the statistics of its data:
        `ZipperData` calls it."""
        self.config, self.statistics = config, statistics
        self.network.set_times(statistics.rates, statistics.seconds)
        self.network.used = directions(config.train.tasks.shares())

    @property
    def sample_rate(self) -> int:
        """Of the waveforms that it reads and generates, in Hz."""
        return self.codec.sample_rate

    def transcribe(self, audio: str | Path | Tensor) -> str:
        """The words of a recording: a file of any kind that libsndfile reads, or float32 [n] at
        `sample_rate`.

        Raises DataError on audio that cannot be used, ConfigError on audio that is too long, or where the
        model was not trained to recognise speech.

        >>> model = zipper.Zipper.from_pretrained("assets/zipped")
        >>> model.transcribe("recording.flac")
        'every wednesday at five daniel slept with the clever tiger'
        """
        [[text]] = self.generate([{"speech": audio}], ["text"])
        assert isinstance(text.value, str)
        return text.value

    def synthesize(self, text: str, file: str | Path | None = None) -> Tensor:
        """Speech for a text: float32 [n] at `sample_rate`, also written to `file` (.wav, .flac) where one is
        named.

        Raises ConfigError on text that has no reading, or is too long, or where the model was not trained to
        speak.

        >>> model = zipper.Zipper.from_pretrained("assets/zipped")
        >>> speech = model.synthesize("why did helen give the blue wallet to the quiet singer")
        >>> speech.dtype, 2 < len(speech) / model.sample_rate < 3
        (torch.float32, True)
        """
        [[speech]] = self.generate([{"text": text}], ["speech"])
        assert isinstance(speech.value, Tensor)
        if file is not None:
            sf.write(file, speech.value.clamp(-1, 1).numpy(), self.sample_rate)
        return speech.value

    def generate(
        self,
        prompts: Sequence[Prompt],
        order: Sequence[str] | Literal["auto"],
        *,
        seed: int = 0,
        overrides: Sequence[str] = (),
    ) -> list[list[Written]]:
        """After each prompt a segment of each modality of `order`, each read from the segment before it;
        auto: the model chooses (paper, section 3.2). Prompts of one call are decoded together, and do not
        depend on one another.

        seed: of sampling. overrides: `speech.temperature=0.7`, `text.beams=4`, ...: decoding, if not as the
        model's config has it. Raises ConfigError on a prompt or an order that the model was not trained for.

        >>> model = zipper.Zipper.from_pretrained("assets/zipped")
        >>> [[text, speech]] = model.generate([{"speech": "recording.flac"}], ["text", "speech"])
        >>> text.value
        'every wednesday at five daniel slept with the clever tiger'
        """
        documents = [self.document(str(at), one) for at, one in enumerate(prompts)]
        decode = changed(self.config, [f"decode.{one}" for one in overrides]).decode.by_modality()
        was_training = self.training
        self.eval()
        found = write(self.network, documents, order, self.statistics, decode, seed)
        self.train(was_training)
        return [[Written(o.modality, self.decode(o), o.stopped) for o in outputs] for outputs in found]

    def document(self, name: str, prompt: Prompt) -> Document:
        """A prompt's tokens. Raises as `encode`, and ConfigError where the model reads no such modality."""
        if len(prompt) != 1:
            raise ConfigError(f"A prompt is one segment, as {{'text': 'hello'}}; this one has {len(prompt)}.")
        [(modality, value)] = prompt.items()
        if modality == "speech" and isinstance(value, str | Path):
            value = self.read(Path(value))
        return prompt_of(name, self.encode(modality, value))

    def read(self, file: Path, start: float = 0.0, seconds: float | None = None) -> Tensor:
        """A recording, or a piece of it: float32 [n] at `sample_rate`. Raises DataError where it cannot be
        read or is longer than the model accepts."""
        longest = BEYOND * self.statistics.longest.get("speech", 0) / self.codec.frame_rate
        return read_wave(file, self.sample_rate, start, seconds, longest, "the {:g} s that this model takes")

    def encode(self, modality: str, value: str | Tensor) -> Segment:
        """The tokens of a text, or of a waveform float32 [n] at `sample_rate`, as a prompt has them.

        Raises ConfigError where the text is empty or has no one reading, or the value is too long.
        """
        self._check_trained(modality)
        if isinstance(value, str):
            return self._encode_text(value)
        (codes,) = self.codec.encode([value])
        frames = codes.shape[1]
        self._check_length(
            "speech", frames, f"the audio has {frames / self.codec.frame_rate:.1f} s, {frames} frames"
        )
        return speech_segment(codes, self.codec.codes, 0.0, self.config.codec.pattern)

    def decode(self, output: GenerationOutput) -> str | Tensor:
        """The text of a generated segment, or its waveform float32 [n]."""
        if output.modality == "text":
            return self.tokenizer.decode(output.content[0].tolist())
        return self.codec.decode(output.content)

    def push_to_hub(self, repository: str, private: bool = False) -> str:
        """Uploads the model, with a model card, to user/name with the user's own token (HF_TOKEN); returns
        its address. Raises DataError where the hub refuses or cannot be reached."""
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push(Path(folder), repository, private)

    def _encode_text(self, text: str) -> Segment:
        if reason := unreadable(text):
            raise ConfigError(f"{shorten(text, 60)!r} {reason}")
        normal = normalise(text)
        if not normal:
            raise ConfigError(f"{text!r} holds no letter of a to z: there is nothing to say.")
        ids = self.tokenizer.encode(normal)
        self._check_length("text", len(ids), f"{shorten(normal, 60)!r} has {len(ids)} subwords")
        return text_segment(ids, self.tokenizer, 0.0)

    def _check_trained(self, modality: str) -> None:
        if modality not in self.network.names:
            known = ", ".join(self.network.names)
            raise ConfigError(f"This model has no tower for {modality}, only for {known}.")
        if modality not in self.statistics.longest:
            raise ConfigError(
                "This model has not been trained: its zips are random. Fit a ZipperModule of it, or load a "
                "trained one (Zipper.from_pretrained)."
            )

    def _check_length(self, name: str, length: int, what: str) -> None:
        most = int(BEYOND * self.statistics.longest[name])
        if length > most:
            raise ConfigError(
                f"{what}; this model was trained on at most {self.statistics.longest[name]}, and accepts at "
                f"most {most}. Cut it into sentences."
            )


def prompt_of(name: str, *segments: Segment) -> Document:
    """What is given, before anything is written."""
    return Document(name, list(segments), multimodal=True)
