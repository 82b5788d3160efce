"""Runs that are cut off, and what they are compared with."""

import os
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import conftest
from zipper.evaluation.metrics import read_metrics
from zipper.training import run as run_module
from zipper.training.module import ZipperModule

RUNS = Path("build/runs")


LONG = ["evaluate.mismatched=false", "train.steps=6", "train.validate_every=2", "train.save_every=1"]
LONG += ["model.towers.text.dropout=0.2"]


class Killed(BaseException):
    """Like a process that is gone: nothing handles it."""


def saved(name: str, which: str = "last") -> dict:
    return torch.load(RUNS / name / "checkpoints" / f"{which}.ckpt", weights_only=True)


def at_step(monkeypatch, step: int, do, module: type = ZipperModule) -> None:
    """`do` in the middle of a step (the first: 0), once."""
    train, left = module.training_step, [step]

    def training_step(self, batch, index):
        if left == [self.global_step]:
            left.clear()
            do()
        return train(self, batch, index)

    monkeypatch.setattr(module, "training_step", training_step)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def die() -> None:
    raise Killed


def train_broken(*words: str) -> dict:
    """The run that is broken, once or again."""
    return run_module.train(conftest.config(*LONG, "name=broken", *words), "x")


def killed_at(monkeypatch, step: int, *words: str) -> None:
    at_step(monkeypatch, step, die)
    with pytest.raises(Killed):
        train_broken(*words)


def assert_resumes_exactly(*words: str) -> None:
    train_broken(*words)
    assert_same("unbroken", "broken")


def assert_same(unbroken: str, broken: str) -> None:
    """Weights of both checkpoints, optimiser, schedule and every metric of training and dev, bit for bit."""
    for which in ("last", "best"):
        one, other = saved(unbroken, which), saved(broken, which)
        assert one["global_step"] == other["global_step"]
        assert one["lr_schedulers"] == other["lr_schedulers"]
        for key in one["state_dict"]:
            assert torch.equal(one["state_dict"][key], other["state_dict"][key]), (which, key)
        for index, state in one["optimizer_states"][0]["state"].items():
            for key, value in state.items():
                assert torch.equal(value, other["optimizer_states"][0]["state"][index][key]), (which, key)
    one, other = read_metrics(RUNS / unbroken), read_metrics(RUNS / broken)
    assert one.keys() == other.keys()
    for name in one:
        assert "second" in name or one[name] == other[name], name


@contextmanager
def room_for(size: int):
    """Writing a file beyond `size` bytes fails, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
