"""`zipper.Zipper`: pre-trained towers joined by zips, with tokenizer and codec.

Files of an exported model: zipper.safetensors, zipper.json (config, statistics, hash, figures) and
tokenizer.json.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, NamedTuple

import soundfile as sf
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zipper.checkpoint_files import read_checkpoint
from zipper.codecs.codec import Codec, sha256
from zipper.codecs.load import load_codec
from zipper.config import RunConfig, from_dict, read_json, to_dict, with_overrides
from zipper.corpora.audio import read_wave
from zipper.data.documents import Document, Segment, directions, speech_segment, text_segment
from zipper.data.statistics import LENGTH_MARGIN, SUBWORDS_PER_SECOND, DatasetStatistics, saved_statistics
from zipper.errors import ConfigError, DataError, torch_message
from zipper.generation.generate import FinishReason, GenerationOutput, check_prompts, generate
from zipper.hub import model_folder, push
from zipper.modalities.normalise import normalise, unreadable
from zipper.modalities.tokenizer import Tokenizer
from zipper.models.building import TrainedModel, build_model, build_untrained, load_pretrained, set_trainable
from zipper.models.certify import certificate, check_certificate
from zipper.models.multimodal import MultimodalModel
from zipper.models.resolve import Units, resolve_units

WEIGHTS, INFO, TOKENIZER = "zipper.safetensors", "zipper.json", "tokenizer.json"
Prompt = Mapping[str, Any]  # {"text": "hello"} or {"speech": a path, or a waveform float32 [n]}


class GeneratedSegment(NamedTuple):
    """Generated segment. value: text, or a waveform float32 [n] at `Zipper.sample_rate`."""

    modality: str
    value: str | Tensor
    finish_reason: FinishReason


class Zipper(nn.Module):
    """Speech recognition and text-to-speech with pre-trained towers.

    network: towers and zips. tokenizer, codec: of text and speech. statistics: lengths and rates of the
    training data. config: model and training settings.
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
        """Join pre-trained decoders by untrained zips (paper 3.1).

        towers: by modality (text, speech), a folder or a Hub id user/name of a tower pre-trained with this
        package, or of a language model of the Llama family. interval: layers between zips, by modality;
        default 2. frozen: modalities whose tower is frozen. seed: of the zips' initial weights. overrides:
        `key=value` settings, as on the command line (model.zip.whiten=true).

        Raises ConfigError on an unknown modality or setting, DataError on a folder without a tower, or on a
        tower trained on other units than those of `config.codec` and the text tower's tokenizer.

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
        config = with_overrides(RunConfig(), [*settings, *overrides])
        if "text" not in towers:
            raise ConfigError("text=... is missing: the folder of the text tower holds the tokenizer.")
        tokenizer = Tokenizer.load(model_folder(str(towers["text"])) / TOKENIZER)
        codec = load_codec(config.codec)
        units = Units.of(tokenizer, codec, config.codec.pattern)
        config = resolve_units(config, units)
        rates = {"text": SUBWORDS_PER_SECOND, "speech": codec.frame_rate}
        statistics = DatasetStatistics("", units.ids, rates, {}, {}, {}, {})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = build_model(config.model, rates)
        load_pretrained(network)
        set_trainable(network, config.model)
        return cls(network, statistics, config, tokenizer, codec)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "Zipper":
        """Load a trained model in eval mode, onto the GPU if there is one.

        name: a folder written by `save_pretrained` or `export=`, a run folder, or a Hub id user/name.

        Raises ConfigError if the folder holds no model, DataError if a file is damaged or does not match.
        """
        folder = model_folder(str(name))
        if is_exported(folder):
            trained, _ = load_exported(folder)
        elif (folder / "config.yaml").is_file():
            checkpoint = folder / "checkpoints" / "best.ckpt"
            if not checkpoint.is_file():
                raise ConfigError(
                    f"{folder} has no checkpoints/best.ckpt yet: its training has not reached a validation."
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
                    f"{folder} was trained on {modality} units {statistics.reads[modality]!r}, but its codec "
                    f"or tokenizer has {own!r}."
                )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(network.eval().to(device), statistics, config, tokenizer, codec)

    def save_pretrained(self, folder: str | Path, **figures: Any) -> None:
        """Write a folder for `from_pretrained`, with weights in half precision. figures: further entries
        of zipper.json, for example how the model was trained and its WER."""
        trained = TrainedModel(self.network, self.statistics, self.config)
        save_exported(Path(folder), trained, self.tokenizer, figures)

    def train_on(self, config: RunConfig, statistics: DatasetStatistics) -> None:
        """Set the config and the statistics of a training. `ZipperData` calls it. The model settings of
        `config` must be this model's."""
        self.config, self.statistics = config, statistics
        self.network.set_times(statistics.rates, statistics.seconds)
        self.network.used = directions(config.train.tasks.shares())

    @property
    def sample_rate(self) -> int:
        """Sample rate of input and output waveforms in Hz."""
        return self.codec.sample_rate

    def transcribe(self, audio: str | Path | Tensor) -> str:
        """Transcribe a recording: a file that libsndfile reads, or a waveform float32 [n] at `sample_rate`.

        Raises DataError on unusable audio, ConfigError on audio that is too long, or if the model was not
        trained for speech recognition.

        >>> model = zipper.Zipper.from_pretrained("assets/zipped")
        >>> model.transcribe("recording.flac")
        'every wednesday at five daniel slept with the clever tiger'
        """
        [[text]] = self.generate([{"speech": audio}], ["text"])
        assert isinstance(text.value, str)
        return text.value

    def synthesize(self, text: str, file: str | Path | None = None) -> Tensor:
        """Synthesize speech: a waveform float32 [n] at `sample_rate`. file: optional output file (.wav,
        .flac).

        Raises ConfigError on text that has no unique reading or is too long, or if the model was not trained
        for text-to-speech.

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
        documents = [self.document(str(at), one) for at, one in enumerate(prompts)]
        decode = with_overrides(self.config, [f"decode.{one}" for one in overrides]).decode.by_modality()
        was_training = self.training
        self.eval()
        found = generate(self.network, documents, order, self.statistics, decode, seed)
        self.train(was_training)
        return [
            [GeneratedSegment(o.modality, self.decode(o), o.finish_reason) for o in outputs]
            for outputs in found
        ]

    def document(self, name: str, prompt: Prompt) -> Document:
        """Document of a prompt. Raises as `encode`, and ConfigError on an unknown modality."""
        if len(prompt) != 1:
            raise ConfigError(f"A prompt is one segment, as {{'text': 'hello'}}; this one has {len(prompt)}.")
        [(modality, value)] = prompt.items()
        if modality == "speech" and isinstance(value, str | Path):
            value = self.read(Path(value))
        return prompt_of(name, self.encode(modality, value))

    def read(self, file: Path, start: float = 0.0, seconds: float | None = None) -> Tensor:
        """Read a recording, or `seconds` of it from `start`: float32 [n] at `sample_rate`.

        Raises DataError if it cannot be read or is longer than the model accepts.
        """
        longest = LENGTH_MARGIN * self.statistics.longest.get("speech", 0) / self.codec.frame_rate
        return read_wave(
            file, self.sample_rate, start, seconds, longest, "the {:g} s that this model accepts"
        )

    def encode(self, modality: str, value: str | Tensor) -> Segment:
        """Encode a text, or a waveform float32 [n] at `sample_rate`, as a prompt segment.

        Raises ConfigError if the text is empty or has no unique reading, or if the input is too long.
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
        """Text of a generated segment, or its waveform float32 [n]."""
        if output.modality == "text":
            return self.tokenizer.decode(output.content[0].tolist())
        return self.codec.decode(output.content)

    def check(self, documents: Sequence[Document], order: Sequence[str] | Literal["auto"]) -> None:
        """Raise ConfigError if `generate` would."""
        check_prompts(self.network, documents, order)

    def push_to_hub(self, repository: str, folder: str | Path, private: bool = False) -> str:
        """Save the model into a folder and upload it to user/name with the user's token (HF_TOKEN). Returns
        the URL.

        Raises DataError if the Hub refuses or is unreachable.
        """
        self.save_pretrained(folder)
        return push(Path(folder), repository, private)

    def _encode_text(self, text: str) -> Segment:
        if reason := unreadable(text):
            raise ConfigError(f"{shorten(text, 60)!r} {reason}")
        normal = normalise(text)
        if not normal:
            raise ConfigError(f"{text!r} holds no letter of a to z. Give text to synthesize.")
        ids = self.tokenizer.encode(normal)
        self._check_length("text", len(ids), f"{shorten(normal, 60)!r} has {len(ids)} subwords")
        return text_segment(ids, self.tokenizer, 0.0)

    def _check_trained(self, modality: str) -> None:
        if modality not in self.network.names:
            known = ", ".join(self.network.names)
            raise ConfigError(f"This model has no tower for {modality}, only for {known}.")
        if modality not in self.statistics.longest:
            raise ConfigError(
                "This model has not been trained: its zips are random. Train it with ZipperModule, or load a "
                "trained one (Zipper.from_pretrained)."
            )

    def _check_length(self, name: str, length: int, what: str) -> None:
        most = int(LENGTH_MARGIN * self.statistics.longest[name])
        if length > most:
            raise ConfigError(
                f"{what}; this model was trained on at most {self.statistics.longest[name]}, and accepts at "
                f"most {most}. Cut it into sentences."
            )


def prompt_of(name: str, *segments: Segment) -> Document:
    """Multimodal document of prompt segments."""
    return Document(name, list(segments), multimodal=True)


def is_exported(folder: Path) -> bool:
    """Whether a folder was written by `save_exported`."""
    return (folder / INFO).is_file()


def save_exported(folder: Path, trained: TrainedModel, tokenizer: Tokenizer, figures: dict[str, Any]) -> None:
    """Write weights in half precision, tokenizer and zipper.json. figures: further entries of zipper.json."""
    folder.mkdir(parents=True, exist_ok=True)
    state = trained.network.state_dict()
    save_file({name: w.detach().cpu().half().contiguous() for name, w in state.items()}, folder / WEIGHTS)
    tokenizer.save(folder / TOKENIZER)
    info = {
        **figures,
        "sha256": sha256(folder / WEIGHTS),
        "certificate": certificate(trained.network),
        "statistics": trained.statistics.to_dict(),
        "config": to_dict(trained.config),
    }
    (folder / INFO).write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")


def load_exported(folder: Path) -> tuple[TrainedModel, dict[str, Any]]:
    """Model in eval mode and zipper.json of a folder written by `save_exported`.

    Raises DataError if a file is damaged or does not match.
    """
    saved = read_json(folder / INFO)
    if not (folder / WEIGHTS).is_file() or sha256(folder / WEIGHTS) != saved["sha256"]:
        raise DataError(
            f"{folder / WEIGHTS} is missing, or not the file that {INFO} describes. Restore both."
        )
    weights = {name: w.float() for name, w in load_file(folder / WEIGHTS).items()}
    config, statistics = from_dict(saved["config"]), saved_statistics(saved)
    return _load_state(
        config, statistics, weights, f"{folder / WEIGHTS} has another shape than {INFO} says"
    ), saved


def certify(folder: Path) -> list[str]:
    """Check that the frozen towers of an export equal their pre-trained weights. Returns their modalities.

    Raises DataError if a tower differs, a file is damaged, or the export has no certificate.
    """
    if not is_exported(folder):
        raise ConfigError(
            f"{folder} is no exported model: it holds no {INFO}. Name assets/zipped, for example."
        )
    trained, saved = load_exported(folder)
    if "certificate" not in saved:
        raise DataError(
            f"{folder / INFO} holds no certificate: it was written by an older version. Export it again."
        )
    check_certificate(trained.network, saved["certificate"])
    return [*saved["certificate"]]


def load_trained(checkpoint: Path) -> TrainedModel:
    """Model of a training checkpoint, in eval mode. Raises DataError as `read_checkpoint`, and if the
    weights do not fit this version."""
    saved = read_checkpoint(checkpoint)
    kept = saved.get("hyper_parameters", {})
    if "cfg" not in kept:
        raise DataError(
            f"{checkpoint} is no checkpoint of this package: it has no hyper_parameters. Train it again."
        )
    weights = {name.removeprefix("model."): w for name, w in saved["state_dict"].items()}
    why = f"{checkpoint} does not fit this version's model: use the version that wrote it"
    return _load_state(from_dict(kept["cfg"]), saved_statistics(kept), weights, why)


def _load_state(
    config: RunConfig, statistics: DatasetStatistics, weights: dict[str, Tensor], why: str
) -> TrainedModel:
    trained = build_untrained(config, statistics)
    try:
        trained.network.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(f"{why} ({torch_message(error)}).") from error
    trained.network.eval()
    return trained
