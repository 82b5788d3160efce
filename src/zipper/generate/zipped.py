"""A zipped model to generate from: a run folder, or the folder that `export` wrote.

assets/zipped/   zipper.safetensors   zipper.json: config, facts, hash, figures   tokenizer.json
"""

import json
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from zipper.config import from_dict, read_facts, to_dict
from zipper.data.document import Document, Segment, speech_segment, text_segment
from zipper.errors import ConfigError, DataError, refusal
from zipper.model.multimodal import MultimodalModel
from zipper.schema import RunConfig
from zipper.train.module import ZipperModule, load_module
from zipper.units.codec import Codec, load_codec, sha256
from zipper.units.facts import BEYOND, Facts
from zipper.units.normalise import normalise, unreadable
from zipper.units.text import Subwords

WEIGHTS, FACTS, TOKENIZER = "zipper.safetensors", "zipper.json", "tokenizer.json"


@dataclass(frozen=True)
class Zipped:
    """Model, and what turns text and waves into its tokens and back."""

    model: MultimodalModel
    facts: Facts
    cfg: RunConfig
    subwords: Subwords
    codec: Codec

    def text(self, text: str) -> Segment:
        """A text prompt. Raises ConfigError where it is empty, has no one reading, or is too long."""
        if reason := unreadable(text):
            raise ConfigError(f"{shorten(text, 60)!r} {reason}")
        normal = normalise(text)
        if not normal:
            raise ConfigError(f"{text!r} holds no letter of a to z: there is nothing to say.")
        ids = self.subwords.encode(normal)
        self._check_length("text", len(ids), f"{shorten(normal, 60)!r} has {len(ids)} subwords")
        return text_segment(ids, self.subwords, 0.0)

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
        most = int(BEYOND * self.facts.longest[name])
        if length > most:
            raise ConfigError(
                f"{what}; this model was trained on at most {self.facts.longest[name]} and is asked for no "
                f"more than {most}. Cut it into sentences."
            )


def prompt(name: str, *segments: Segment) -> Document:
    """What is given, before anything is written."""
    return Document(name, list(segments), multimodal=True)


def load_zipped(folder: Path) -> Zipped:
    """Raises ConfigError where the folder is neither, DataError where a part is damaged or does not fit."""
    if is_exported(folder):
        module, _ = load_exported(folder)
        model, facts, cfg = module.model, module.facts, module.cfg
    elif (folder / "config.yaml").is_file():
        checkpoint = folder / "checkpoints" / "best.ckpt"
        if not checkpoint.is_file():
            raise ConfigError(
                f"{folder} has no checkpoints/best.ckpt yet: its training has not come to a validation."
            )
        module = load_module(checkpoint)
        model, facts, cfg = module.model, module.facts, module.cfg
    else:
        raise ConfigError(
            f"{folder} is no model: it holds neither {FACTS} (an exported model) nor config.yaml (a run). "
            "Run `make train`, or name assets/zipped."
        )
    codec, subwords = load_codec(cfg.codec), Subwords.load(folder / TOKENIZER)
    for name, own in (("speech", codec.fingerprint), ("text", subwords.fingerprint)):
        if name in model.names and facts.reads[name] != own:
            raise DataError(f"{folder} reads {name} units of {facts.reads[name]!r}, but these are {own!r}.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Zipped(model.eval().to(device), facts, cfg, subwords, codec)


def is_exported(folder: Path) -> bool:
    """Whether a folder is one that `save_zipped` wrote."""
    return (folder / FACTS).is_file()


def save_zipped(folder: Path, module: ZipperModule, subwords: Subwords, figures: dict[str, Any]) -> None:
    """Weights in half precision, and all that it takes to use them. figures: how it was made, how good."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: w.detach().cpu().half().contiguous() for name, w in module.model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    subwords.save(folder / TOKENIZER)
    facts = {
        **figures,
        "sha256": sha256(folder / WEIGHTS),
        "facts": module.facts.to_dict(),
        "config": to_dict(module.cfg),
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def load_exported(folder: Path) -> tuple[ZipperModule, dict[str, Any]]:
    """The model of a folder that `save_zipped` wrote, and what its JSON says. Raises DataError where a part
    is damaged or does not fit."""
    saved = read_facts(folder / FACTS)
    if not (folder / WEIGHTS).is_file() or sha256(folder / WEIGHTS) != saved["sha256"]:
        raise DataError(
            f"{folder / WEIGHTS} is missing, or not the file that {FACTS} describes. Restore both."
        )
    cfg, facts = from_dict(saved["config"]), Facts(**saved["facts"])
    module = ZipperModule.of(cfg, facts)
    weights = {name: w.float() for name, w in load_file(folder / WEIGHTS).items()}
    try:
        module.model.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(
            f"{folder / WEIGHTS} has another shape than {FACTS} says: {refusal(error)}"
        ) from error
    return module.eval(), saved
