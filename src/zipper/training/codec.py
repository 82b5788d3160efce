"""`zipper train-codec`: train a small EnCodec on the training split of a corpus, and write it to
assets/codec."""

import json
import math
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning as L
import torch
import torch.nn.functional as F
import torchaudio
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zipper.checkpoint_files import LAST, read_checkpoint
from zipper.codecs.codec import (
    SETTINGS,
    WEIGHTS,
    Codec,
    SemanticUnits,
    build_semantic,
    build_zipper_codec,
    load_zipper_codec,
    save_codec_weights,
)
from zipper.codecs.semantic import HOP, SAMPLE_RATE, SemanticEncoder
from zipper.commit import commit
from zipper.config import RunConfig, TrainCodecConfig, asset, read_json
from zipper.corpora.utterance import Utterance, sentences_hash
from zipper.disk import check_writable
from zipper.distributed import AtomicCheckpointIO, check_trainer, one_device
from zipper.errors import ConfigError, check_finite
from zipper.hashes import sha256
from zipper.run_folder import claim_run_dir, hold_run_dir
from zipper.training.checkpoints import Save
from zipper.training.codebooks import CodebookLearner
from zipper.training.crops import GAIN, Crop, Crops
from zipper.training.semantic import step_seed
from zipper.weight_files import load_state

WINDOWS = (128, 256, 512, 1024, 2048)  # samples
FLOOR = 1e-2  # added to mel energies before the logarithm, so that silence has a gradient
INITIAL_LATENTS = 32_768
SAVE_EVERY, LOG_EVERY = 200, 50  # steps


class SpectralLoss(nn.Module):
    """L1 of log-mel spectrograms plus 0.2 L1 of mel magnitudes, summed over window lengths."""

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.mels = nn.ModuleList(
            torchaudio.transforms.MelSpectrogram(
                sample_rate,
                n_fft=window,
                hop_length=window // 4,
                n_mels=max(8, min(64, window // 16)),
                power=1,
            )
            for window in WINDOWS
        )

    def forward(self, wave: Tensor, target: Tensor) -> Tensor:
        """wave, target [B, n] -> []"""
        loss = wave.new_zeros(())
        for window, mel in zip(WINDOWS, self.mels, strict=True):
            a, b = mel(wave) / window**0.5, mel(target) / window**0.5
            loss = loss + F.l1_loss((a + FLOOR).log(), (b + FLOOR).log()) + 0.2 * F.l1_loss(a, b)
        return loss


class CodecModule(L.LightningModule):
    """Trains encoder and decoder as an autoencoder, then with the quantiser between them."""

    def __init__(self, cfg: TrainCodecConfig, crops: Crops) -> None:
        super().__init__()
        self.cfg, self.crops = cfg, crops
        self.model = build_zipper_codec(cfg)
        self.learner = CodebookLearner(self.model.quantizer)
        self.loss = SpectralLoss(cfg.sample_rate)
        self.quantise_from = int(cfg.steps * cfg.autoencoder)
        if cfg.init:
            self.quantise_from = 0
            self.model.load_state_dict(load_zipper_codec(asset(cfg.init)).model.state_dict())
        self.model.encoder.requires_grad_(not cfg.decoder_only)

    def training_step(self, batch: Crop, index: int) -> Tensor:
        wave, units = batch
        latents = self.model.encoder(wave[:, None])  # [B, D, F]
        commitment, variance = latents.new_zeros(()), latents.detach().var()
        if self.global_step >= self.quantise_from:
            # One step in four decodes from fewer codebooks, as in EnCodec (section 3.2).
            few = index % 4 == 0
            codebooks = 1 + (index // 4) % self.cfg.codebooks if few else self.cfg.codebooks
            self.learner.train(not self.cfg.decoder_only)
            latents, commitment = self.learner(latents, codebooks, units)
        out = self.model.decoder(latents)[:, 0, : wave.shape[-1]]
        spectral = self.loss(out, wave)
        self.log_dict(
            {"codec/spectral": spectral, "codec/commitment": commitment}, prog_bar=True, batch_size=len(wave)
        )
        check_finite(float(spectral.detach()), self.global_step, self.cfg.lr)
        # Relative to the variance of the latents, which the encoder would otherwise shrink.
        return spectral + 0.25 * commitment / variance

    def on_train_batch_start(self, batch: Crop, index: int) -> None:
        """Seed what a step draws; initialise the codebooks by k-means when the quantiser starts."""
        torch.manual_seed(step_seed(self.crops.seed, self.global_step))
        if self.global_step == self.quantise_from and not self.cfg.init:
            loader = self.crops.crops(seed=self.cfg.steps)
            rows: list[Tensor] = []
            given: list[Tensor] = []
            with torch.no_grad():
                while sum(map(len, rows)) < INITIAL_LATENTS:
                    wave, units = next(loader)
                    encoded = self.model.encoder(wave.to(self.device)[:, None])
                    rows.append(encoded.transpose(1, 2).flatten(0, 1))
                    given += [] if units is None else [units.flatten().to(self.device)]
            self.learner.initialise(torch.cat(rows), torch.cat(given) if given else None)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        learnt = (self.model.decoder if self.cfg.decoder_only else self).parameters()
        optimiser = torch.optim.AdamW(learnt, self.cfg.lr, betas=(0.8, 0.99), weight_decay=0.0)

        def factor(step: int) -> float:
            return (
                min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * min(step / self.cfg.steps, 1.0)))
            )

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def check_codec_training(cfg: RunConfig) -> None:
    """Check the settings before any audio is read. Raises DataError if the codec cannot be written, or `init`
    or the semantic encoder cannot be loaded; ConfigError if `init` has another shape, or the encoder needs a
    package."""
    mine = cfg.train_codec
    check_trainer(one_device(cfg.train))
    check_writable(Path(mine.out), 0, f"train_codec.out={mine.out}", "train_codec.out=FOLDER")
    if mine.semantic != "none" and (mine.sample_rate, math.prod(mine.ratios)) != (SAMPLE_RATE, HOP):
        raise ConfigError(
            f"train_codec.semantic={mine.semantic} has {SAMPLE_RATE // HOP} units a second: it needs "
            f"sample_rate={SAMPLE_RATE} and ratios whose product is {HOP}, not {mine.ratios}."
        )
    if not mine.units_only and mine.seconds * mine.sample_rate <= WINDOWS[-1] / 2:
        raise ConfigError(
            f"train_codec.seconds={mine.seconds:g} is too short for the loss, whose windows have "
            f"{WINDOWS[-1]} samples. Give more than {WINDOWS[-1] / 2 / mine.sample_rate:.3g}."
        )
    if not mine.init:
        semantic_encoder(mine)
        return
    if mine.units_only:
        raise ConfigError(f"train_codec.init={mine.init}: units alone are not trained further. Leave it out.")
    codec = load_zipper_codec(asset(mine.init))
    if isinstance(codec, SemanticUnits):
        raise ConfigError(f"train_codec.init={mine.init} has semantic units alone. Leave it out.")
    first = codec.model.state_dict()
    shapes = {key: tensor.shape for key, tensor in build_zipper_codec(mine).state_dict().items()}
    if {key: tensor.shape for key, tensor in first.items()} != shapes:
        raise ConfigError(
            f"train_codec.init={mine.init} has another shape than this config. Give its filters, "
            "dimension, ratios, codebooks and codes, or leave init out."
        )
    shape = TrainCodecConfig(**read_json(asset(mine.init) / SETTINGS)["shape"])
    theirs, ours = (  # what the codes depend on, though no shape of a weight does
        f"sample_rate={one.sample_rate} causal={one.causal} semantic={one.semantic} "
        f"semantic_layers={one.layers} semantic_ctc={one.semantic_ctc}"
        for one in (shape, mine)
    )
    if theirs != ours:
        raise ConfigError(
            f"train_codec.init={mine.init} was trained with {theirs}, not {ours}. Give the same, or "
            "leave init out."
        )
    if Path(mine.out).resolve() == asset(mine.init).resolve():
        raise ConfigError(f"train_codec.out={mine.out} is the folder of train_codec.init. Give another one.")
    if mine.decoder_only and not _kept_exactly(codec, cfg.export_bits):
        exact = [bits for bits in (16, 8) if _kept_exactly(codec, bits)]
        raise ConfigError(
            f"train_codec.decoder_only=true: export_bits={cfg.export_bits} would round the encoder of "
            f"{mine.init} once more, and change its codes. "
            + (f"Give export_bits={exact[0]}." if exact else "Leave decoder_only out.")
        )


def _kept_exactly(codec: Codec, bits: int) -> bool:
    """Whether a file of weights in so many bits holds the encoder and the codebooks as they are."""
    with TemporaryDirectory() as folder:
        save_codec_weights(Path(folder), codec.model, None, bits)
        kept = load_state(Path(folder) / WEIGHTS)
    first = codec.model.state_dict()
    return all(torch.equal(kept[name], first[name]) for name in kept if not name.startswith("decoder."))


def semantic_encoder(cfg: TrainCodecConfig) -> SemanticEncoder | None:
    """Encoder of the units of the first codebook: that of `init`, or a new one without centroids."""
    if cfg.init:
        return load_zipper_codec(asset(cfg.init)).semantic
    return build_semantic(cfg)


def train_codec(cfg: RunConfig, utterances: list[Utterance], command: str) -> Path:
    """Train on the training split, and write weights, shape, hash, codebook usage and command.

    Raises ConfigError if the run folder holds a finished training or one of another config, or if another
    process uses it.
    """
    if (cfg.run_dir / "finished").exists():
        raise ConfigError(f"{cfg.run_dir} holds a finished codec training. Choose another name (name=...).")
    with hold_run_dir(cfg):
        claim_run_dir(cfg)
        return _train(cfg, utterances, command)


def _train(cfg: RunConfig, utterances: list[Utterance], command: str) -> Path:
    started, code = time.monotonic(), commit()
    L.seed_everything(cfg.seed, verbose=False)
    train = [u for u in utterances if u.split == "train"]
    semantic, first = semantic_encoder(cfg.train_codec), cfg.train_codec.init
    coder = load_zipper_codec(asset(first)).coder if cfg.train_codec.decoder_only and first else None
    crops = Crops(train, cfg.train_codec, cfg.seed, semantic, cfg.run_dir)
    module = None if cfg.train_codec.units_only else fit(cfg, crops)
    folder = Path(cfg.train_codec.out)
    folder.mkdir(parents=True, exist_ok=True)
    model = module and module.model.cpu().eval()
    save_codec_weights(folder, model, semantic, cfg.export_bits)
    settings = {
        "shape": {key: value for key, value in asdict(cfg.train_codec).items() if key != "out"},
        "gain": GAIN,
        "sha256": sha256(folder / WEIGHTS),
        "coder": coder,
        "semantic": semantic.teacher if semantic else None,
        "command": command,
        "commit": code,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "trained_on": sentences_hash(u.text or "" for u in train),
        "codebooks": usage(crops, module),
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (cfg.run_dir / "finished").touch()
    return folder


def fit(cfg: RunConfig, crops: Crops) -> CodecModule:
    """Train encoder, decoder and codebooks, from the last checkpoint of an interrupted training."""
    torch.manual_seed(cfg.seed)  # whether the semantic units were fitted just now or read from a file
    module = CodecModule(cfg.train_codec, crops)
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # it holds config.yaml
    logger = L.pytorch.loggers.CSVLogger(cfg.run_dir.parent, name=cfg.name, version="")
    trainer = L.Trainer(
        max_steps=cfg.train_codec.steps,
        logger=logger,
        log_every_n_steps=LOG_EVERY,
        callbacks=[Save(cfg.run_dir, SAVE_EVERY, cfg.train_codec.steps + 1, LOG_EVERY)],  # no validation
        accelerator=cfg.train.accelerator,
        devices=1,
        gradient_clip_val=1.0,
        plugins=[AtomicCheckpointIO()],
    )
    last = cfg.run_dir / LAST  # an interrupted training resumes from it
    if last.exists():
        saved = read_checkpoint(last)
        crops.start = saved["global_step"]
        fixed = {k: w for k, w in module.state_dict().items() if not k.startswith("model.decoder.")}
        if cfg.train_codec.decoder_only and not all(
            torch.equal(saved["state_dict"][key], weight) for key, weight in fixed.items()
        ):
            raise ConfigError(
                f"{last} is of a training from another codec than train_codec.init={cfg.train_codec.init}. "
                "Choose another name (name=...)."
            )
    path = last if last.exists() else None
    trainer.fit(module, DataLoader(crops, batch_size=None), ckpt_path=path, weights_only=True)
    return module


@torch.no_grad()
def usage(crops: Crops, module: CodecModule | None, batches: int = 200) -> list[dict[str, float]]:
    """Used codes of each codebook, and their entropy in bits (at most log2 of the codes). module: None for
    units alone."""
    counts = torch.zeros(crops.cfg.codebooks, crops.cfg.codes)
    for _, (wave, units) in zip(range(batches), crops.crops(seed=crops.cfg.steps + 1), strict=False):
        if module is None:
            assert units is not None
            counts[0] += torch.bincount(units.flatten(), minlength=crops.cfg.codes)
            continue
        residual = module.model.encoder(wave[:, None]).transpose(1, 2).flatten(0, 1)
        for level, book in enumerate(module.learner.books):
            code = module.learner.code(level, residual, units)
            counts[level] += torch.bincount(code, minlength=crops.cfg.codes)
            residual = residual - book.embed[code]
    share = counts / counts.sum(1, keepdim=True)
    entropy = -(share * share.clamp(min=1e-12).log2()).sum(1)
    return [
        {"used": int((row > 0).sum()), "entropy_bits": round(float(h), 2)}
        for row, h in zip(counts, entropy, strict=True)
    ]
