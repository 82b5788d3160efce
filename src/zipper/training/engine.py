"""Sharding by FSDP2, compilation and activation checkpointing of a model's layers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from zipper.config import TrainConfig
from zipper.models.tower import Layer
from zipper.models.zip_block import ZipBlock
from zipper.models.zipper import InputProjection

BACKEND = "inductor"  # of torch.compile


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard with FSDP2: every layer, zip and input projection is a unit; the rest (embeddings, norms)
    belongs to the root unit."""
    for part in model.modules():
        if isinstance(part, Layer | ZipBlock | InputProjection):
            fully_shard(part, mesh=mesh)
        if isinstance(part, ZipBlock):
            register_fsdp_forward_method(part, "project_source")
    fully_shard(model, mesh=mesh)


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """All weights of a sharded model in every process, for generation: it calls more than `forward`, and as
    often as a process' own rows need. All processes must enter it. A model that is not sharded is left alone.
    """
    parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            # As `fully_shard` leaves it: the root, which the backward pass needs at once, stays whole.
            part.set_reshard_after_forward(part is not model, recurse=False)


def prepare_layers(model: nn.Module, train: TrainConfig) -> None:
    """Compile layers and zips in place if configured, and set activation checkpointing. Names of weights do
    not change.

    Activation checkpointing keeps the activations of one layer only, for a third more compute.
    """
    for part in model.modules():
        if isinstance(part, Layer):
            part.activation_checkpointing = train.activation_checkpointing
        if train.compile and isinstance(part, Layer | ZipBlock):
            part.compile(backend=BACKEND, dynamic=True)
        if train.compile and isinstance(part, ZipBlock):  # Module.compile is of `forward` alone
            own = ZipBlock.project_source.__get__(part)  # not one that is compiled already
            compiled = torch.compile(own, backend=BACKEND, dynamic=True)
            part.project_source = compiled  # type: ignore[method-assign]  # of this module, not of its class
