"""Devices and processes: Lightning's strategies, the settings that a Trainer accepts, and work divided over
a group of processes."""

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
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_only

from zipper.checkpoint_files import flush_folder, load_plain
from zipper.config import TrainConfig
from zipper.errors import ConfigError

A = TypeVar("A")
B = TypeVar("B")
MACHINE = ("accelerator", "devices", "nodes", "strategy", "precision")  # settings that a Trainer may refuse


def first_process() -> bool:
    """Whether this one writes. Several may ask at once, before a group of them exists."""
    return getattr(rank_zero_only, "rank", 0) == 0


def map_over_ranks(rows: Sequence[A], work: Callable[[list[A]], list[B]]) -> list[B]:
    """What `work` makes of rows, one of each, in their order. Processes of one group take a share each, and
    all get all of it; without a group, the one that is there does the work."""
    if not dist.is_available() or not dist.is_initialized():
        return work(list(rows))
    rank, ranks = dist.get_rank(), dist.get_world_size()
    shares: list[list[B]] = [[] for _ in range(ranks)]
    dist.all_gather_object(shares, work(list(rows[rank::ranks])))
    return [shares[i % ranks][i // ranks] for i in range(len(rows))]


def leave_group() -> None:
    """Ends the group of processes that has encoded a corpus: from now on each is by itself. All must call
    it."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def strategy(train: TrainConfig) -> Strategy | str:
    """`fsdp2` shards parameters, gradients and optimiser over all devices, frozen and trained ones alike;
    any other name is Lightning's own. Checkpoints are whole whatever it is."""
    if train.strategy != "fsdp2":
        return train.strategy
    return ModelParallelStrategy(
        data_parallel_size=train.devices * train.nodes,
        tensor_parallel_size=1,
        save_distributed_checkpoint=False,
    )


def encoding_settings(train: TrainConfig) -> TrainConfig:
    """What encoding a corpus runs on: the same devices, each for itself."""
    several = train.devices * train.nodes > 1
    return replace(train, strategy="ddp" if several else "auto", precision="32-true")


def one_device(train: TrainConfig) -> TrainConfig:
    """What a training runs on that knows no other: the codec's, and a bench."""
    return replace(train, devices=1, nodes=1, strategy="auto", precision="32-true")


def check_trainer(train: TrainConfig) -> None:
    """Raises ConfigError where Lightning would refuse these settings, or what SLURM says of the job, once
    all is encoded and the run folder is made: a Trainer is made of them now, and thrown away."""
    with trainer_errors(train):
        _try(train)


@contextmanager
def trainer_errors(train: TrainConfig) -> Iterator[None]:
    """What Lightning says against a Trainer of these settings becomes a ConfigError that names the guilty."""
    try:
        yield
    except Exception as error:  # of a dozen kinds, ImportError of what is not installed among them
        why = shorten(" ".join(str(error).split()), 300, placeholder=" ...")
        if "SLURM" in why:
            asked = f"train.devices={train.devices}, train.nodes={train.nodes}"
            raise ConfigError(
                f"{asked} does not fit the SLURM job: {why} Change that #SBATCH line, or these settings."
            ) from error
        plain = TrainConfig()
        changed = [key for key in MACHINE if getattr(train, key) != getattr(plain, key)]
        guilty = [key for key in changed if _works(replace(train, **{key: getattr(plain, key)}))]
        named = ", ".join(f"train.{key}={getattr(train, key)}" for key in guilty or changed or MACHINE)
        mended = ", ".join(f"train.{key}={getattr(plain, key)}" for key in guilty or changed or MACHINE)
        raise ConfigError(f"{named} cannot be had here: {why} Change it; the default is {mended}.") from error


def _works(train: TrainConfig) -> bool:
    try:
        _try(train)
    except Exception:  # of as many kinds as in `trainer_errors`
        return False
    return True


def _try(train: TrainConfig) -> None:
    """Makes a Trainer, without its banner."""
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
                precision=train.precision,
                plugins=[TorchCheckpointIO()],  # as AtomicCheckpointIO, which some strategies do not take
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
    finally:
        log.setLevel(level)
    if environment := getattr(trainer.strategy, "cluster_environment", None):
        environment.validate_settings(num_devices=train.devices, num_nodes=train.nodes)
    elif (tasks := _srun_tasks()) > 1:  # a single device, of which Lightning asks nothing
        raise ValueError(
            f"srun has started {tasks} tasks of SLURM, each of which would do all of the work: "
            f"--ntasks-per-node must be 1, or train.devices and train.nodes make up {tasks}."
        )


def _srun_tasks() -> int:
    """How many processes srun has started, this one included. A job may have room for more
    tasks (SLURM_NTASKS) than its script, or a notebook, starts."""
    started = os.environ.get("SLURM_STEP_NUM_TASKS") or (
        os.environ.get("SLURM_NTASKS") if "SLURM_STEP_ID" in os.environ else None
    )
    return int(started or 1)


class AtomicCheckpointIO(TorchCheckpointIO):
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
        return load_plain(Path(path), mmap=False)
