"""Load the codec of a config."""

from pathlib import Path

from zipper.codecs.codec import Codec, load_official, load_zipper_codec
from zipper.codecs.mimi import Mimi
from zipper.config import CodecConfig, asset
from zipper.hub import model_folder


def load_codec(cfg: CodecConfig) -> Codec:
    """Codec of a config. Raises DataError on missing or damaged weights."""
    if cfg.name == "embedded":
        return load_zipper_codec(asset(cfg.weights or "assets/codec"), cfg.codebooks)
    if cfg.name == "mimi":
        assert cfg.bandwidth_kbps is not None
        return Mimi(model_folder(cfg.weights or "kyutai/mimi"), cfg.bandwidth_kbps)
    return load_official(cfg.bandwidth_kbps, Path(cfg.weights) if cfg.weights else None)
