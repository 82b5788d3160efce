"""`zipper bench-shards`: what a process holds of a large model that FSDP2 shards, counted on the meta device.

Nothing is computed and no memory is used: processes are simulated, and the shards' sizes are added up.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from reproduce.bench.record import write_record
from zipper.config import ModelConfig, TowerConfig
from zipper.models.building import set_trainable
from zipper.models.zipper import ZipperModel
from zipper.training.engine import shard

FLOAT, GRADIENT, MOMENTS = 4, 4, 8  # bytes of a float32 weight, and of its gradient and AdamW's two moments
LLAMA = TowerConfig(  # of the shape of Llama 3.1 8B
    32, 4096, 32, 8, 14336, tied=False, vocabulary=128_256, codebooks=1, specials=[0, 1], interval=8
)
SPEECH = TowerConfig(16, 2048, 32, 8, 8192, vocabulary=1027, codebooks=8, interval=4)  # of Llama 3.2 1B
TOWERS = {
    "8B text, frozen, and 1B speech": {"text": replace(LLAMA, frozen=True), "speech": SPEECH},
    "8B text and 8B speech": {
        "text": LLAMA,
        "speech": TowerConfig(32, 4096, 32, 8, 14336, vocabulary=1027, codebooks=8, interval=8),
    },
}
RANKS = (1, 8, 64)


def bench_shards(out: Path, command: str) -> None:
    """Write the table."""
    rows = [{"model": name, "ranks": n, **count(towers, n)} for name, towers in TOWERS.items() for n in RANKS]
    for row in rows:
        print(row)
    write_record("bench-shards", command, {"rows": rows, "data_fingerprint": "no data"}, out)


def count(towers: dict[str, TowerConfig], ranks: int) -> dict[str, int | float]:
    """Parameters in all; gigabytes that rank 0 holds, which has no less than any other, of the largest unit,
    which every rank gathers while it is computed, and of what rank 0 writes of a checkpoint."""
    cfg = ModelConfig(modalities=[*towers], towers=towers)
    with torch.device("meta"):
        model = ZipperModel(cfg, dict.fromkeys(towers, 10.0))
    set_trainable(model, cfg)
    total = sum(p.numel() for p in model.parameters())
    with simulated(ranks):
        shard(model, init_device_mesh("cpu", (ranks,)))
        own = {name: _local(p).numel() for name, p in model.named_parameters()}
        trained_here = sum(own[name] for name, p in model.named_parameters() if p.requires_grad)
        unit = max(sum(p.numel() for p in _own_parameters(part)) for part in model.modules())
    sizes = {
        "weights_gb": sum(own.values()) * FLOAT,
        "gradients_and_moments_gb": trained_here * (GRADIENT + MOMENTS),
        "largest_unit_gb": unit * FLOAT,
        "checkpoint_gb": sum(own.values()) * FLOAT + trained_here * MOMENTS,
    }
    return {"parameters": total, **{name: round(size / 1e9, 2) for name, size in sizes.items()}}


def _local(parameter: nn.Parameter) -> torch.Tensor:
    assert isinstance(parameter, DTensor)
    return parameter.to_local()


def _own_parameters(part: nn.Module) -> list[nn.Parameter]:
    """Parameters that FSDP2 gathers for this module: its own, less those of sharded modules within it."""
    if not hasattr(part, "unshard"):
        return []
    inner = [one for one in part.modules() if one is not part and hasattr(one, "unshard")]
    within = {id(p) for one in inner for p in one.parameters()}
    return [p for p in part.parameters() if id(p) not in within]


@contextmanager
def simulated(ranks: int) -> Iterator[None]:
    """This process as rank 0 of several that do not exist."""
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
