"""Settings of model and codec training."""

import math
from dataclasses import dataclass
from typing import Literal

from zipper.config.fields import Section, setting, task_name
from zipper.errors import ConfigError

LossMean = Literal["modality", "document"]
SEMANTIC_LAYERS = {"none": (0, 0), "whisper": (4, 4), "hubert": (12, 9)}  # at most, and the usual choice


@dataclass
class TrainConfig(Section):
    KEY = "train"

    tasks: dict[str, float] = setting(
        {},
        "share of each task in the mixture, by number of examples; 1: every utterance once per epoch. A task "
        "is a chain of modalities, such as speech>text (asr) or text>speech (tts; paper: 1.26 : 1), or one "
        "modality alone",
        at_least=0,
        hint="0 leaves the task out",
    )
    init: str | None = setting(
        None,
        "fine-tuning: folder of an exported model to start from, with its towers, zips, codec and tokenizer; "
        "none: pre-trained towers and new zips",
    )
    steps: int = setting(2000, "optimiser steps", at_least=1)
    tokens: int = setting(
        4096,
        "padded tokens of an optimiser step (of the longest tower), over all ranks and micro-batches",
        at_least=1,
    )
    accumulate: int = setting(1, "micro-batches per step on each rank", at_least=1)
    optimiser: Literal["adamw", "adafactor"] = setting(
        "adamw", "adamw, or adafactor (arXiv 1804.04235), whose lr is relative to the scale of each matrix"
    )
    lr: float = setting(1e-3, "peak learning rate", above=0)
    gate_lr: float = setting(
        10.0, "learning rate of the gates, as a multiple of lr", at_least=0, at_most=10**6
    )
    betas: tuple[float, float] = setting((0.9, 0.99), "betas of AdamW", at_least=0, below=1)
    weight_decay: float = setting(
        0.01,
        "weight decay of matrices; gates, norms and unused parameters have none",
        at_least=0,
        at_most=10**6,
    )
    clip: float = setting(
        1.0, "maximum gradient norm; 0: no clipping", at_least=0, hint="0 disables clipping"
    )
    warmup: int = setting(100, "steps of linear warm-up", at_least=0, at_most=10**6)
    schedule: Literal["cosine", "constant"] = setting("cosine", "cosine: decays to 0 at the last step")
    prompt_weight: float = setting(
        0.0, "loss weight of the prompt (the speech of asr, the text of tts)", at_least=0
    )
    loss_mean: LossMean = setting(
        "modality",
        "modality: mean over the scored tokens of each modality in a step; document: every document has the "
        "weight of an average one of its task, so that the mixture weights the tasks",
    )
    ctc: float = setting(
        0.0,
        "weight of CTC of the answer's letters on the states of its prompt (text on speech, in asr): finds "
        "the alignment sooner, and its head can score beam search (decode.text.ctc)",
        at_least=0,
    )
    guide: float = setting(
        0.0,
        "weight of leading the zips' attention to the frames that CTC aligns with a token (needs train.ctc)",
        at_least=0,
    )
    codebook_weights: list[float] = setting(
        [], "loss weight of each speech codebook; none: all equal", at_least=0
    )
    mask: float = setting(
        0.0,
        "prompt masking, as SpecAugment's in time: share of the timesteps of a speech prompt",
        at_least=0,
        below=1,
    )
    mask_span: int = setting(8, "timesteps of a masked span of a prompt", at_least=1)
    history_mask: float = setting(
        0.0,
        "history masking: share of the timesteps of target speech masked from the speech tower in training",
        at_least=0,
        below=1,
    )
    history_mask_span: int = setting(8, "timesteps of a masked span", at_least=1)
    validate_every: int = setting(500, "steps between validations; each saves a checkpoint", at_least=1)
    save_every: int = setting(
        100, "steps between checkpoints for resuming, besides those of validations", at_least=1
    )
    patience: int | None = setting(
        None,
        "early stopping: validations without a better dev WER (or loss); none: no early stopping",
        at_least=1,
    )
    workers: int = setting(0, "processes of the data loader", at_least=0)
    precision: Literal["32-true", "bf16-mixed", "bf16-products", "64-true"] = setting(
        "32-true",
        "precision of the Trainer (on GPUs, float32 products are TF32's); bf16-products: float32, but matrix "
        "products of bfloat16, for CPUs that multiply it faster",
    )
    quantise: bool = setting(
        False,
        "quantisation-aware training: the loss is that of weights rounded to export_bits, the update goes to "
        "exact ones (straight-through estimator); for the last steps of a model in 4 bits",
    )
    accelerator: str = setting("auto", "accelerator of the Trainer")
    devices: int = setting(1, "devices per node", at_least=1)
    nodes: int = setting(1, "nodes", at_least=1)
    strategy: str = setting("auto", "fsdp2, or a Lightning strategy: auto, ddp, ...")
    compile: bool = setting(False, "torch.compile layers and zips: takes minutes once; for long trainings")
    activation_checkpointing: bool = setting(
        False, "activation checkpointing of layers: less memory, about a third more compute"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tasks = {task_name(task): share for task, share in sorted(self.tasks.items()) if share}
        if self.steps > self.validate_every and self.steps % self.validate_every:
            rest = self.steps % self.validate_every
            raise ConfigError(
                f"train.steps={self.steps} is not a multiple of train.validate_every={self.validate_every}: "
                f"the last {rest} steps would be neither validated nor saved. Use "
                f"train.steps={self.steps - rest}, or another train.validate_every."
            )
        if self.strategy == "fsdp2" and self.precision == "64-true":
            raise ConfigError("train.strategy=fsdp2 with train.precision=64-true: use 32-true or bf16-mixed.")
        if self.precision == "bf16-products" and (self.compile or self.activation_checkpointing):
            other = "compile" if self.compile else "activation_checkpointing"
            raise ConfigError(
                f"train.precision=bf16-products with train.{other}=true: they do not work together. Use "
                "32-true, or on a GPU bf16-mixed."
            )
        if self.optimiser == "adafactor" and self.strategy == "fsdp2":
            raise ConfigError(
                "train.optimiser=adafactor with train.strategy=fsdp2: its step reads whole matrices, which "
                "no process has. Use adamw, or ddp."
            )
        if self.quantise and self.strategy == "fsdp2":
            raise ConfigError("train.quantise=true with train.strategy=fsdp2: use ddp.")
        if self.guide and not self.ctc:
            raise ConfigError(
                f"train.guide={self.guide:g} needs the alignment of CTC: give train.ctc=0.3, for example."
            )
        if self.guide and (self.compile or self.activation_checkpointing or self.strategy == "fsdp2"):
            raise ConfigError(
                f"train.guide={self.guide:g} reads attention weights, which train.compile, "
                "train.activation_checkpointing and train.strategy=fsdp2 do not hand out. Leave these out."
            )
        if self.codebook_weights and not self.codebook_weights[0]:
            weights = self.codebook_weights
            raise ConfigError(
                f"train.codebook_weights={weights}: the first not 0, it holds the EOS of speech."
            )
        if self.mask and self.prompt_weight >= 1:
            raise ConfigError(
                f"train.mask={self.mask} with train.prompt_weight={self.prompt_weight}: a prompt is known by "
                "a loss weight below 1. Lower train.prompt_weight, or leave train.mask out."
            )
        if self.history_mask and self.prompt_weight:
            raise ConfigError(
                f"train.history_mask={self.history_mask} with train.prompt_weight={self.prompt_weight} would "
                "also mask the speech of prompts. Set one of them to 0."
            )


@dataclass
class TrainCodecConfig(Section):
    KEY = "train_codec"

    steps: int = setting(14_000, "optimiser steps", at_least=1)
    autoencoder: float = setting(
        0.15,
        "share of the steps before the quantiser is trained",
        at_least=0,
        below=1,
        hint="the rest trains the quantiser",
    )
    batch: int = setting(8, "crops per step", at_least=1)
    seconds: float = setting(0.8, "length of a crop", above=0)
    lr: float = setting(1e-3, "peak learning rate of AdamW, decays to 0", above=0)
    filters: int = setting(16, "filters of EnCodec's first convolution", at_least=2)
    dimension: int = setting(128, "dimension of the latents", at_least=1)
    ratios: list[int] = setting(
        [4, 4, 5, 8], "strides of the decoder; their product is the hop in samples", at_least=1, at_most=10**6
    )
    sample_rate: int = setting(16_000, "Hz", at_least=1)
    codebooks: int = setting(
        4, "codebooks (residual quantisers); 1 with semantic: units alone, without sound", at_least=1
    )
    codes: int = setting(1024, "codes of a codebook, a power of 2", at_least=2)
    semantic: Literal["none", "whisper", "hubert"] = setting(
        "none",
        "the first codebook holds clusters of a speech encoder's states. whisper: Whisper tiny.en, which "
        "the extra `whisper` installs; hubert: HuBERT base of torchaudio, downloaded once",
    )
    semantic_layers: int | None = setting(
        None,
        "whisper: layers to use, of 4; hubert: layer whose states are taken, of 12; none: 4, or 9 of hubert",
        at_least=1,
    )
    semantic_ctc: int = setting(
        0,
        "steps in which a small head over the encoder learns units from which the letters of the transcripts "
        "can be read, by CTC. 0: no head; clusters of the encoder's states",
        at_least=0,
    )
    causal: bool = setting(False, "encoder and decoder without future samples")
    init: str | None = setting(
        None, "folder of a codec to start from, with its quantiser; none: random weights, then k-means"
    )
    decoder_only: bool = setting(
        False, "train the decoder of `init` alone: its codes, and what was trained on them, stay as they are"
    )
    out: str = setting("assets/codec", "output folder of the codec")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder_only and not self.init:
            raise ConfigError(
                "train_codec.decoder_only=true needs a codec whose codes stay: give train_codec.init=FOLDER."
            )
        if not self.ratios:
            raise ConfigError("train_codec.ratios=[]: a codec has at least one. Give the default [4,4,5,8].")
        if self.codes & (self.codes - 1):
            raise ConfigError(f"train_codec.codes={self.codes} is not a power of 2. Give one, such as 1024.")
        if self.seconds * self.sample_rate < 1:
            raise ConfigError(f"train_codec.seconds={self.seconds} must hold at least one sample.")
        hop = math.prod(self.ratios)
        frames = round(self.seconds * self.sample_rate / hop, 6)
        if self.semantic != "none" and frames != round(frames):
            near = max(1, round(frames)) * hop / self.sample_rate
            raise ConfigError(
                f"train_codec.seconds={self.seconds} is {frames:.2f} frames: with semantic units a crop is a "
                f"whole number of frames. Give {near:g}, for example."
            )
        if self.semantic_ctc and self.semantic == "none":
            raise ConfigError(
                f"train_codec.semantic_ctc={self.semantic_ctc} needs an encoder: give train_codec.semantic, "
                "or leave semantic_ctc out."
            )
        if self.layers > (most := SEMANTIC_LAYERS[self.semantic][0]):
            raise ConfigError(
                f"train_codec.semantic_layers={self.layers}: {self.semantic} has {most}. Give 1 to {most}."
            )

    @property
    def units_only(self) -> bool:
        """Whether the codec has no codebooks but that of the semantic units."""
        return self.codebooks == 1 and self.semantic != "none"

    @property
    def layers(self) -> int:
        """`semantic_layers`, or the usual choice; 0 without a semantic encoder."""
        usual = SEMANTIC_LAYERS[self.semantic][1]
        return usual and (self.semantic_layers or usual)
