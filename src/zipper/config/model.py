"""Settings of towers and zips."""

from dataclasses import dataclass, field
from typing import Literal

from zipper.config.fields import Section, section, setting, suggestion
from zipper.errors import ConfigError


@dataclass
class TowerConfig(Section):
    KEY = "model.towers.NAME"

    layers: int = setting(6, "transformer layers", at_least=1)
    width: int = setting(128, "width of the residual stream", at_least=1)
    heads: int = setting(4, "query heads", at_least=1)
    kv_heads: int = setting(4, "key and value heads (GQA); divides heads", at_least=1)
    hidden: int = setting(384, "hidden width of the SwiGLU feed-forward", at_least=1)
    head_size: int = setting(0, "size of a head; 0: width / heads", at_least=0, at_most=2**31)
    rope_base: float = setting(10_000.0, "base of the rotary position embedding", at_least=1, at_most=1e30)
    rope_scaling: list[float] = setting(
        [],
        "one number: linear; four: Llama 3 (factor, low and high frequency factor, context length); []: none",
        at_least=1e-6,
        at_most=1e9,
    )
    qkv_bias: bool = setting(False, "bias of queries, keys and values (Qwen2)")
    qk_norm: bool = setting(False, "RMSNorm on queries and keys (Qwen3)")
    tied: bool = setting(True, "share the weights of embedding and output head")
    norm_eps: float = setting(1e-6, "epsilon of RMSNorm", at_least=0, at_most=1)
    vocabulary: int = setting(
        0, "vocabulary size of one codebook; 0: from the encoded dataset", at_least=0, at_most=2**31
    )
    codebooks: int = setting(
        0,
        "codebooks (tokens per timestep; text has 1); 0: from the encoded dataset",
        at_least=0,
        at_most=2**31,
    )
    pattern: Literal["delay", "parallel"] = setting("delay", "codebook pattern; set from the modality")
    specials: list[int] = setting(
        [0, 1],
        "ids of BOS, EOS and, with codebooks, filler; set from the modality",
        at_least=0,
        at_most=2**31,
    )
    dropout: float = setting(0.0, "dropout after attention and feed-forward", at_least=0, below=1)
    init: str | None = setting(
        None, "folder of a pre-trained tower, which also sets its shape; none: random weights"
    )
    frozen: bool = setting(False, "do not train the weights of the tower")
    lora: int = setting(
        0, "rank of LoRA, which is trained in place of the tower's weights; 0: no LoRA", at_least=0
    )
    interval: int = setting(2, "layers between zips", at_least=1)
    input_projection: Literal["residual", "paper", "none"] = setting(
        "residual", "residual: x + gate * MLP(x); paper: ReLU(MLP(x)); none"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.head_size and self.width % self.heads:
            raise ConfigError(f"heads={self.heads} does not divide width={self.width}. Choose a divisor.")
        if self.size % 2:
            raise ConfigError(
                f"width={self.width} / heads={self.heads} (or head_size={self.head_size}) is odd; rotary "
                "positions need an even head size."
            )
        if len(self.rope_scaling) not in (0, 1, 4):
            raise ConfigError(
                f"rope_scaling={self.rope_scaling}: give one number (linear), four (Llama 3), or nothing."
            )
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"kv_heads={self.kv_heads} does not divide heads={self.heads}. Choose a divisor."
            )
        if self.lora and self.frozen:
            raise ConfigError(
                f"lora={self.lora} with frozen={self.frozen}: a tower is frozen, or LoRA learns. Give one."
            )
        if self.init is None:  # otherwise the folder sets the number of layers
            self.check_interval()

    def check_interval(self) -> None:
        """Raises ConfigError if the tower would have no zip."""
        if self.interval > self.layers:
            raise ConfigError(
                f"interval={self.interval} leaves no zip in a tower of layers={self.layers}. Choose 1 to "
                f"{self.layers}."
            )

    @property
    def size(self) -> int:
        """Size of a head."""
        return self.head_size or self.width // self.heads


@dataclass
class ZipConfig(Section):
    KEY = "model.zip"

    heads: int = setting(4, "heads of the cross-attention; a divisor of each tower's width", at_least=1)
    projection_depth: int = setting(
        1, "layers of the projection g (paper 3.1: linear; 4.1: 3-layer MLP); 1 measured best", at_least=1
    )
    position: Literal["none", "rotary"] = setting("rotary", "position encoding of the cross-attention")
    gate_init: float = setting(
        0.5,
        "initial a and b of the gates tanh(a), tanh(b); 0: closed, so each tower starts unchanged",
        at_least=-1000,
        at_most=1000,
    )
    feed_forward: int = setting(
        4, "hidden width of the zip's feed-forward, as a multiple of the tower's width", at_least=1
    )
    diagonal: float = setting(
        1.0,
        "initial bias of rotary queries and keys, which starts the attention on the time diagonal",
        at_least=-1000,
        at_most=1000,
    )
    whiten: bool = setting(False, "initialise each g to whiten its input states; for pre-trained towers")
    rescale: bool = setting(
        False, "initialise each zip to the scale of the states that it is added to; for large language models"
    )


DEFAULT_MODALITIES = ("text", "speech")


@dataclass
class ModelConfig(Section):
    KEY = "model"

    kind: Literal["zipper", "single_decoder", "insertion", "mixture"] = setting(
        "zipper",
        "zipper; single_decoder, the paper's baseline: the first modality's tower with the vocabulary of "
        "all; insertion: projected states of the others in the input of the first modality's tower; mixture: "
        "self-attention over all towers' keys",
    )
    modalities: list[str] = setting([*DEFAULT_MODALITIES], "modalities, one tower each")
    towers: dict[str, TowerConfig] = field(
        default_factory=lambda: {name: TowerConfig() for name in DEFAULT_MODALITIES}
    )
    zip: ZipConfig = section(ZipConfig)
    init: str | None = setting(
        None, "folder of an exported model to which further towers are zipped; its own parts stay as they are"
    )
    zips: dict[str, ZipConfig] = field(default_factory=dict)  # of model.init, by QUERY_from_SOURCE
    next_modality_head: bool = setting(
        False, "next-modality head: predicts the modality after a segment, or the end (for `--then auto`)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.modalities:
            raise ConfigError("model.modalities=[]: a model has one tower at least. Name text, for example.")
        declared = {*self.modalities, *DEFAULT_MODALITIES}
        for name in self.towers:
            if name not in declared:
                known, hint = f"model.modalities={self.modalities}", suggestion(name, declared)
                raise ConfigError(f"model.towers.{name}: no such modality; {known}.{hint}")
        if missing := [name for name in self.modalities if name not in self.towers]:
            raise ConfigError(
                f"model.modalities names {missing}, but model.towers has no such tower. Add it there."
            )
        if self.kind == "single_decoder":
            self._check_single_decoder()
        if self.kind == "mixture":
            self._check_mixture()
        if not any(self.towers[n].init and not self.towers[n].vocabulary for n in self.modalities):
            self.check_widths()  # otherwise the folder sets the width later

    @property
    def codebooks(self) -> dict[str, int]:
        """Number of codebooks by modality."""
        return {name: self.towers[name].codebooks for name in self.modalities}

    @property
    def kept(self) -> list[str]:
        """Modalities of `init`."""
        return sorted({name for key in self.zips for name in key.split("_from_")}) if self.init else []

    def check_widths(self) -> None:
        """Raises ConfigError if zip.heads does not divide the width of a tower."""
        for name in self.modalities:
            width = self.towers[name].width
            if len(self.modalities) > 1 and width % (2 * self.zip.heads):
                raise ConfigError(
                    f"model.zip.heads={self.zip.heads} does not divide model.towers.{name}.width={width} "
                    f"into heads of even size. Choose a divisor of {width // 2}."
                )

    def _check_mixture(self) -> None:
        """Raises ConfigError unless all towers have the same heads. Shapes of a folder are read later."""
        shapes = {
            n: self.towers[n] for n in self.modalities if not self.towers[n].init or self.towers[n].vocabulary
        }
        found = {n: (t.layers, t.heads, t.kv_heads, t.size) for n, t in shapes.items()}
        if len({*found.values()}) > 1:
            raise ConfigError(
                "model.kind=mixture: towers attend to one another's keys, so layers, heads, kv_heads and the "
                f"size of a head must be equal, not {found}. Choose such towers."
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
