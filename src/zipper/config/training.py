"""Settings of model and codec training."""

from dataclasses import dataclass
from typing import Literal

from zipper.config.fields import check_positive, check_range, setting, task_name
from zipper.errors import ConfigError

LossMean = Literal["modality", "document"]


@dataclass
class TrainConfig:
    tasks: dict[str, float] = setting(
        {},
        "share of each task in the mixture, by number of examples; 1: every utterance once per epoch. A task "
        "is a chain of modalities, such as speech>text (asr) or text>speech (tts; paper: 1.26 : 1), or one "
        "modality alone",
    )
    steps: int = setting(2000, "optimiser steps")
    tokens: int = setting(
        4096, "padded tokens of an optimiser step (of the longest tower), over all ranks and micro-batches"
    )
    accumulate: int = setting(1, "micro-batches per step on each rank")
    optimiser: Literal["adamw", "adafactor"] = setting(
        "adamw", "adamw, or adafactor (arXiv 1804.04235), whose lr is relative to the scale of each matrix"
    )
    lr: float = setting(1e-3, "peak learning rate")
    gate_lr: float = setting(10.0, "learning rate of the gates, as a multiple of lr")
    betas: tuple[float, float] = setting((0.9, 0.99), "betas of AdamW")
    weight_decay: float = setting(
        0.01, "weight decay of matrices; gates, norms and unused parameters have none"
    )
    clip: float = setting(1.0, "maximum gradient norm; 0: no clipping")
    warmup: int = setting(100, "steps of linear warm-up")
    schedule: Literal["cosine", "constant"] = setting("cosine", "cosine: decays to 0 at the last step")
    prompt_weight: float = setting(0.0, "loss weight of the prompt (the speech of asr, the text of tts)")
    loss_mean: LossMean = setting(
        "modality",
        "modality: mean over the scored tokens of each modality in a step; document: every document has the "
        "weight of an average one of its task, so that the mixture weights the tasks",
    )
    codebook_weights: list[float] = setting([], "loss weight of each speech codebook; none: all equal")
    hide: float = setting(
        0.0,
        "history masking: share of the timesteps of target speech masked from the speech tower in training",
    )
    hide_span: int = setting(8, "timesteps of a masked span")
    validate_every: int = setting(500, "steps between validations; each saves a checkpoint")
    save_every: int = setting(100, "steps between checkpoints for resuming, besides those of validations")
    patience: int | None = setting(
        None, "early stopping: validations without a better dev WER (or loss); none: no early stopping"
    )
    workers: int = setting(0, "processes of the data loader")
    precision: Literal["32-true", "bf16-mixed", "64-true"] = setting("32-true", "precision of the Trainer")
    accelerator: str = setting("auto", "accelerator of the Trainer")
    devices: int = setting(1, "devices per node")
    nodes: int = setting(1, "nodes")
    strategy: str = setting("auto", "fsdp2, or a Lightning strategy: auto, ddp, ...")
    compile: bool = setting(False, "torch.compile layers and zips: takes minutes once; for long trainings")
    recompute: bool = setting(
        False,
        "activation checkpointing of layers: less memory, about a third more compute",
    )

    def __post_init__(self) -> None:
        if any(not share >= 0 for share in self.tasks.values()):
            raise ConfigError(f"train.tasks={self.tasks}: a share must not be negative. Give 0 for none.")
        self.tasks = {task_name(task): share for task, share in sorted(self.tasks.items()) if share}
        check_positive(
            self,
            "train",
            "hide_span",
            "steps",
            "tokens",
            "accumulate",
            "validate_every",
            "save_every",
            "devices",
            "nodes",
        )
        check_range(self, "train", 0, 1e6, "gate_lr", "weight_decay", "warmup")
        if self.steps > self.validate_every and self.steps % self.validate_every:
            rest = self.steps % self.validate_every
            raise ConfigError(
                f"train.steps={self.steps} is not a multiple of train.validate_every={self.validate_every}: "
                f"the last {rest} steps would be neither validated nor saved. Use "
                f"train.steps={self.steps - rest}, or another train.validate_every."
            )
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"train.patience={self.patience} must be at least 1, or none.")
        if self.strategy == "fsdp2" and self.precision == "64-true":
            raise ConfigError("train.strategy=fsdp2 with train.precision=64-true: use 32-true or bf16-mixed.")
        if self.lr <= 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(
                f"train.lr={self.lr} must be more than 0, train.betas={list(self.betas)} below 1."
            )
        if self.workers < 0:
            raise ConfigError(f"train.workers={self.workers} must not be negative.")
        if self.codebook_weights and not (min(self.codebook_weights) >= 0 < self.codebook_weights[0]):
            raise ConfigError(
                f"train.codebook_weights={self.codebook_weights}: none may be negative, the first not 0: "
                "it holds the EOS of speech."
            )
        if self.hide and self.prompt_weight:
            raise ConfigError(
                f"train.hide={self.hide} with train.prompt_weight={self.prompt_weight} would also mask the "
                "speech of prompts. Set one of them to 0."
            )
        if not 0 <= self.hide < 1:
            raise ConfigError(f"train.hide={self.hide} must be at least 0 and less than 1.")
        if self.clip < 0:
            raise ConfigError(f"train.clip={self.clip} must not be negative; 0 disables clipping.")
        if not self.prompt_weight >= 0:
            raise ConfigError(f"train.prompt_weight={self.prompt_weight} must not be negative.")


@dataclass
class TrainCodecConfig:
    steps: int = setting(14_000, "optimiser steps")
    autoencoder: float = setting(0.15, "share of the steps before the quantiser is trained")
    batch: int = setting(8, "crops per step")
    seconds: float = setting(0.8, "length of a crop")
    lr: float = setting(1e-3, "peak learning rate of AdamW, decays to 0")
    filters: int = setting(16, "filters of EnCodec's first convolution")
    dimension: int = setting(128, "dimension of the latents")
    ratios: list[int] = setting([4, 4, 5, 8], "strides of the decoder; their product is the hop in samples")
    sample_rate: int = setting(16_000, "Hz")
    codebooks: int = setting(4, "codebooks (residual quantisers)")
    codes: int = setting(1024, "codes of a codebook, a power of 2")
    init: str | None = setting(
        None, "folder of a codec to start from, with its quantiser; none: random weights, then k-means"
    )
    out: str = setting("assets/codec", "output folder of the codec")

    def __post_init__(self) -> None:
        check_positive(
            self, "train_codec", "steps", "batch", "filters", "dimension", "sample_rate", "codebooks"
        )
        check_range(self, "train_codec", 1, 1e6, "ratios")
        if self.codes < 2 or self.codes & (self.codes - 1):
            raise ConfigError(f"train_codec.codes={self.codes} is not a power of 2. Give one, such as 1024.")
        if not 0 <= self.autoencoder < 1:
            raise ConfigError(
                f"train_codec.autoencoder={self.autoencoder} must be at least 0 and less than 1; the rest "
                "trains the quantiser."
            )
        if self.seconds * self.sample_rate < 1 or self.lr <= 0:
            raise ConfigError(
                f"train_codec.seconds={self.seconds} must hold at least one sample, and lr={self.lr} must be "
                "more than 0."
            )
