"""Signals that end a command: what is finished is kept, and the exit code says that the same command goes
on."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

UNFINISHED = 75  # EX_TEMPFAIL of sysexits.h: try again
INTERRUPTED = 130  # what a shell reports of Ctrl-C
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(BaseException):
    """Ended by a signal. No Exception: nothing that mends errors may swallow it."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        self.code = INTERRUPTED if number == signal.SIGINT else UNFINISHED
        super().__init__(f"stopped by {self.signal.name}")


def stop_at_once(number: int, _: FrameType | None) -> None:
    """Between trainings all work is kept piece by piece: nothing has to be saved first."""
    raise Stopped(number)


@contextmanager
def signals() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGUSR1 raise Stopped in here, where they would have killed the process. Under
    SLURM, SIGUSR1 is left to Lightning, which requeues the job."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    mine = [number for number in SIGNALS if number != signal.SIGUSR1 or "SLURM_JOB_ID" not in os.environ]
    before = {number: signal.signal(number, stop_at_once) for number in mine}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Request:
    """While a training runs, a signal is noted and heeded after the step; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.number = 0
        self.before: dict[int, Any] = {}  # handlers that were there

    def listen(self) -> None:
        """From now on, until Lightning puts back the handlers that it found."""
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.note) for number in SIGNALS}

    def note(self, number: int, _: FrameType | None) -> None:
        if number == self.number == signal.SIGINT:
            raise Stopped(number)
        self.number = number
        again = ", again to stop at once" if number == signal.SIGINT else ""
        said = f"\n{signal.Signals(number).name}: saving after this step, then stopping{again}"
        print(said, file=sys.stderr, flush=True)

    def requeue(self, number: int) -> None:
        """Hands the signal to Lightning, where SLURM sent it: it saves once more and requeues the job."""
        handler = self.before.get(number)
        if callable(handler) and handler is not stop_at_once and number == signal.SIGUSR1:
            handler(number, None)


def leave_to_parent(_: int = 0) -> None:
    """In a worker process: a signal to the whole group is the parent's to heed, which then ends the worker. A
    parent that is killed cannot: the worker ends itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
