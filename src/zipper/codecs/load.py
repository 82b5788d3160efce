"""Load the codec of a config."""

import shutil
from dataclasses import replace
from pathlib import Path

from zipper.codecs.codec import SETTINGS, WEIGHTS, Codec, load_zipper_codec
from zipper.codecs.mimi import Mimi
from zipper.codecs.official import load_official
from zipper.codecs.prefixed import SemanticPrefix
from zipper.codecs.semantic import SemanticEncoder
from zipper.config import ROOT, CodecConfig, asset, expanded
from zipper.errors import ConfigError
from zipper.hub import model_folder


def load_codec(cfg: CodecConfig) -> Codec:
    """Codec of a config. Raises DataError on missing or damaged weights, ConfigError on settings that they do
    not fit."""
    if cfg.name == "embedded":
        return load_zipper_codec(asset(cfg.weights or "assets/codec"), cfg.codebooks)
    if cfg.name == "mimi":
        assert cfg.bandwidth_kbps is not None
        return Mimi(model_folder(cfg.weights or "kyutai/mimi"), cfg.bandwidth_kbps)
    weights = expanded(cfg.weights) if cfg.weights else None
    if cfg.semantic is None:
        return load_official(cfg.bandwidth_kbps, weights)
    folder = asset(cfg.semantic)
    units = load_semantic(folder)
    codec = SemanticPrefix(load_official(cfg.bandwidth_kbps, weights), units)
    codec.folder = folder
    return codec


def copy_codec(codec: Codec, folder: Path) -> None:
    """Copy a zipper-codec's files into an exported model's folder, unless it is the shipped one. Those of a
    model that was there before go."""
    if codec.folder is not None and codec.folder.resolve() == folder.resolve():
        return
    for name in (WEIGHTS, SETTINGS):
        (folder / name).unlink(missing_ok=True)
    if codec.folder is None or codec.folder.resolve() == (ROOT / "assets/codec").resolve():
        return
    for name in (WEIGHTS, SETTINGS):
        shutil.copyfile(codec.folder / name, folder / name)


def with_copied_codec(cfg: CodecConfig, folder: Path | None) -> CodecConfig:
    """Config that names the codec in an exported model's folder, if `copy_codec` has put one there."""
    if folder is None or not (folder / SETTINGS).is_file():
        return cfg
    if cfg.name == "embedded":
        return replace(cfg, weights=str(folder))
    return replace(cfg, semantic=str(folder))


def load_semantic(folder: Path) -> SemanticEncoder:
    """Semantic encoder of a codec's folder. Raises ConfigError if it has none."""
    units = load_zipper_codec(folder).semantic
    if units is None:
        raise ConfigError(
            f"codec.semantic={folder} is a codec without semantic units. Train one that has them: "
            "zipper train-codec CONFIG train_codec.semantic=whisper train_codec.out=FOLDER"
        )
    return units
