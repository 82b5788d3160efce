"""Checkpoints that are whole or absent, when they are written, and which of them a run goes on from.

A checkpoint is a zip file: its directory is written last, so that one that was cut off has none, and every
tensor stands beside its checksum.
"""

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from zipper.checkpoint_files import link_checkpoint
from zipper.stop import SignalFlag, Stopped

LAST, PREVIOUS, BEST = "last.ckpt", "last-before.ckpt", "best.ckpt"
RUN = ("_instantiator", "_class_path")  # hyperparameters whose code Lightning imports and calls


class Save(Checkpoint):
    """last.ckpt every so many steps and after each validation, the one before it kept; and a signal handled
    at the next step. A validation that is due, or has begun, is finished first: it belongs to its step."""

    def __init__(self, folder: Path, every: int, validate_every: int, log_every: int) -> None:
        """every, validate_every, log_every: steps."""
        self.folder, self.every, self.validate_every = folder, every, validate_every
        self.log_every = log_every
        self.asked = SignalFlag()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.asked.listen()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        step = trainer.global_step
        if (index + 1) % trainer.accumulate_grad_batches or step % self.validate_every == 0:
            return
        asked = self._heard(trainer)
        if asked or step % self.every == 0:
            if step % self.log_every == 0:  # Lightning logs after this, and a run may end before
                metrics = {k: float(v) for k, v in trainer.logged_metrics.items() if k.startswith("train/")}
                for logger in trainer.loggers:
                    logger.log_metrics(metrics, step=step - 1)
            self._save(trainer)
        self._stop(asked)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """After ModelCheckpoint, whose state belongs to what is saved."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._save(trainer)
        if trainer.global_step < trainer.max_steps:
            self._stop(self._heard(trainer))

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """What was asked during the last step, or its validation."""
        self._stop(self._heard(trainer))

    def _heard(self, trainer: L.Trainer) -> int:
        """The number of the signal that some process has got, 0 if none: all must agree."""
        if trainer.world_size == 1:
            return self.asked.number
        number = torch.tensor(self.asked.number, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(number, reduce_op="max"))

    def _save(self, trainer: L.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # the metrics up to here belong to the checkpoint
        last = self.folder / LAST
        if trainer.is_global_zero and last.exists():
            link_checkpoint(last, self.folder / PREVIOUS)
        trainer.save_checkpoint(last)

    def _stop(self, asked: int) -> None:
        if asked:
            raise Stopped(asked)


class Best(ModelCheckpoint):
    """best.ckpt, by the lowest of a metric. Its state is that of the folder it is in, wherever that was
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
