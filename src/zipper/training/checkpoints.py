"""Checkpoints: written atomically, last and best; signals are handled at the next step.

A checkpoint is a zip file. Its directory is written last, so a truncated file has none, and every tensor has
a checksum.
"""

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from zipper.checkpoint_files import BEST, LAST, PREVIOUS, link_checkpoint
from zipper.stop import SignalFlag, Stopped


class Save(Checkpoint):
    """Saves last.ckpt every `every` steps, after each validation and at the end, and keeps the previous one.
    Handles a signal at the next step. A validation that is due or running finishes first."""

    def __init__(self, folder: Path, every: int, validate_every: int, log_every: int) -> None:
        """every, validate_every, log_every: in steps."""
        self.folder, self.every, self.validate_every = folder, every, validate_every
        self.log_every = log_every
        self.signal = SignalFlag()
        self.group: dist.ProcessGroup | None = None  # of CPUs, so that no GPU waits for it

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.signal.listen()
        if trainer.world_size > 1:
            self.group = dist.new_group(backend="gloo")

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        step = trainer.global_step
        if (index + 1) % trainer.accumulate_grad_batches or step % self.validate_every == 0:
            return
        signal = self._received_signal()
        if signal or step % self.every == 0 or step == trainer.max_steps:
            if step % self.log_every == 0:  # Lightning logs later, and the run may stop here
                metrics = {k: float(v) for k, v in trainer.logged_metrics.items() if k.startswith("train/")}
                for logger in trainer.loggers:
                    logger.log_metrics(metrics, step=step - 1)
            self._save(trainer)
        self._stop(signal)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Runs after ModelCheckpoint, whose state belongs to the checkpoint."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._save(trainer)
        if trainer.global_step < trainer.max_steps:
            self._stop(self._received_signal())

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Handle a signal of the last step or its validation."""
        self._stop(self._received_signal())

    def _received_signal(self) -> int:
        """Number of the signal that any process has received, 0 if none. All ranks get the same number."""
        if self.group is None:
            return self.signal.number
        number = torch.tensor(self.signal.number)
        dist.all_reduce(number, dist.ReduceOp.MAX, self.group)
        return int(number)

    def _save(self, trainer: L.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # metrics up to this step belong to the checkpoint
        last = self.folder / LAST
        if trainer.is_global_zero and last.exists():
            link_checkpoint(last, self.folder / PREVIOUS)
        trainer.save_checkpoint(last)

    def _stop(self, signal: int) -> None:
        if signal:
            raise Stopped(signal)


class Best(ModelCheckpoint):
    """Saves best.ckpt, by the lowest value of a metric. Paths in its state follow the folder when it is
    moved."""

    def __init__(self, folder: Path, monitor: str) -> None:
        super().__init__(folder, Path(BEST).stem, monitor, enable_version_counter=False)

    @property
    def state_key(self) -> str:
        return super().state_key.replace(type(self).__qualname__, "ModelCheckpoint", 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return os.path.join(self.dirpath or "", os.path.basename(path)) if path else path

        paths = {key: here(state_dict.get(key, "")) for key in ("best_model_path", "kth_best_model_path")}
        kept = {here(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": kept, "dirpath": self.dirpath})
