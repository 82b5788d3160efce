"""A run that was cut off, anywhere and by anything, ends as the unbroken one: weights, best one, metrics."""

import os
import pickle
import random
import resource
import shutil
import signal
import stat
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from conftest import JOINT, config
from zipper.disk import held, lost_disk
from zipper.errors import ConfigError, DataError, TrainingError
from zipper.report.metrics import read_metrics
from zipper.stop import Stopped
from zipper.train import run as run_module
from zipper.train.callbacks import RecognitionMonitor
from zipper.train.checkpoints import WholeFiles, flaw, newest
from zipper.train.module import ZipperModule, load_module

RUNS = Path("build/runs")


class Killed(BaseException):
    """Like a process that is gone: nothing handles it."""


def saved(name: str, which: str = "last") -> dict:
    return torch.load(RUNS / name / "checkpoints" / f"{which}.ckpt", weights_only=True)


def at_step(monkeypatch, step: int, do) -> None:
    """`do` in the middle of a step (the first: 0), once."""
    train, left = ZipperModule.training_step, [step]

    def training_step(self, batch, index):
        if left == [self.global_step]:
            left.clear()
            do()
        return train(self, batch, index)

    monkeypatch.setattr(ZipperModule, "training_step", training_step)


def die() -> None:
    raise Killed


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


@pytest.mark.parametrize(
    ("words", "dies"),
    [
        ([], [1]),
        (["train.accumulate=2"], [3, 4]),
        (["train.workers=1", "train.precision=64-true"], [5]),
        (["train.accumulate=2", "train.workers=2"], [4]),
        (["model.towers.speech.lora=2", "train.patience=9", "evaluate.dev_utterances=2"], [5]),
        ([*JOINT, "train.hide=0.3"], [2, 5]),
        (["train.optimiser=adafactor", "train.codebook_weights=[2,1,1]", "train.tasks={tts: 1}"], [5]),
    ],
    ids=["plain", "accumulate", "workers", "both", "lora", "mixture", "adafactor"],
)
def test_a_resumed_run_equals_an_unbroken_one(listening, monkeypatch, words, dies):
    """Killed in the middle of steps, on the way from one checkpoint to the next."""
    words = [
        *words, "train.validate_every=4", "train.steps=8", "train.save_every=1", "train.warmup=5",
        "model.towers.text.dropout=0.2", "model.towers.speech.dropout=0.1", "evaluate.dev_spoken=2",
        "evaluate.shuffled=false",
    ]  # fmt: skip
    run_module.train(config(*words, "name=unbroken"), "x")
    for step in dies:
        at_step(monkeypatch, step, die)
        with pytest.raises(Killed):
            run_module.train(config(*words, "name=broken"), "x")
        assert saved("broken")["global_step"] == step
    run_module.train(config(*words, "name=broken", "resume=auto"), "x")
    assert_same("unbroken", "broken")


LONG = [
    "evaluate.shuffled=false",
    "train.steps=6",
    "train.validate_every=2",
    "train.save_every=1",
    "model.towers.text.dropout=0.2",
]


@pytest.fixture
def unbroken(prepared, tmp_path_factory):
    """The run that all others are compared with, trained once."""
    kept = tmp_path_factory.getbasetemp() / "unbroken"
    if not kept.exists():
        run_module.train(config(*LONG, "name=unbroken"), "x")
        shutil.copytree(RUNS / "unbroken", kept)
    else:
        shutil.copytree(kept, RUNS / "unbroken")


draw_run = run_module.draw_run


@pytest.fixture(autouse=True)
def nothing_is_drawn(monkeypatch):
    """It takes as long as all the rest."""
    monkeypatch.setattr(run_module, "draw_run", lambda *_: [])


def test_between_two_checkpoints_what_was_done_is_done_again(unbroken, monkeypatch):
    words = [word for word in LONG if "save" not in word] + ["name=broken", "train.save_every=5"]
    at_step(monkeypatch, 3, die)
    with pytest.raises(Killed):
        run_module.train(config(*words), "x")
    assert saved("broken")["global_step"] == 2
    run_module.train(config(*words), "x")
    assert_same("unbroken", "broken")


def test_a_validation_that_was_cut_off_is_made_again(unbroken, monkeypatch):
    validate, left = RecognitionMonitor.on_validation_epoch_end, [4]

    def cut(self, trainer, module):
        if left == [trainer.global_step]:
            left.clear()
            raise Killed
        validate(self, trainer, module)

    monkeypatch.setattr(RecognitionMonitor, "on_validation_epoch_end", cut)
    with pytest.raises(Killed):
        run_module.train(config(*LONG, "name=broken"), "x")
    run_module.train(config(*LONG, "name=broken"), "x")
    assert_same("unbroken", "broken")


@pytest.mark.parametrize(
    ("file", "harm"),
    [("last", "cut"), ("last", "flip"), ("last and before", "empty"), ("best", "flip"), ("best", "gone")],
)
def test_a_damaged_checkpoint_is_said_and_the_newest_whole_one_taken(
    unbroken, monkeypatch, capsys, file, harm
):
    at_step(monkeypatch, 5, die)
    with pytest.raises(Killed):
        run_module.train(config(*LONG, "name=broken"), "x")
    folder = RUNS / "broken" / "checkpoints"
    for name in {"last": ["last"], "best": ["best"]}.get(file, ["last", "last-before"]):
        damage(folder / f"{name}.ckpt", harm)
    run_module.train(config(*LONG, "name=broken"), "x")
    said = capsys.readouterr().out
    assert harm == "gone" or f"{file.split()[0]}.ckpt is damaged (" in said
    assert ("going on from the start" in said) == (file == "best")
    assert_same("unbroken", "broken")


def damage(file: Path, harm: str) -> None:
    content = bytearray(file.read_bytes())
    if harm == "gone":
        file.unlink()
    elif harm == "flip":
        content[len(content) // 2] ^= 1
    else:
        del content[0 if harm == "empty" else len(content) - 7 :]
    if file.exists():
        os.remove(file)  # not through its other name
        file.write_bytes(content)


def test_every_cut_and_every_flipped_tensor_is_found(tmp_path):
    torch.save({"weights": torch.arange(3000.0), "step": 3}, tmp_path / "x.ckpt")
    content, draw = (tmp_path / "x.ckpt").read_bytes(), random.Random(0)
    assert flaw(tmp_path / "x.ckpt") is None
    start = content.index(torch.arange(3000.0).numpy().tobytes())
    for _ in range(300):
        (tmp_path / "x.ckpt").write_bytes(content[: draw.randrange(len(content))])
        assert flaw(tmp_path / "x.ckpt")
        flipped = bytearray(content)
        flipped[start + draw.randrange(12_000)] ^= 1 << draw.randrange(8)
        (tmp_path / "x.ckpt").write_bytes(flipped)
        assert "checksum" in (flaw(tmp_path / "x.ckpt") or "")
    assert "Error" in (flaw(tmp_path / "nothing.ckpt") or "")


@contextmanager
def room_for(size: int):
    """Writing a file beyond `size` bytes fails, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_a_full_disk_at_a_checkpoint_leaves_the_one_before(unbroken, monkeypatch, size):
    save = WholeFiles.save_checkpoint

    def full_at_the_fourth_step(self, checkpoint, path, storage_options=None):
        with room_for(size if checkpoint["global_step"] == 4 else resource.RLIM_INFINITY):
            save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(WholeFiles, "save_checkpoint", full_at_the_fourth_step)
    with pytest.raises(OSError) as caught:
        run_module.train(config(*LONG, "name=broken"), "x")
    assert "no space left" in (lost_disk(caught.value) or "")
    assert saved("broken")["global_step"] == 3
    assert not list(RUNS.rglob("*.part"))
    monkeypatch.setattr(WholeFiles, "save_checkpoint", save)
    run_module.train(config(*LONG, "name=broken"), "x")
    assert_same("unbroken", "broken")


@pytest.mark.parametrize(
    ("number", "code", "step"),  # step 4 of those counted from 1 is validated, 3 is not
    [("SIGTERM", 75, 2), ("SIGTERM", 75, 3), ("SIGUSR1", 75, 2), ("SIGINT", 130, 3)],
)
def test_a_signal_saves_after_the_step_and_stops(unbroken, monkeypatch, number, code, step):
    words = [*LONG[:3], LONG[4], "name=broken", "train.save_every=100"]
    before = signal.getsignal(signal.SIGUSR1)
    at_step(monkeypatch, step, lambda: os.kill(os.getpid(), signal.Signals[number]))
    with pytest.raises(Stopped, match=number) as stop:
        run_module.train(config(*words), "x")
    assert stop.value.code == code
    assert saved("broken")["global_step"] == step + 1
    assert signal.getsignal(signal.SIGUSR1) == before
    run_module.train(config(*words), "x")
    assert_same("unbroken", "broken")


def test_ctrl_c_twice_stops_at_once(prepared, monkeypatch):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")

    at_step(monkeypatch, 3, twice)
    with pytest.raises(Stopped) as stop:
        run_module.train(config(*LONG, "name=broken"), "x")
    assert stop.value.code == 130
    assert saved("broken")["global_step"] == 3


def test_under_slurm_the_job_is_requeued_through_lightning(unbroken, monkeypatch, tmp_path):
    """SIGUSR1, as of `#SBATCH --signal`: saved at the next step, then `scontrol requeue`; the job that comes
    back goes on from there."""
    fake = tmp_path / "bin" / "scontrol"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    job = {"JOB_ID": "123", "JOB_NAME": "zipper", "NTASKS": "1", "NTASKS_PER_NODE": "1", "PROCID": "0"}
    with monkeypatch.context() as slurm:
        for key, value in {**job, "LOCALID": "0", "NODEID": "0", "NODELIST": "here"}.items():
            slurm.setenv(f"SLURM_{key}", value)
        slurm.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
        at_step(slurm, 2, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        with pytest.raises(Stopped):
            run_module.train(config(*LONG, "name=broken"), "x")
    assert (tmp_path / "asked").read_text() == "requeue 123\n"
    assert saved("broken")["global_step"] == 3
    assert (RUNS / "broken" / "hpc_ckpt_1.ckpt").exists()
    run_module.train(config(*LONG, "name=broken"), "x")
    assert_same("unbroken", "broken")


def test_the_newest_of_all_checkpoints_is_taken(tmp_path):
    """Also where SLURM's has been left behind."""
    (tmp_path / "checkpoints").mkdir()
    for step, name in ((5, "hpc_ckpt_1"), (9, "checkpoints/last"), (7, "checkpoints/last-before")):
        torch.save({"global_step": step, "callbacks": {}}, tmp_path / f"{name}.ckpt")
    assert newest(tmp_path) == tmp_path / "checkpoints" / "last.ckpt"
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    assert newest(tmp_path) == tmp_path / "checkpoints" / "last-before.ckpt"


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
        run_module.train(config(*LONG, "name=broken"), "x")
    said = str(caught.value)
    assert said.startswith(f"step 5: the loss is not finite in {bad[0]}. Nothing was updated")
    assert "train.lr below 0.001" in said
    assert saved("broken")["global_step"] == 4
    assert all(tensor.isfinite().all() for tensor in saved("broken")["state_dict"].values())
    spoil = False
    run_module.train(config(*LONG, "name=broken"), "x")
    run_module.train(config(*LONG, "name=unbroken"), "x")
    assert_same("unbroken", "broken")


def test_a_gradient_that_is_not_finite_stops_too(prepared, monkeypatch):
    def spoil(self):
        self.model.towers["text"].embedding.weight.grad[0, 0] = torch.nan

    monkeypatch.setattr(ZipperModule, "on_after_backward", spoil)
    with pytest.raises(TrainingError, match=r"step 1: the gradient's norm is nan in the step of train-\d+, "):
        run_module.train(config(*LONG, "name=broken"), "x")


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
        held(RUNS / ".one.lock", "x"),
        pytest.raises(ConfigError, match=rf"runs/one is in use by process {os.getpid()} on .*name="),
    ):
        run_module.train(config(*LONG, "name=one"), "x")
    run_module.train(config(*LONG, "name=one"), "x")


def test_resume_never_refuses_an_unfinished_run(prepared, monkeypatch):
    at_step(monkeypatch, 3, die)
    with pytest.raises(Killed):
        run_module.train(config(*LONG, "name=one"), "x")
    with pytest.raises(ConfigError, match=r"unfinished run, and resume=never.*leave resume out"):
        run_module.train(config(*LONG, "name=one", "resume=never"), "x")


class Payload:
    """What a stranger's checkpoint may hold."""

    def __reduce__(self):
        return (os.system, ("touch opened",))


def test_a_malicious_checkpoint_runs_nothing(in_tmp):
    state = {"state_dict": {}, "hyper_parameters": Payload(), "global_step": 1, "callbacks": {}}
    folder = Path("build/runs/bad/checkpoints")
    folder.mkdir(parents=True)
    torch.save(state, folder / "last.ckpt")
    with pytest.raises(DataError, match=r"last\.ckpt holds more than tensors and plain values.*safetensors"):
        load_module(folder / "last.ckpt")
    with pytest.raises(DataError, match="holds more than tensors"):
        newest(Path("build/runs/bad"))
    (folder / "last.ckpt").write_bytes(pickle.dumps(state))
    with pytest.raises(DataError, match="is damaged"):
        load_module(folder / "last.ckpt")
    assert not Path("opened").exists()
    pickle.loads(pickle.dumps(Payload()))
    assert Path("opened").exists()  # what the others would have done


def test_a_run_killed_after_its_last_step_is_finished_by_the_same_command(prepared, monkeypatch):
    evaluate = run_module.evaluate_tasks
    monkeypatch.setattr(run_module, "evaluate_tasks", lambda *_, **__: die())
    with pytest.raises(Killed):
        run_module.train(config("name=late"), "x")
    monkeypatch.setattr(run_module, "evaluate_tasks", evaluate)
    monkeypatch.setattr(run_module, "draw_run", draw_run)
    last = Path("build/runs/late/checkpoints/last.ckpt")
    state = saved("late")
    assert 0 < state["train_seconds"] < 1000
    torch.save({**state, "train_seconds": 1000.0}, last)  # the time of all processes counts
    assert 1000 <= run_module.train(config("name=late"), "x")["asr"]["wall_seconds"] < 2000
    assert Path("build/runs/late/result.json").is_file()
    assert Path("build/runs/late/figures/learning-curve.png").is_file()
