"""`zipper train-codec`: train a small EnCodec on the training split of a corpus, and write it to
assets/codec."""

import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
import torchaudio
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from zipper.checkpoint_files import read_checkpoint
from zipper.codecs.codec import (
    SEMANTIC,
    SETTINGS,
    WEIGHTS,
    build_semantic,
    build_zipper_codec,
    load_zipper_codec,
    sha256,
)
from zipper.codecs.semantic import HOP, SAMPLE_RATE, SemanticEncoder, nearest
from zipper.codecs.whisper import whisper_encoder
from zipper.commit import commit
from zipper.config import RunConfig, TrainCodecConfig, asset, read_json
from zipper.corpora.utterance import Utterance, sentences_hash
from zipper.disk import check_writable
from zipper.distributed import AtomicCheckpointIO, check_trainer, one_device
from zipper.errors import ConfigError, DataError
from zipper.training.codebooks import CodebookLearner, k_means

GAIN = 10.0  # input scale: speech has an RMS near 0.05, the model's input near 0.5
WINDOWS = (128, 256, 512, 1024, 2048)  # samples
FLOOR = 1e-2  # added to mel energies before the logarithm, so that silence has a gradient
INITIAL_LATENTS = 32_768
FITTED_STATES, KMEANS_ROUNDS = 200_000, 20  # of the centroids of semantic units

Crop = tuple[Tensor, Tensor | None]  # waves float32 [B, n], multiplied by GAIN; semantic units int64 [B, F]


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

    def __init__(self, cfg: TrainCodecConfig, crops: "Crops") -> None:
        super().__init__()
        self.cfg, self.crops = cfg, crops
        self.model = build_zipper_codec(cfg)
        self.learner = CodebookLearner(self.model.quantizer)
        self.loss = SpectralLoss(cfg.sample_rate)
        self.quantise_from = int(cfg.steps * cfg.autoencoder)
        if cfg.init:
            self.quantise_from = 0
            self.model.load_state_dict(load_zipper_codec(asset(cfg.init)).model.state_dict())

    def training_step(self, batch: Crop, index: int) -> Tensor:
        wave, units = batch
        latents = self.model.encoder(wave[:, None])  # [B, D, F]
        commitment, variance = latents.new_zeros(()), latents.detach().var()
        if self.global_step >= self.quantise_from:
            # One step in four decodes from fewer codebooks, as in EnCodec (section 3.2).
            few = index % 4 == 0
            codebooks = 1 + (index // 4) % self.cfg.codebooks if few else self.cfg.codebooks
            latents, commitment = self.learner(latents, codebooks, units)
        out = self.model.decoder(latents)[:, 0, : wave.shape[-1]]
        spectral = self.loss(out, wave)
        self.log_dict(
            {"codec/spectral": spectral, "codec/commitment": commitment}, prog_bar=True, batch_size=len(wave)
        )
        # Relative to the variance of the latents, which the encoder would otherwise shrink.
        return spectral + 0.25 * commitment / variance

    def on_train_batch_start(self, batch: Crop, index: int) -> None:
        """Initialise the codebooks by k-means when the quantiser starts."""
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
        optimiser = torch.optim.AdamW(self.parameters(), self.cfg.lr, betas=(0.8, 0.99), weight_decay=0.0)

        def factor(step: int) -> float:
            return (
                min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * min(step / self.cfg.steps, 1.0)))
            )

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Crops(IterableDataset):
    """Random crops of a corpus that is kept in memory as int16: batches as a function of (seed, step).

    semantic: encoder whose units the crops have too; they then start at whole frames. If it has no centroids,
    they are fitted to the corpus.
    """

    def __init__(
        self,
        utterances: list[Utterance],
        cfg: TrainCodecConfig,
        seed: int,
        semantic: SemanticEncoder | None = None,
    ) -> None:
        self.cfg, self.seed, self.start = cfg, seed, 0
        self.length = int(cfg.seconds * cfg.sample_rate)
        waves = (u.wave(cfg.sample_rate) for u in tqdm(utterances, desc="read audio", mininterval=1.0))
        self.waves = [(w * 32767).round().to(torch.int16) for w in waves if len(w) > self.length]
        if not self.waves:
            raise DataError(f"No utterance is longer than train_codec.seconds={cfg.seconds}.")

        self.units: list[Tensor] = [] if semantic is None else fitted_units(semantic, self.waves, seed)

    def __iter__(self) -> Iterator[Crop]:
        return self.crops(self.seed, self.start)

    def crops(self, seed: int, start: int = 0) -> Iterator[Crop]:
        """Infinite batches from step `start` on."""
        hop = math.prod(self.cfg.ratios) if self.units else 1
        for step in itertools.count(start):
            draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
            rows, units = [], []
            for index in torch.randint(len(self.waves), (self.cfg.batch,), generator=draw).tolist():
                wave = self.waves[index]
                first = int(torch.randint(len(wave) - self.length, (1,), generator=draw)) // hop * hop
                rows.append(wave[first : first + self.length])
                if self.units:
                    units.append(self.units[index][first // hop :][: self.length // hop])
            yield torch.stack(rows).float() * (GAIN / 32767), torch.stack(units) if units else None


def fitted_units(semantic: SemanticEncoder, waves: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Units int64 [F] of each wave int16 [n]. Fits the centroids by k-means to a sample of all states first,
    unless they are known."""
    centroids, bar = semantic.get_buffer("centroids"), tqdm(waves, desc="semantic states", mininterval=1.0)
    states = (semantic.states(wave.float() / 32767) for wave in bar)
    if not centroids.any():
        kept = [one.half() for one in states]
        sample = torch.cat(kept)
        draw = torch.Generator().manual_seed(seed)
        sample = sample[torch.randperm(len(sample), generator=draw)[:FITTED_STATES]].float()
        centroids.copy_(k_means(sample, len(centroids), KMEANS_ROUNDS).half())  # as they will be saved
        states = (one.float() for one in kept)
    return [nearest(one, centroids) for one in states]


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
    if not mine.init:
        semantic_encoder(mine)
        return
    first = load_zipper_codec(asset(mine.init)).model.state_dict()
    shapes = {key: tensor.shape for key, tensor in build_zipper_codec(mine).state_dict().items()}
    if {key: tensor.shape for key, tensor in first.items()} != shapes:
        raise ConfigError(
            f"train_codec.init={mine.init} has another shape than this config. Give its filters, "
            "dimension, ratios, codebooks and codes, or leave init out."
        )
    shape = TrainCodecConfig(**read_json(asset(mine.init) / SETTINGS)["shape"])
    if (shape.semantic, shape.layers) != (mine.semantic, mine.layers):
        raise ConfigError(
            f"train_codec.init={mine.init} was trained with semantic={shape.semantic} "
            f"semantic_layers={shape.layers}, not {mine.semantic} and {mine.layers}. Give the same, or leave "
            "init out."
        )


def semantic_encoder(cfg: TrainCodecConfig) -> SemanticEncoder | None:
    """Encoder of the units of the first codebook: that of `init`, or a new one without centroids."""
    if cfg.init:
        return load_zipper_codec(asset(cfg.init)).semantic
    return whisper_encoder(cfg.layers, cfg.codes) if cfg.semantic == "whisper" else build_semantic(cfg)


def train_codec(cfg: RunConfig, utterances: list[Utterance], command: str) -> Path:
    """Train on the training split, and write weights, shape, hash, codebook usage and command."""
    if (cfg.run_dir / "finished").exists():
        raise ConfigError(f"{cfg.run_dir} holds a finished codec training. Choose another name (name=...).")
    started, code = time.monotonic(), commit()
    L.seed_everything(cfg.seed, verbose=False)
    train = [u for u in utterances if u.split == "train"]
    semantic = semantic_encoder(cfg.train_codec)
    crops = Crops(train, cfg.train_codec, cfg.seed, semantic)
    module = CodecModule(cfg.train_codec, crops)
    logger = L.pytorch.loggers.CSVLogger(cfg.run_dir.parent, name=cfg.name, version="")
    trainer = L.Trainer(
        max_steps=cfg.train_codec.steps,
        logger=logger,
        log_every_n_steps=50,
        callbacks=[ModelCheckpoint(cfg.run_dir, save_last=True, every_n_train_steps=1000, save_top_k=0)],
        accelerator=cfg.train.accelerator,
        devices=1,
        gradient_clip_val=1.0,
        plugins=[AtomicCheckpointIO()],
    )
    last = cfg.run_dir / "last.ckpt"  # an interrupted training resumes from it
    if last.exists():
        crops.start = read_checkpoint(last)["global_step"]
    path = last if last.exists() else None
    trainer.fit(module, DataLoader(crops, batch_size=None), ckpt_path=path, weights_only=True)
    folder = Path(cfg.train_codec.out)
    folder.mkdir(parents=True, exist_ok=True)
    model = module.model.cpu().eval()
    weights = model.state_dict()
    if semantic is not None:
        weights |= {f"{SEMANTIC}{key}": weight for key, weight in semantic.state_dict().items()}
    save_file({k: v.half().contiguous() for k, v in weights.items()}, folder / WEIGHTS)
    settings = {
        "shape": {key: value for key, value in asdict(cfg.train_codec).items() if key != "out"},
        "gain": GAIN,
        "sha256": sha256(folder / WEIGHTS),
        "semantic": semantic.teacher if semantic else None,
        "command": command,
        "commit": code,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "trained_on": sentences_hash(u.text or "" for u in train),
        "codebooks": usage(module),
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (cfg.run_dir / "finished").touch()
    return folder


@torch.no_grad()
def usage(module: CodecModule, batches: int = 200) -> list[dict[str, float]]:
    """Used codes of each codebook, and their entropy in bits (at most log2 of the codes)."""
    counts = torch.zeros(module.cfg.codebooks, module.cfg.codes)
    for _, (wave, units) in zip(range(batches), module.crops.crops(seed=module.cfg.steps + 1), strict=False):
        residual = module.model.encoder(wave[:, None]).transpose(1, 2).flatten(0, 1)
        for level, book in enumerate(module.learner.books):
            code = module.learner.code(level, residual, units)
            counts[level] += torch.bincount(code, minlength=module.cfg.codes)
            residual = residual - book.embed[code]
    share = counts / counts.sum(1, keepdim=True)
    entropy = -(share * share.clamp(min=1e-12).log2()).sum(1)
    return [
        {"used": int((row > 0).sum()), "entropy_bits": round(float(h), 2)}
        for row, h in zip(counts, entropy, strict=True)
    ]
