"""Settings of towers and zips."""

import difflib
from dataclasses import dataclass, field
from typing import Literal

from zipper.config.fields import check_positive, check_range, section, setting
from zipper.errors import ConfigError


@dataclass
class TowerConfig:
    layers: int = setting(6, "transformer layers")
    width: int = setting(128, "of the residual stream")
    heads: int = setting(4, "query heads")
    kv_heads: int = setting(4, "key and value heads (GQA); divides heads")
    hidden: int = setting(384, "of the SwiGLU feed-forward")
    head_size: int = setting(0, "of a head; 0: width / heads")
    rope_base: float = setting(10_000.0, "of the rotary positions")
    rope_scaling: list[float] = setting(
        [],
        "Llama 3's: factor, low and high frequency factor, tokens pre-trained on; one number: linear; none",
    )
    qkv_bias: bool = setting(False, "queries, keys and values have a bias (Qwen2)")
    qk_norm: bool = setting(False, "queries and keys pass an RMSNorm (Qwen3)")
    tied: bool = setting(True, "the embedding is the head as well")
    norm_eps: float = setting(1e-6, "of RMSNorm")
    vocabulary: int = setting(0, "tokens of one codebook; 0: from the store")
    codebooks: int = setting(0, "tokens a column; 0: from the store (text has 1)")
    pattern: Literal["delay", "parallel"] = setting("delay", "of its columns; from codec.pattern")
    specials: list[int] = setting([0, 1], "ids that begin and end a text; from the store's tokenizer")
    dropout: float = setting(0.0, "after attention and feed-forward, in training")
    init: str | None = setting(
        None, "folder of a pre-trained tower, which then gives the shape; none: random"
    )
    frozen: bool = setting(False, "keep the tower's own weights as they are")
    lora: int = setting(
        0, "rank of LoRA, which then learns while the tower's own weights stay as they are; 0: none"
    )
    interval: int = setting(2, "layers from one zip to the next")
    input_projection: Literal["residual", "paper", "none"] = setting(
        "residual", "residual: x + gate * MLP(x); paper: ReLU(MLP(x)); none"
    )

    def __post_init__(self) -> None:
        check_positive(self, "model.towers.NAME", "layers", "width", "hidden")
        check_range(self, "model.towers.NAME", 0, 2**31, "head_size", "vocabulary", "codebooks", "specials")
        check_range(self, "model.towers.NAME", 1, 1e30, "rope_base")
        check_range(self, "model.towers.NAME", 1e-6, 1e9, "rope_scaling")
        check_range(self, "model.towers.NAME", 0, 1, "norm_eps")
        if self.heads < 1 or (not self.head_size and self.width % self.heads):
            raise ConfigError(f"heads={self.heads} does not divide width={self.width}. Pick a divisor.")
        if self.size % 2:
            raise ConfigError(
                f"width={self.width} / heads={self.heads} (or head_size={self.head_size}) is odd; rotary "
                "positions need an even head size."
            )
        if len(self.rope_scaling) not in (0, 1, 4) or not all(value > 0 for value in self.rope_scaling):
            raise ConfigError(
                f"rope_scaling={self.rope_scaling}: give a factor, or Llama 3's factor, low and high "
                "frequency "
                "factor and tokens, all more than 0; or nothing."
            )
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ConfigError(f"kv_heads={self.kv_heads} does not divide heads={self.heads}. Pick a divisor.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} is a share: give at least 0 and less than 1.")
        if self.lora < 0 or (self.lora and self.frozen):
            raise ConfigError(
                f"lora={self.lora} with frozen={self.frozen}: a tower is frozen, or LoRA learns beside it, "
                "or all "
                "of it learns. Give one of the two, and a rank of at least 0."
            )
        if self.init is None or self.interval < 1:  # else the layers are those of the folder
            self.check_interval()

    def check_interval(self) -> None:
        """Raises ConfigError where there would be no zip."""
        if self.interval < 1 or self.interval > self.layers:
            raise ConfigError(
                f"interval={self.interval} leaves no zip in a tower "
                f"of layers={self.layers}. Pick 1 to {self.layers}."
            )

    @property
    def size(self) -> int:
        """Of a head."""
        return self.head_size or self.width // self.heads


@dataclass
class ZipConfig:
    heads: int = setting(4, "of the cross-attention; divides the width of each tower")
    projection_depth: int = setting(
        1, "layers of g, which bridges the widths (paper 3.1: linear; 4.1: an MLP of 3); 1 measured best"
    )
    position: Literal["none", "sinusoidal", "rotary"] = setting(
        "rotary", "what the cross-attention knows of positions"
    )
    gate_init: float = setting(
        0.5, "a and b in tanh(a), tanh(b) at the start; 0: closed, each tower starts as its own old self"
    )
    feed_forward: int = setting(4, "hidden width of the block's feed-forward, in widths of the tower")
    diagonal: float = setting(
        1.0, "initial bias of rotary queries and keys: a zip starts by looking at its own time"
    )

    whiten: bool = setting(
        False, "start each g by whitening the states that it reads; for towers that have been pre-trained"
    )
    rescale: bool = setting(
        False, "start each zip at the scale of the states it adds to; large language models have large ones"
    )

    def __post_init__(self) -> None:
        check_positive(self, "model.zip", "heads", "projection_depth", "feed_forward")
        check_range(self, "model.zip", -1000, 1000, "gate_init", "diagonal")


def _default_towers() -> dict[str, TowerConfig]:
    return {"text": TowerConfig(), "speech": TowerConfig()}


@dataclass
class ModelConfig:
    kind: Literal["zipper", "single_decoder"] = setting(
        "zipper",
        "zipper; or the paper's baseline: the first modality's tower, its vocabulary grown by all others",
    )
    modalities: list[str] = setting(["text", "speech"], "names of the towers, declared once")
    towers: dict[str, TowerConfig] = field(default_factory=_default_towers)
    zip: ZipConfig = section(ZipConfig)
    switch: bool = setting(
        False, "a small head that learns which modality follows a segment, or none (for `--then auto`)"
    )

    def __post_init__(self) -> None:
        declared = {*self.modalities, *_default_towers()}
        for name in self.towers:
            if name not in declared:
                close = difflib.get_close_matches(name, sorted(declared), 1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise ConfigError(
                    f"model.towers.{name}: no such modality; model.modalities={self.modalities}.{hint}"
                )
        if missing := [name for name in self.modalities if name not in self.towers]:
            raise ConfigError(
                f"model.modalities names {missing}, but model.towers has no such tower. Describe it there."
            )
        if self.kind == "single_decoder":
            self._check_single_decoder()
        if not any(self.towers[n].init and not self.towers[n].vocabulary for n in self.modalities):
            self.check_widths()  # else a folder has yet to give one

    def check_widths(self) -> None:
        """Raises ConfigError where the zips' heads do not divide a tower."""
        for name in self.modalities:
            width = self.towers[name].width
            if len(self.modalities) > 1 and width % (2 * self.zip.heads):
                raise ConfigError(
                    f"model.zip.heads={self.zip.heads} does not divide model.towers.{name}.width={width} "
                    f"into even heads. Pick a divisor of {width // 2}."
                )

    def _check_single_decoder(self) -> None:
        for name in self.modalities:
            tower = self.towers[name]
            if tower.frozen or tower.lora:
                raise ConfigError(
                    f"model.towers.{name}: frozen={tower.frozen}, lora={tower.lora}, but a single decoder is "
                    "fine-tuned whole (paper 4.1.2). Leave both out."
                )
            if name != self.modalities[0] and tower.init:
                raise ConfigError(
                    f"model.towers.{name}.init={tower.init}, but a single decoder grows from the tower of "
                    f"{self.modalities[0]} alone. Leave it out, or use model.kind=zipper."
                )
