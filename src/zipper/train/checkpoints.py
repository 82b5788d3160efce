"""Checkpoints that are whole or absent, when they are written, and which of them a run goes on from.

A checkpoint is a zip file: its directory is written last, so that one that was cut off has none, and every
tensor stands beside its checksum.
"""

import errno
import os
import re
import shutil
import struct
import zlib
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from zipper.errors import DataError
from zipper.stop import Request, Stopped
from zipper.train.engine import first_process

LAST, BEFORE, BEST = "last.ckpt", "last-before.ckpt", "best.ckpt"
RUN = ("_instantiator", "_class_path")  # hyperparameters whose code Lightning imports and calls


class WholeFiles(TorchCheckpointIO):
    """Written aside, flushed to the disk, renamed: what stood there is replaced by a whole file or not at
    all. Read as tensors and plain values alone, whatever file Lightning has chosen."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Raises OSError on a full disk, and leaves nothing of the new file."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f"{file.name}.{os.getpid()}.part")
        try:
            with aside.open("wb") as out:
                torch.save(checkpoint, out)
                out.flush()
                os.fsync(out.fileno())
            aside.replace(file)
        except RuntimeError as error:  # torch, at the end of a file that could not be written
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        finally:
            aside.unlink(missing_ok=True)
        flush_folder(file.parent)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Raises DataError as `read_checkpoint`, whatever is asked for."""
        return _plain_values(Path(path), mmap=False)


class Save(Checkpoint):
    """last.ckpt every so many steps and after each validation, the one before it kept; and a signal heeded
    at the next step. A validation that is due, or has begun, is finished first: it belongs to its step."""

    def __init__(self, folder: Path, every: int, validate_every: int, log_every: int) -> None:
        """every, validate_every, log_every: steps."""
        self.folder, self.every, self.validate_every = folder, every, validate_every
        self.log_every = log_every
        self.asked = Request()

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
            keep(last, self.folder / BEFORE)
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


def keep(file: Path, name: Path) -> None:
    """A second name for a file, in place of what had it: `file` itself never vanishes."""
    aside = name.with_name(f"{name.name}.{os.getpid()}.part")
    aside.unlink(missing_ok=True)
    try:
        os.link(file, aside)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, aside)
    aside.replace(name)
    aside.unlink(missing_ok=True)  # two names of one file already: replacing does nothing


def newest(run: Path) -> Path | None:
    """The checkpoint with the most steps that is whole, and whose best one is there as well; None: start
    anew. What is damaged is set aside as *.damaged, and said."""
    folder = run / "checkpoints"
    found: dict[str, tuple[int, float | None]] = {}  # steps, and the best score known
    for name in (LAST, BEFORE, BEST):
        file = folder / name
        if not file.exists():
            continue
        if why := flaw(file):
            if first_process():
                file.replace(file.with_name(f"{name}.damaged"))
                print(f"{file} is damaged ({why}): set aside as {name}.damaged")
            continue
        saved = read_checkpoint(file)
        found[name] = (saved["global_step"], _best_score(saved))
    best = found.get(BEST)
    newest_first = sorted(found, key=lambda name: found[name][0], reverse=True)
    chosen = next((name for name in newest_first if _fits(found[name], best)), None)
    if newest_first and chosen != newest_first[0]:
        where = f"step {found[chosen][0]}" if chosen else "the start"
        print(f"{folder / BEST} is gone: going on from {where}, so that it is made again")
    return folder / chosen if chosen else None


def _fits(one: tuple[int, float | None], best: tuple[int, float | None] | None) -> bool:
    """Whether the best checkpoint that this one knows of is the one there, or comes after it once more."""
    step, score = one
    return score is None or (best is not None and (best[1] == score or best[0] > step))


def _best_score(saved: dict[str, Any]) -> float | None:
    scores = [
        state["best_model_score"]
        for name, state in saved.get("callbacks", {}).items()
        if name.startswith("ModelCheckpoint") and state.get("best_model_score") is not None
    ]
    return float(scores[0]) if scores else None


def read_checkpoint(file: Path) -> dict[str, Any]:
    """All of a checkpoint, its tensors left on the disk until they are looked at. Raises DataError where it
    is damaged, or holds what could run code: anything but tensors and plain values, or a hyperparameter that
    names code."""
    if why := flaw(file):
        raise DataError(
            f"{file} is damaged ({why}). Restore it, take another one (evaluate.checkpoint), or train again "
            "under another name."
        )
    return _plain_values(file, mmap=True)


def _plain_values(file: Path, mmap: bool) -> dict[str, Any]:
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
        what = f"more than tensors and plain values ({found[1] if found else 'a pickle'})"
    else:
        if not isinstance(saved, dict):
            raise DataError(f"{file} is no checkpoint: it holds no dict. Train again under another name.")
        parts = {key: value for key, value in saved.items() if key not in ("state_dict", "optimizer_states")}
        if not (named := _code_named(parts)):
            return saved
        what = f"the hyperparameter {named}, which names code to run"
    raise DataError(
        f"{file} holds {what}: it is not read, since it could run anything. Train again, or take a model in "
        "safetensors (export=...)."
    )


def _code_named(values: Any) -> str | None:
    """The first of RUN, with its value, at any depth."""
    if isinstance(values, list | tuple):
        return next(filter(None, map(_code_named, values)), None)
    if not isinstance(values, dict):
        return None
    here = (f"{key}={values[key]}" for key in RUN if key in values)
    return next(here, None) or _code_named([*values.values()])


def flaw(file: Path) -> str | None:
    """Why a checkpoint cannot be read, None if it can. Reads all of it."""
    try:
        with ZipFile(file) as parts:
            damaged = parts.testzip()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL):  # EINVAL: a directory that points before the file
            raise  # a disk that cannot be read now is no damage
        return f"{type(error).__name__}: {error}"
    except (BadZipFile, EOFError, LookupError, RuntimeError, ValueError, struct.error, zlib.error) as error:
        return f"{type(error).__name__}: {error}"  # whatever a flipped bit makes of the directory
    return f"the checksum of {damaged} is wrong" if damaged else None


def flush_folder(folder: Path) -> None:
    """So that a rename outlives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
