"""SIGTERM, SIGUSR1 and Ctrl-C: saved at the next step, stopped, gone on with."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broken_runs import RUNS, assert_resumes_exactly, at_step, saved, train_broken
from reproduce import ROOT
from zipper import cli
from zipper.arguments import config_command
from zipper.stop import SignalFlag, Stopped, stop_on_signal
from zipper.training.callbacks import TaskMonitor


@pytest.fixture(autouse=True)
def hang_up_ends_a_command():
    """Also where the tests were started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "code", "step"),  # step 4 of those counted from 1 is validated, 3 is not
    [("SIGTERM", 75, 2), ("SIGTERM", 75, 3), ("SIGUSR1", 75, 2), ("SIGHUP", 75, 2), ("SIGINT", 130, 3)],
)
def test_a_signal_saves_after_the_step_and_stops(unbroken, monkeypatch, number, code, step):
    before = signal.getsignal(signal.SIGUSR1)
    at_step(monkeypatch, step, lambda: os.kill(os.getpid(), signal.Signals[number]))
    with pytest.raises(Stopped, match=number) as stop:
        train_broken("train.save_every=100")
    assert stop.value.code == code
    assert saved("broken")["global_step"] == step + 1
    assert signal.getsignal(signal.SIGUSR1) == before
    assert_resumes_exactly("train.save_every=100")


def test_ctrl_c_twice_stops_at_once(prepared, monkeypatch):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")

    at_step(monkeypatch, 3, twice)
    with pytest.raises(Stopped) as stop:
        train_broken()
    assert stop.value.code == 130
    assert saved("broken")["global_step"] == 3


def test_under_slurm_the_job_is_requeued(unbroken, monkeypatch, tmp_path):
    """SIGUSR1, as of `#SBATCH --signal`: saved at the next step, then `scontrol requeue`; the job that comes
    back goes on from there."""
    fake = tmp_path / "bin" / "scontrol"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n', encoding="utf-8")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    job = {"JOB_ID": "123", "JOB_NAME": "zipper", "NTASKS": "1", "NTASKS_PER_NODE": "1", "PROCID": "0"}
    with monkeypatch.context() as slurm:
        for key, value in {**job, "LOCALID": "0", "NODEID": "0", "NODELIST": "here"}.items():
            slurm.setenv(f"SLURM_{key}", value)
        slurm.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
        at_step(slurm, 2, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        slurm.setitem(cli.COMMANDS, "train", config_command(lambda *_: train_broken()))
        with pytest.raises(SystemExit) as end:
            cli.main(["train", str(ROOT / "configs" / "asr.yaml")])
    assert end.value.code == 75
    assert (tmp_path / "asked").read_text(encoding="utf-8") == "requeue 123\n"
    assert saved("broken")["global_step"] == 3
    assert_resumes_exactly()


def test_a_signal_in_the_last_validation_is_heeded_after_it(prepared, monkeypatch):
    validate = TaskMonitor.on_validation_epoch_end

    def signalled(self, trainer, module):
        if trainer.global_step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        validate(self, trainer, module)

    monkeypatch.setattr(TaskMonitor, "on_validation_epoch_end", signalled)
    with pytest.raises(Stopped):
        train_broken()
    assert saved("broken")["global_step"] == 6
    assert not (RUNS / "broken" / "asr.json").exists()


def test_a_sighup_that_was_ignored_at_the_start_stays_ignored():
    """As nohup starts a command; else it raises Stopped, in a training is noted, and is put back."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal():
            SignalFlag().listen()
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with pytest.raises(Stopped, match="SIGHUP") as stop, stop_on_signal():
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.value.code == 75
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        for number, handler in ((signal.SIGHUP, before), (signal.SIGINT, signal.default_int_handler)):
            signal.signal(number, handler)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_workers_outlive_a_signal_to_the_whole_group(tmp_path):
    """Until they are no longer needed; they end with a parent that is gone."""
    code = (
        "import os, time\nfrom zipper.stop import ignore_group_signals\nif os.fork() == 0:\n"
        "    ignore_group_signals()\n    print(os.getpid(), flush=True)\n    time.sleep(60)\nelse:\n    "
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    worker = int(parent.stdout.readline())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        os.kill(worker, number)
    time.sleep(0.5)
    assert alive(worker)
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not alive(worker):
            break
        time.sleep(0.05)
    assert not alive(worker)
