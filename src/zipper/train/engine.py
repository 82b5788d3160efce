"""What a training runs on: Lightning's strategies, FSDP2 among them, compiled layers, activations computed
anew."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from textwrap import shorten
from typing import TypeVar

import lightning as L
import torch.distributed as dist
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from zipper.errors import ConfigError
from zipper.model.tower import Layer
from zipper.model.zip_block import ZipBlock
from zipper.model.zipper import InputProjection
from zipper.schema import TrainConfig

A = TypeVar("A")
B = TypeVar("B")
BACKEND = "inductor"  # of torch.compile
MACHINE = ("accelerator", "devices", "nodes", "strategy", "precision")  # settings that a Trainer may refuse


def first_process() -> bool:
    """Whether this one writes. Several may ask at once, before a group of them exists."""
    return getattr(rank_zero_only, "rank", 0) == 0


def divided(rows: Sequence[A], work: Callable[[list[A]], list[B]]) -> list[B]:
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


def encoding(train: TrainConfig) -> TrainConfig:
    """What encoding a corpus runs on: the same devices, each for itself."""
    several = train.devices * train.nodes > 1
    return replace(train, strategy="ddp" if several else "auto", precision="32-true")


def one_device(train: TrainConfig) -> TrainConfig:
    """What a training runs on that knows no other: the codec's, and a bench."""
    return replace(train, devices=1, nodes=1, strategy="auto", precision="32-true")


def check_trainer(train: TrainConfig) -> None:
    """Raises ConfigError where Lightning would refuse these settings, or what SLURM says of the job, once
    all is encoded and the run folder is made: a Trainer is made of them now, and thrown away."""
    with refusals(train):
        _try(train)


@contextmanager
def refusals(train: TrainConfig) -> Iterator[None]:
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
    except Exception:  # of as many kinds as in `refusals`
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
                plugins=[TorchCheckpointIO()],  # as WholeFiles, which some strategies do not take
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


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """FSDP2: every layer, zip and projection is a unit of its own; what is left (embeddings, norms) goes
    with the whole."""
    for part in model.modules():
        if isinstance(part, Layer | ZipBlock | InputProjection):
            fully_shard(part, mesh=mesh)
        if isinstance(part, ZipBlock):
            register_fsdp_forward_method(part, "look_at")
    fully_shard(model, mesh=mesh)


def prepare_layers(model: nn.Module, train: TrainConfig) -> None:
    """Compiles layers and zips where asked for, in place: names of weights stay as they are. Layers that
    forget their activations compute them again on the way back: memory of one layer for a third more work."""
    for part in model.modules():
        if isinstance(part, Layer):
            part.recompute = train.recompute
        if train.compile and isinstance(part, Layer | ZipBlock):
            part.compile(backend=BACKEND, dynamic=True)
