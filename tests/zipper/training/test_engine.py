"""Layers that are compiled, or forget their activations, train as plain ones do."""

import random
from pathlib import Path

import pytest
import torch
from torch._dynamo.eval_frame import _debug_get_cache_entry_list

from conftest import as_batch, config, interleaving, tiny_model
from reproduce import ROOT
from zipper.cli import run
from zipper.config import TrainConfig
from zipper.distributed import check_trainer
from zipper.errors import ConfigError
from zipper.generation.exported import load_trained
from zipper.models.losses import stream_loss
from zipper.models.tower import Layer
from zipper.models.zip_block import ZipBlock
from zipper.training import engine
from zipper.training import run as run_module
from zipper.training.engine import prepare_layers


def gradients(recompute: bool) -> dict[str, torch.Tensor]:
    model = tiny_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    prepare_layers(model, TrainConfig(activation_checkpointing=recompute))
    model.train()
    model.tower("text").requires_grad_(False).eval()  # frozen: gradients pass through it all the same
    batch = as_batch(model, [interleaving(model, random.Random(i), 3) for i in range(3)])
    torch.manual_seed(5)
    states = model(batch)
    sum(stream_loss(model.tower(n), states[n], s) for n, s in batch.streams.items()).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def test_gradients_of_layers_that_forget_are_the_same_bit_for_bit_dropout_included(monkeypatch):
    kept = gradients(recompute=False)
    calls = []
    real = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        "zipper.models.tower.checkpoint", lambda *words, **how: (calls.append(1), real(*words, **how))[1]
    )
    forgot = gradients(recompute=True)
    assert len(calls) == 10
    assert all(torch.equal(forgot[name], gradient) for name, gradient in kept.items())


def test_layers_zips_and_projections_are_compiled_once_for_each_width_whatever_the_lengths(monkeypatch):
    """By dynamo alone: no C++ compiler is needed. Beyond 8 graphs of one function it gives up."""
    monkeypatch.setattr(engine, "BACKEND", "eager")
    torch._dynamo.reset()
    model, plain = tiny_model(layers=7), tiny_model(layers=7)
    prepare_layers(model, TrainConfig(compile=True))
    for segments in (3, 4, 5, 2, 6):
        documents = [interleaving(model, random.Random(i), segments) for i in range(3)]
        batch = as_batch(model, documents)
        states, expected = model(batch), plain(batch)
        for name, one in states.items():
            torch.testing.assert_close(one, expected[name])
    for function in (Layer.forward, ZipBlock.forward, ZipBlock.project_source):
        # One more where a length happens to equal a width.
        assert 2 <= len(_debug_get_cache_entry_list(function.__code__)) <= 3


@pytest.mark.slow
def test_a_compiled_training_saves_what_an_uncompiled_model_loads(prepared, monkeypatch):
    monkeypatch.setattr(engine, "BACKEND", "aot_eager")  # the graphs without a compiler of C++
    words = ["train.steps=3", "evaluate.mismatched=false"]
    plain = run_module.train(config("name=plain", *words), "x")["asr"]
    compiled = run_module.train(config("name=compiled", "train.compile=true", *words), "x")["asr"]
    states = [
        load_trained(Path(f"build/runs/{n}/checkpoints/last.ckpt")).network.state_dict()
        for n in ("plain", "compiled")
    ]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-4, atol=1e-5)
    assert plain["utterances"] == compiled["utterances"]


JOB = {"JOB_NAME": "train", "JOB_ID": "7", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "NODELIST": "n1"}


@pytest.mark.parametrize(
    ("tasks", "fits"),
    [
        ({"NTASKS": "2"}, False),
        ({"NTASKS": "2", "NTASKS_PER_NODE": "2", "NNODES": "1", "STEP_NUM_TASKS": "2"}, False),
        ({"NTASKS": "2", "NTASKS_PER_NODE": "2", "NNODES": "1", "STEP_ID": "0"}, False),
        # Without srun, or in a step of one task, there is one process, however many the job has room for.
        ({"NTASKS": "8", "NTASKS_PER_NODE": "8", "NNODES": "2"}, True),
        ({"NTASKS": "8", "NTASKS_PER_NODE": "8", "STEP_ID": "0", "STEP_NUM_TASKS": "1"}, True),
        ({"NTASKS": "1", "NTASKS_PER_NODE": "1", "NNODES": "1"}, True),
    ],
)
def test_a_slurm_job_that_does_not_fit_is_refused_before_work(in_tmp, monkeypatch, tasks, fits):
    """By prepare and train alike, in one line that names the settings, and nothing is left behind."""
    for key, value in {**JOB, **tasks}.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    if fits:
        check_trainer(TrainConfig(accelerator="cpu"))
        return
    for command in ("prepare", "train"):
        with pytest.raises(ConfigError, match=r"train\.devices=1.*SLURM.*ntasks-per-node.*#SBATCH") as error:
            run([command, str(ROOT / "configs" / "asr.yaml"), "train.accelerator=cpu"])
        assert "\n" not in str(error.value)
    assert not list(in_tmp.iterdir())


def test_what_starts_processes_by_itself_is_what_lightning_asks(monkeypatch):
    """Two devices in a job of eight tasks are refused; not under torchrun, which a job starts once a node."""
    for key, value in {**JOB, "NTASKS": "8", "NTASKS_PER_NODE": "8", "NNODES": "1"}.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    two = TrainConfig(accelerator="cpu", devices=2, strategy="ddp")
    with pytest.raises(ConfigError, match=r"train\.devices=2.*SLURM job.*ntasks-per-node=8"):
        check_trainer(two)
    torchrun = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    for key, value in {**torchrun, "GROUP_RANK": "0", "MASTER_ADDR": "n1", "MASTER_PORT": "1234"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "1")
    check_trainer(two)


def test_only_the_guilty_setting_is_named():
    with pytest.raises(ConfigError, match=r"^train\.strategy=zero3 does not work here"):
        check_trainer(TrainConfig(accelerator="cpu", precision="bf16-mixed", strategy="zero3"))
