"""Signals that end a command: what is finished is kept, and the exit code says that the same command goes
on."""

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

UNFINISHED = 75  # EX_TEMPFAIL of sysexits.h: try again
INTERRUPTED = 130  # what a shell reports of Ctrl-C
GRACE = 60.0  # seconds that a worker outlives a SIGTERM
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Stopped(BaseException):
    """Ended by a signal. No Exception: nothing that mends errors may swallow it."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        self.code = INTERRUPTED if number == signal.SIGINT else UNFINISHED
        super().__init__(f"stopped by {self.signal.name}")


def raise_stopped(number: int, _: FrameType | None) -> None:
    """Between trainings all work is kept piece by piece: nothing has to be saved first."""
    raise Stopped(number)


def handled_signals() -> list[signal.Signals]:
    """SIGNALS, without a SIGHUP that was ignored when the process began, as nohup has it."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in SIGNALS if number != signal.SIGHUP or not ignored]


def requeue() -> None:
    """Asks SLURM for the same job once more. Lightning has this too, but saves in the middle of a step, and
    knows no signal outside of a training."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")
    if job and os.environ.get("SLURM_PROCID", "0") == "0":
        subprocess.run(["scontrol", "requeue", job], check=False)


@contextmanager
def stop_on_signal() -> Iterator[None]:
    """Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 raise Stopped in here, where they would have killed the process."""
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
    """While a training runs, a signal is noted and handled_signals after the step; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.number = 0

    def listen(self) -> None:
        """From now on, until Lightning puts back the handlers that it found."""
        if threading.current_thread() is threading.main_thread():
            for number in handled_signals():
                signal.signal(number, self.note)

    def note(self, number: int, _: FrameType | None) -> None:
        if number == self.number == signal.SIGINT:
            raise Stopped(number)
        self.number = number
        again = ", again to stop at once" if number == signal.SIGINT else ""
        said = f"\n{signal.Signals(number).name}: saving after this step, then stopping{again}"
        print(said, file=sys.stderr, flush=True)


def ignore_group_signals(_: int = 0) -> None:
    """In a worker process: a signal to the whole group is the parent's to heed, which still needs the worker
    for its last step, and ends it then. A parent that is killed cannot: the worker ends itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_later(*_: Any) -> None:
    timer = threading.Timer(GRACE, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
