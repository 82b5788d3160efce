"""Layers as a training wants them: sharded by FSDP2, compiled, with activation checkpointing."""

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from zipper.config import TrainConfig
from zipper.models.tower import Layer
from zipper.models.zip_block import ZipBlock
from zipper.models.zipper import InputProjection

BACKEND = "inductor"  # of torch.compile


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """FSDP2: every layer, zip and projection is a unit of its own; what is left (embeddings, norms) goes
    with the whole."""
    for part in model.modules():
        if isinstance(part, Layer | ZipBlock | InputProjection):
            fully_shard(part, mesh=mesh)
        if isinstance(part, ZipBlock):
            register_fsdp_forward_method(part, "project_source")
    fully_shard(model, mesh=mesh)


def prepare_layers(model: nn.Module, train: TrainConfig) -> None:
    """Compiles layers and zips where asked for, in place: names of weights stay as they are. Layers that
    forget their activations compute them again on the way back: memory of one layer for a third more work."""
    for part in model.modules():
        if isinstance(part, Layer):
            part.activation_checkpointing = train.recompute
        if train.compile and isinstance(part, Layer | ZipBlock):
            part.compile(backend=BACKEND, dynamic=True)
