"""A run that was cut off, anywhere and by anything, ends as the unbroken one: weights, best one, metrics."""

import os
from pathlib import Path

import pytest
import torch

from broken_runs import (
    LONG,
    RUNS,
    Killed,
    assert_resumes_exactly,
    assert_same,
    at_step,
    die,
    killed_at,
    saved,
    train_broken,
)
from conftest import JOINT, config
from zipper.config import load_config
from zipper.disk import file_lock
from zipper.errors import ConfigError, TrainingError
from zipper.evaluation.metrics import read_metrics
from zipper.evaluation.result_file import read_result
from zipper.evaluation.run import evaluate_run
from zipper.training import run as run_module
from zipper.training.callbacks import TaskMonitor
from zipper.training.module import ZipperModule

pytestmark = pytest.mark.slow


SINGLE = ["model.kind=single_decoder", "model.towers.speech={width: 16, dropout: 0.2}"]


@pytest.mark.parametrize(
    ("words", "dies"),
    [
        ([], [1]),
        (["train.accumulate=2"], [3, 4]),
        (["train.workers=1", "train.precision=64-true"], [5]),
        (["train.accumulate=2", "train.workers=2"], [4]),
        (["train.precision=bf16-products"], [5]),
        (["train.ctc=0.5"], [3]),
        (["model.modalities=[text]", "train.tasks={asr: 0, text: 1}"], [5]),
        (["model.towers.speech.lora=2", "train.patience=9", "evaluate.dev_utterances=2"], [5]),
        ([*JOINT, "train.history_mask=0.3"], [2, 5]),
        ([*JOINT, *SINGLE, "train.history_mask=0.3"], [5]),
        (["train.optimiser=adafactor", "train.codebook_weights=[2,1,1]", "train.tasks={tts: 1}"], [5]),
    ],
    ids=[
        "plain",
        "accumulate",
        "workers",
        "both",
        "bf16",
        "ctc",
        "one tower",
        "lora",
        "mixture",
        "single decoder",
        "adafactor",
    ],
)
def test_a_resumed_run_equals_an_unbroken_one(listening, monkeypatch, words, dies):
    """Killed in the middle of steps, on the way from one checkpoint to the next."""
    words = [
        "train.validate_every=4", "train.steps=8", "train.save_every=1", "train.warmup=5",
        "model.towers.text.dropout=0.2", "model.towers.speech.dropout=0.1", "evaluate.dev_spoken=2",
        "evaluate.mismatched=false", *words,
    ]  # fmt: skip
    run_module.train(config(*words, "name=unbroken"), "x")
    for step in dies:
        at_step(monkeypatch, step, die)
        with pytest.raises(Killed):
            run_module.train(config(*words, "name=broken"), "x")
        assert saved("broken")["global_step"] == step
    run_module.train(config(*words, "name=broken", "resume=auto"), "x")
    assert_same("unbroken", "broken")


def test_between_two_checkpoints_what_was_done_is_done_again(unbroken, monkeypatch):
    killed_at(monkeypatch, 3, "train.save_every=5")
    assert saved("broken")["global_step"] == 2
    assert_resumes_exactly("train.save_every=5")


def test_a_run_that_was_renamed_goes_on_and_says_until_then_how_far_it_came(unbroken, monkeypatch, capsys):
    """Where it is logged may change, too."""
    killed_at(monkeypatch, 5)
    (RUNS / "broken").rename(RUNS / "moved")
    evaluate_run(load_config(RUNS / "moved" / "config.yaml"), "x", RUNS / "moved")
    assert "moved is unfinished: best.ckpt is of step" in capsys.readouterr().out
    found = read_result(RUNS / "moved" / "asr-test.json")
    assert (found["steps"], found["wall_seconds"] > 0) == (saved("moved", "best")["global_step"], True)
    train_broken("name=moved", "log.project=other", "log.group=mine", "result=copy.json")
    assert_same("unbroken", "moved")


def test_a_validation_that_was_cut_off_is_made_again(unbroken, monkeypatch):
    validate, left = TaskMonitor.on_validation_epoch_end, [4]

    def cut(self, trainer, module):
        if left == [trainer.global_step]:
            left.clear()
            raise Killed
        validate(self, trainer, module)

    monkeypatch.setattr(TaskMonitor, "on_validation_epoch_end", cut)
    with pytest.raises(Killed):
        train_broken()
    assert_resumes_exactly()


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_utterances(prepared, monkeypatch):
    train = ZipperModule.training_step

    def spoilt(self, batch, index):
        if self.global_step == 4 and spoil:
            stream = batch.streams["text"]
            weight = stream.weight.clone()
            weight[1][weight[1] > 0] = torch.inf
            batch = batch._replace(streams={**batch.streams, "text": stream._replace(weight=weight)})
            bad.append(batch.ids[1])
        return train(self, batch, index)

    spoil, bad = True, []
    monkeypatch.setattr(ZipperModule, "training_step", spoilt)
    with pytest.raises(TrainingError) as caught:
        train_broken()
    said = str(caught.value)
    assert said.startswith(f"step 5: the loss is not finite in {bad[0]}. Weights and")
    assert "train.lr below 0.001" in said
    assert saved("broken")["global_step"] == 4
    assert all(tensor.isfinite().all() for tensor in saved("broken")["state_dict"].values())
    spoil = False
    train_broken()
    run_module.train(config(*LONG, "name=unbroken"), "x")
    assert_same("unbroken", "broken")


def test_a_gradient_that_is_not_finite_stops_too(prepared, monkeypatch):
    def spoil(self):
        self.model.towers["text"].embedding.weight.grad[0, 0] = torch.nan

    monkeypatch.setattr(ZipperModule, "on_after_backward", spoil)
    with pytest.raises(TrainingError, match=r"step 1: the gradient's norm is nan in the step of train-\d+, "):
        train_broken()


def test_no_spike_is_missed_between_two_loggings(prepared, monkeypatch):
    run_module.train(config(*LONG, "name=each"), "x")
    run_module.train(config(*LONG, "name=some", "log.every=3"), "x")
    each, some = read_metrics(RUNS / "each"), read_metrics(RUNS / "some")
    for name in ("loss", "grad_norm"):
        values = [value for _, value in each[f"train/{name}"]]
        assert len(values) == 6
        found = [value for _, value in some[f"train/{name}_max"]]
        assert found == pytest.approx([max(values[:3]), max(values[3:])])


def test_training_stops_early_where_asked_and_stays_stopped(prepared, monkeypatch):
    words = ["train.steps=40", "train.validate_every=2", "train.patience=2", "train.lr=1e-9", "name=early"]
    evaluate = run_module.evaluate_tasks
    monkeypatch.setattr(run_module, "evaluate_tasks", lambda *_, **__: die())
    with pytest.raises(Killed):
        run_module.train(config(*words), "x")
    assert saved("early")["global_step"] == 6  # the first of three is the best
    monkeypatch.setattr(run_module, "evaluate_tasks", evaluate)
    assert run_module.train(config(*words), "x")["asr"]["steps"] == 6


def test_two_processes_cannot_be_at_one_run(prepared):
    (RUNS).mkdir(parents=True)
    with (
        file_lock(RUNS / ".one.lock", "x"),
        pytest.raises(ConfigError, match=rf"runs/one is in use by process {os.getpid()} on .*name="),
    ):
        run_module.train(config(*LONG, "name=one"), "x")
    run_module.train(config(*LONG, "name=one"), "x")


def test_resume_never_refuses_an_unfinished_run(prepared, monkeypatch):
    killed_at(monkeypatch, 3)
    with pytest.raises(ConfigError, match=r"unfinished run, and resume=never.*leave resume out"):
        train_broken("resume=never")


def test_a_run_killed_after_its_last_step_is_finished_by_the_same_command(prepared, monkeypatch):
    evaluate = run_module.evaluate_tasks
    monkeypatch.setattr(run_module, "evaluate_tasks", lambda *_, **__: die())
    with pytest.raises(Killed):
        run_module.train(config("name=late"), "x")
    monkeypatch.setattr(run_module, "evaluate_tasks", evaluate)
    last = Path("build/runs/late/checkpoints/last.ckpt")
    state = saved("late")
    assert 0 < state["train_seconds"] < 1000
    torch.save({**state, "train_seconds": 1000.0}, last)  # the time of all processes counts
    assert 1000 <= run_module.train(config("name=late"), "x")["asr"]["wall_seconds"] < 2000
    assert Path("build/runs/late/result.json").is_file()
    assert Path("build/runs/late/figures/learning-curve.png").is_file()
