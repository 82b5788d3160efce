"""`zipper bench-saving`: overhead of fault tolerance in training."""

import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger

from reproduce.bench.record import record
from zipper.clock import Clock
from zipper.commit import commit
from zipper.config import RunConfig
from zipper.data.prepare import prepare
from zipper.data.statistics import measure_statistics
from zipper.distributed import AtomicCheckpointIO, check_trainer, encoding_settings, one_device
from zipper.models.resolve import resolve
from zipper.training.callbacks import GateMonitor, Spikes, Throughput
from zipper.training.checkpoints import Save
from zipper.training.data import ZipperData
from zipper.training.module import ZipperModule

BLOCK, BLOCKS = 100, 17  # steps per block, and number of blocks; the first is a warm-up


class Alternating(ZipperModule):
    """Alternates between blocks with checks of every step, and blocks with Lightning's plain clipping."""

    exact = True

    def configure_gradient_clipping(self, optimizer: Any, *settings: Any, **named: Any) -> None:
        if self.exact:
            super().configure_gradient_clipping(optimizer, *settings, **named)
        else:
            self.step_batches.clear()
            L.LightningModule.configure_gradient_clipping(self, optimizer, *settings, **named)


class Blocks(L.Callback):
    """Measures the seconds of each block, with its final checkpoint. Plain blocks call no other callback."""

    def __init__(self, inside: list[L.Callback]) -> None:
        self.inside, self.seconds = inside, list[float]()
        self.started = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for one in self.inside:
            one.on_train_start(trainer, module)

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int
    ) -> None:
        if index % BLOCK == 0:
            now = time.monotonic()
            if index:
                self.seconds.append(now - self.started)
            self.started = now
            assert isinstance(module, Alternating)
            module.exact = index // BLOCK % 2 == 0

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        assert isinstance(module, Alternating)
        for one in self.inside if module.exact else []:
            one.on_train_batch_end(trainer, module, outputs, batch, index)


def bench_saving(cfg: RunConfig, command: str) -> dict[str, Any]:
    """Compares alternating blocks of 100 training steps with and without fault tolerance.

    With it, each step is checked for finite values, signals and loss spikes, and the block ends with a
    checkpoint that is synced to disk.
    """
    code = commit()
    check_trainer(one_device(cfg.train))
    check_trainer(encoding_settings(cfg.train))
    dataset = prepare(cfg, Clock())
    cfg = resolve(cfg, dataset)
    L.seed_everything(cfg.seed, verbose=False)
    module = Alternating.of(cfg, measure_statistics(dataset))
    with tempfile.TemporaryDirectory() as folder:
        blocks = Blocks([Spikes(), Save(Path(folder), BLOCK, BLOCK * BLOCKS + 1, cfg.log.every)])
        trainer = L.Trainer(
            max_steps=BLOCK * BLOCKS + 1, gradient_clip_val=cfg.train.clip, limit_val_batches=0,
            accelerator=cfg.train.accelerator, devices=1, plugins=[AtomicCheckpointIO()],
            log_every_n_steps=cfg.log.every, logger=CSVLogger(folder), enable_checkpointing=False,
            callbacks=[GateMonitor(), Throughput(), TQDMProgressBar(refresh_rate=10), blocks],
            enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(module, ZipperData.of(cfg, dataset))
        size = (Path(folder) / "last.ckpt").stat().st_size
    exact, bare = (sum(blocks.seconds[start::2]) for start in (2, 1))  # equally many of both
    steps = BLOCK * (BLOCKS - 1) // 2
    print(f"speed with fault tolerance: {bare / exact:.3f} x")
    return record(cfg, "bench-saving", command, code, {
        "figures": {
            "exact": round(steps / exact, 3), "bare": round(steps / bare, 3), "ratio": round(bare / exact, 3),
        },
        "block_seconds": [round(one, 2) for one in blocks.seconds], "checkpoint_mb": round(size / 1e6, 1),
        "save_every": BLOCK, "data_fingerprint": dataset.fingerprint,
    })  # fmt: skip
