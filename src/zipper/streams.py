"""Standard output and error as something that cannot fail: a terminal that was closed, or a `head` that has
read enough, is no reason to lose a run."""

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

# A pipe that nobody reads, a terminal that is gone; a disk that is full holds no log, but may hold the run.
GONE = {errno.EPIPE, errno.EIO, errno.ENXIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Unbroken:
    """A stream that falls silent where it would fail: from then on all goes to the null device, what child
    processes write and what is left in buffers included."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError as error:
            self._silence(error)
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self._silence(error)

    def _silence(self, error: OSError) -> None:
        if error.errno not in GONE:
            raise error
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), self.stream.fileno())


def protect() -> None:
    """From now on, in this process and those that it forks. Letters that the terminal's encoding lacks are
    written as escapes."""
    for name in ("stdout", "stderr"):
        # None where it was closed at the start; it is open for as long as the process is.
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if stream in (sys.__stdout__, sys.__stderr__):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, cast(TextIO, Unbroken(stream)))


@contextmanager
def unbroken_output() -> Iterator[None]:
    """`protect` for as long as a command runs; what it wrote is flushed in the end."""
    before = sys.stdout, sys.stderr
    protect()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
