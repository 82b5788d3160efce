"""Handling of signals that stop a command; the exit code tells that the same command can resume."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

UNFINISHED = 75  # EX_TEMPFAIL of sysexits.h: try again later
INTERRUPTED = 130  # a shell's status for Ctrl-C
GRACE = 60.0  # seconds until a worker exits after SIGTERM
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Stopped(BaseException):
    """Raised on a signal. Derives from BaseException, so that no `except Exception` catches it."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        self.code = INTERRUPTED if number == signal.SIGINT else UNFINISHED
        super().__init__(f"stopped by {self.signal.name}")


def raise_stopped(number: int, _: FrameType | None) -> None:
    """Signal handler outside of training, where work is saved continuously: raises Stopped at once."""
    raise Stopped(number)


def handled_signals() -> list[signal.Signals]:
    """SIGNALS, without SIGHUP if the process ignores it (nohup)."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in SIGNALS if number != signal.SIGHUP or not ignored]


def requeue() -> None:
    """Requeues the current SLURM job.

    Replaces Lightning's requeue, which saves in the middle of a step and only handles signals in training.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")
    if job and os.environ.get("SLURM_PROCID", "0") == "0":
        subprocess.run(["scontrol", "requeue", job], check=False)


@contextmanager
def stop_on_signal() -> Iterator[None]:
    """Context in which Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 raise Stopped. No-op outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, raise_stopped) for number in handled_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class SignalFlag:
    """Records a signal in training, to be handled after the step. A second Ctrl-C raises Stopped at once."""

    def __init__(self) -> None:
        self.number = 0

    def listen(self) -> None:
        """Installs the handlers; Lightning restores the previous ones after training."""
        if threading.current_thread() is threading.main_thread():
            for number in handled_signals():
                signal.signal(number, self.record)

    def record(self, number: int, _: FrameType | None) -> None:
        if number == self.number == signal.SIGINT:
            raise Stopped(number)
        self.number = number
        again = ", again to stop at once" if number == signal.SIGINT else ""
        message = f"\n{signal.Signals(number).name}: saving after this step, then stopping{again}"
        print(message, file=sys.stderr, flush=True)


def ignore_group_signals(_: int = 0) -> None:
    """Worker initialiser: ignores signals to the process group, which the parent handles.

    The parent needs the worker for its last step, and stops it afterwards. The worker exits if the parent is
    killed, or GRACE seconds after SIGTERM.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_later)
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()


def _exit_later(*_: Any) -> None:
    timer = threading.Timer(GRACE, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
