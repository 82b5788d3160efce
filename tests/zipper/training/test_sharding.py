"""FSDP2 over two processes (gloo) trains as one process does: every family, tied or not, whatever learns."""

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from conftest import RATES, as_batch, interleaving
from zipper.config import ModelConfig, TowerConfig
from zipper.models.building import build_model
from zipper.models.lora import freeze_all_but_lora
from zipper.models.losses import stream_loss
from zipper.training.engine import shard

pytestmark = pytest.mark.slow

FAMILIES: dict[str, dict[str, Any]] = {  # their parameters differ in biases, norms of heads, and heads
    "llama": {"rope_scaling": [8.0, 1.0, 4.0, 64.0], "kv_heads": 1},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True, "head_size": 16},
}
SHAPE = {"layers": 2, "width": 16, "heads": 2, "kv_heads": 2, "hidden": 16}
KINDS = ("single_decoder", "full", "lora", "frozen")  # the Single Decoder; or a Zipper, by its text tower
CASES = [*itertools.product(FAMILIES, KINDS, (True, False))]


def model_of(family: str, kind: str, tied: bool) -> nn.Module:
    single = kind == "single_decoder"
    shape = {**SHAPE, "interval": 1}
    learns = {"frozen": kind == "frozen", "lora": 2 if kind == "lora" else 0}
    own = {"vocabulary": 11, "codebooks": 1, **FAMILIES[family], **learns}
    text = TowerConfig(**{**shape, **own}, tied=tied)
    shape |= {"vocabulary": 9, "codebooks": 3, **(FAMILIES[family] if single else {})}
    cfg = ModelConfig(
        "single_decoder" if single else "zipper", ["text", "speech"],
        {"text": text, "speech": TowerConfig(**shape, tied=tied or not single)},
    )  # fmt: skip
    cfg.zip.heads = 2
    torch.manual_seed(0)
    model = build_model(cfg, RATES)
    if kind == "frozen":
        model.tower("text").requires_grad_(False)
    if kind == "lora":
        freeze_all_but_lora(model.tower("text"))
    return model


def after_a_step(model: nn.Module) -> dict[str, Tensor]:
    """Weights after one step of SGD on a batch in which each modality is scored and attends to the other."""
    batch = as_batch(model, [interleaving(model, random.Random(seed), 6) for seed in range(3)])
    learning = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(learning, lr=1.0)
    states = model(batch)
    sum(stream_loss(model.tower(n), states[n], s) for n, s in batch.streams.items()).backward()
    optimiser.step()
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in model.named_parameters()
    }


def train_sharded(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (2,))
    found = {}
    for case in CASES:
        model = model_of(*case)
        shard(model, mesh)
        found[case] = after_a_step(model)
    if rank == 0:
        torch.save(found, folder / "weights.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("sharded")
    # Not forked: PyTorch forbids it once a test before has used autograd's threads.
    mp.start_processes(train_sharded, (folder,), nprocs=2, start_method="spawn")
    return torch.load(folder / "weights.pt", weights_only=True)


@pytest.mark.parametrize(("family", "kind", "tied"), CASES)
def test_a_sharded_step_moves_every_weight_as_an_unsharded_one(sharded, family, kind, tied):
    model = model_of(family, kind, tied)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    expected = after_a_step(model)
    found = sharded[family, kind, tied]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for name in expected:
        if name not in learns:
            assert torch.equal(found[name], before[name]), name
    ends = {name for name in learns if name.endswith(("embedding.weight", ".head"))}
    assert all(not torch.equal(found[name], before[name]) for name in ends)
    assert ends or kind in ("lora", "frozen")
