"""Load the codec of a config."""

from pathlib import Path

from zipper.codecs.codec import Codec, load_official, load_zipper_codec
from zipper.codecs.mimi import Mimi
from zipper.codecs.prefixed import SemanticPrefix
from zipper.codecs.semantic import SemanticEncoder
from zipper.config import CodecConfig, asset
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
    units = None if cfg.semantic is None else load_semantic(asset(cfg.semantic))
    official = load_official(cfg.bandwidth_kbps, Path(cfg.weights) if cfg.weights else None)
    return official if units is None else SemanticPrefix(official, units)


def load_semantic(folder: Path) -> SemanticEncoder:
    """Semantic encoder of a codec's folder. Raises ConfigError if it has none."""
    units = load_zipper_codec(folder).semantic
    if units is None:
        raise ConfigError(
            f"codec.semantic={folder} is a codec without semantic units. Train one that has them: "
            "zipper train-codec CONFIG train_codec.semantic=whisper train_codec.out=FOLDER"
        )
    return units
