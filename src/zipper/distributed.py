"""Devices and processes: Lightning strategies, a check of Trainer settings, and work shared between ranks."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_only

from zipper.checkpoint_files import flush_folder, load_plain
from zipper.config import TrainConfig
from zipper.errors import ConfigError
from zipper.sharded import ShardedStrategy

A = TypeVar("A")
B = TypeVar("B")
# Settings of train.* that a Trainer may reject.
MACHINE = ("accelerator", "devices", "nodes", "strategy", "precision")


def first_process() -> bool:
    """True on rank 0, which writes files. Works before the process group exists."""
    return getattr(rank_zero_only, "rank", 0) == 0


def in_group() -> bool:
    """True in a process group."""
    return dist.is_available() and dist.is_initialized()


def map_over_ranks(rows: Sequence[A], work: Callable[[list[A]], list[B]]) -> list[B]:
    """Outputs of `work`, one for each row, in the order of the rows.

    Each rank of a process group computes a share, and all ranks receive all outputs. Without a process group
    the calling process computes everything.
    """
    if not in_group():
        return work(list(rows))
    rank, ranks = dist.get_rank(), dist.get_world_size()
    shares: list[list[B]] = [[] for _ in range(ranks)]
    dist.all_gather_object(shares, work(list(rows[rank::ranks])))
    return [shares[i % ranks][i // ranks] for i in range(len(rows))]


def leave_group() -> None:
    """Destroys the process group that encoded a corpus. All ranks must call it."""
    if in_group():
        dist.destroy_process_group()


def strategy(train: TrainConfig) -> Strategy | str:
    """Lightning strategy of a training.

    `fsdp2` shards parameters, frozen and trained, gradients and optimiser states over all devices, and
    checkpoints; any other name is passed to Lightning.
    """
    return ShardedStrategy(train.devices * train.nodes) if train.strategy == "fsdp2" else train.strategy


def lightning_precision(train: TrainConfig) -> Any:
    """Precision that Lightning knows: None for our own, which is a plugin."""
    return None if train.precision == "bf16-products" else train.precision


def encoding_settings(train: TrainConfig) -> TrainConfig:
    """Settings for encoding a corpus: the same devices, one process each."""
    several = train.devices * train.nodes > 1
    return replace(train, strategy="ddp" if several else "auto", precision="32-true")


def one_device(train: TrainConfig) -> TrainConfig:
    """Settings for codec training and benchmarks, which use one device."""
    return replace(train, devices=1, nodes=1, strategy="auto", precision="32-true")


def check_trainer(train: TrainConfig) -> None:
    """Raises ConfigError if Lightning rejects these settings or the SLURM job.

    Creates a Trainer and discards it, so that the error comes before any work and not after encoding.
    """
    with trainer_errors(train):
        _try(train)


@contextmanager
def trainer_errors(train: TrainConfig) -> Iterator[None]:
    """Converts a Lightning error into a ConfigError that names the settings at fault."""
    try:
        yield
    except Exception as error:  # Lightning raises many types, also ImportError
        why = shorten(" ".join(str(error).split()), 300, placeholder=" ...")
        if "SLURM" in why:
            raise ConfigError(
                f"train.devices={train.devices}, train.nodes={train.nodes} does not fit the SLURM job: {why} "
                "Change that #SBATCH line, or these settings."
            ) from error
        plain = TrainConfig()
        custom = [key for key in MACHINE if getattr(train, key) != getattr(plain, key)]
        guilty = [key for key in custom if _works(replace(train, **{key: getattr(plain, key)}))]
        named, defaults = (
            ", ".join(f"train.{key}={getattr(cfg, key)}" for key in guilty or custom or MACHINE)
            for cfg in (train, plain)
        )
        raise ConfigError(
            f"{named} does not work here: {why} Change it; the default is {defaults}."
        ) from error


def _works(train: TrainConfig) -> bool:
    try:
        _try(train)
    except Exception:
        return False
    return True


def _try(train: TrainConfig) -> None:
    """Creates a Trainer without its log messages; raises what Lightning raises."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = L.Trainer(
                accelerator=train.accelerator,
                devices=train.devices,
                num_nodes=train.nodes,
                strategy=strategy(train),
                precision=lightning_precision(train),
                plugins=[TorchCheckpointIO()],  # stands for AtomicCheckpointIO, which some strategies reject
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
    finally:
        log.setLevel(level)
    device = trainer.strategy.root_device.type
    if train.precision == "bf16-products" and device != "cpu":
        raise RuntimeError(f"it is for CPUs, and the Trainer runs on {device}: use bf16-mixed.")
    if environment := getattr(trainer.strategy, "cluster_environment", None):
        environment.validate_settings(num_devices=train.devices, num_nodes=train.nodes)
    elif (tasks := _srun_tasks()) > 1:  # Lightning does not check a single device
        raise ValueError(
            f"srun has started {tasks} SLURM tasks, and each would do all of the work: --ntasks-per-node "
            f"must be 1, or train.devices * train.nodes must be {tasks}."
        )


def _srun_tasks() -> int:
    """Number of processes that srun has started, including this one.

    Not SLURM_NTASKS alone: a job may allow more tasks than its script or notebook starts.
    """
    job = os.environ.get("SLURM_NTASKS") if "SLURM_STEP_ID" in os.environ else None
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or job or 1)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, and reads them as tensors and plain values only.

    A checkpoint is written to a temporary file, synced to disk, and renamed.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Raises OSError on a full disk, and leaves no partial file."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f"{file.name}.{os.getpid()}.part")
        try:
            with aside.open("wb") as out:
                torch.save(checkpoint, out)
                out.flush()
                os.fsync(out.fileno())
            aside.replace(file)
        except RuntimeError as error:  # torch raises it when it closes a file that it failed to write
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        finally:
            aside.unlink(missing_ok=True)
        flush_folder(file.parent)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Loads tensors and plain values only, whatever `weights_only`. Raises DataError as `load_plain`."""
        return load_plain(Path(path), mmap=False)
