"""A zipped model to generate from: a run folder, or the folder that `export` wrote.

assets/zipped/   zipper.safetensors   zipper.json: config, statistics, hash, figures   tokenizer.json
"""

import json
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from zipper.checkpoint_files import read_checkpoint
from zipper.codecs.codec import Codec, sha256
from zipper.codecs.load import load_codec
from zipper.config import RunConfig, from_dict, read_json, to_dict
from zipper.data.documents import Document, Segment, speech_segment, text_segment
from zipper.data.statistics import BEYOND, DatasetStatistics, saved_statistics
from zipper.errors import ConfigError, DataError, refusal
from zipper.modalities.normalise import normalise, unreadable
from zipper.modalities.tokenizer import Tokenizer
from zipper.models.building import build_for_run
from zipper.models.multimodal import MultimodalModel

WEIGHTS, INFO, TOKENIZER = "zipper.safetensors", "zipper.json", "tokenizer.json"


@dataclass(frozen=True)
class Zipper:
    """Model, and what turns text and waves into its tokens and back."""

    model: MultimodalModel
    statistics: DatasetStatistics
    cfg: RunConfig
    tokenizer: Tokenizer
    codec: Codec

    def text(self, text: str) -> Segment:
        """A text prompt. Raises ConfigError where it is empty, has no one reading, or is too long."""
        if reason := unreadable(text):
            raise ConfigError(f"{shorten(text, 60)!r} {reason}")
        normal = normalise(text)
        if not normal:
            raise ConfigError(f"{text!r} holds no letter of a to z: there is nothing to say.")
        ids = self.tokenizer.encode(normal)
        self._check_length("text", len(ids), f"{shorten(normal, 60)!r} has {len(ids)} subwords")
        return text_segment(ids, self.tokenizer, 0.0)

    def speech(self, wave: Tensor) -> Segment:
        """A speech prompt: wave float32 [n] at the codec's rate. Raises ConfigError where it is too long."""
        (codes,) = self.codec.encode([wave])
        frames = codes.shape[1]
        self._check_length(
            "speech", frames, f"the audio has {frames / self.codec.frame_rate:.1f} s, {frames} frames"
        )
        return speech_segment(codes, self.codec.codes, 0.0, self.cfg.codec.pattern)

    def _check_length(self, name: str, length: int, what: str) -> None:
        if name not in self.model.names:
            known = ", ".join(self.model.names)
            raise ConfigError(f"This model has no tower for {name}, only for {known}.")
        most = int(BEYOND * self.statistics.longest[name])
        if length > most:
            raise ConfigError(
                f"{what}; this model was trained on at most {self.statistics.longest[name]}, and accepts at "
                f"most {most}. Cut it into sentences."
            )


class Trained(NamedTuple):
    """A model with what it was trained on, and how."""

    model: MultimodalModel
    statistics: DatasetStatistics
    cfg: RunConfig


def prompt(name: str, *segments: Segment) -> Document:
    """What is given, before anything is written."""
    return Document(name, list(segments), multimodal=True)


def load_model(folder: Path) -> Zipper:
    """Raises ConfigError where the folder is neither, DataError where a part is damaged or does not fit."""
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
    model, statistics, cfg = trained
    codec, subwords = load_codec(cfg.codec), Tokenizer.load(folder / TOKENIZER)
    for name, own in (("speech", codec.fingerprint), ("text", subwords.fingerprint)):
        if name in model.names and statistics.reads[name] != own:
            raise DataError(
                f"{folder} reads {name} units of {statistics.reads[name]!r}, but these are {own!r}."
            )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Zipper(model.eval().to(device), statistics, cfg, subwords, codec)


def is_exported(folder: Path) -> bool:
    """Whether a folder is one that `save_zipped` wrote."""
    return (folder / INFO).is_file()


def save_model(folder: Path, trained: Trained, subwords: Tokenizer, figures: dict[str, Any]) -> None:
    """Weights in half precision, and all that it takes to use them. figures: how it was made, how good."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: w.detach().cpu().half().contiguous() for name, w in trained.model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    subwords.save(folder / TOKENIZER)
    statistics = {
        **figures,
        "sha256": sha256(folder / WEIGHTS),
        "statistics": trained.statistics.to_dict(),
        "config": to_dict(trained.cfg),
    }
    (folder / INFO).write_text(json.dumps(statistics, indent=1) + "\n", encoding="utf-8")


def load_exported(folder: Path) -> tuple[Trained, dict[str, Any]]:
    """The model of a folder that `save_zipped` wrote, in eval, and what its JSON says. Raises DataError where
    a part is damaged or does not fit."""
    saved = read_json(folder / INFO)
    if not (folder / WEIGHTS).is_file() or sha256(folder / WEIGHTS) != saved["sha256"]:
        raise DataError(
            f"{folder / WEIGHTS} is missing, or not the file that {INFO} describes. Restore both."
        )
    cfg, statistics = from_dict(saved["config"]), saved_statistics(saved)
    model = build_for_run(cfg, statistics)
    weights = {name: w.float() for name, w in load_file(folder / WEIGHTS).items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(f"{folder / WEIGHTS} has another shape than {INFO} says: {refusal(error)}") from error
    return Trained(model.eval(), statistics, cfg), saved


def load_trained(checkpoint: Path) -> Trained:
    """The model of a training's checkpoint, in eval. Raises DataError as `read_checkpoint`, and where other
    code wrote it."""
    saved = read_checkpoint(checkpoint)
    kept = saved.get("hyper_parameters", {})
    if "cfg" not in kept:
        raise DataError(f"{checkpoint} is of no run of zipper: it has no hyper_parameters. Train it again.")
    cfg, statistics = from_dict(kept["cfg"]), saved_statistics(kept)
    model = build_for_run(cfg, statistics)
    weights = {name.removeprefix("model."): w for name, w in saved["state_dict"].items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(
            f"{checkpoint} cannot be loaded into this version's model ({refusal(error)}). "
            "Train it again, or use the version that wrote it."
        ) from error
    return Trained(model.eval(), statistics, cfg)
