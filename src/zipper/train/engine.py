"""What a training runs on: Lightning's strategies, FSDP2 among them, compiled layers, activations computed
anew."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from zipper.model.tower import Layer
from zipper.model.zip_block import ZipBlock
from zipper.model.zipper import InputProjection
from zipper.schema import TrainConfig

A = TypeVar("A")
B = TypeVar("B")
BACKEND = "inductor"  # of torch.compile


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
