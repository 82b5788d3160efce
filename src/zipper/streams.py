"""Standard output and error as something that cannot fail: a terminal that was closed, or a `head` that has
read enough, is no reason to lose a run."""

import os
import select
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

FLUSH_ATTEMPTS = 5  # waits of a second, in the end, for a reader that is slow


class SafeStream:
    """A stream that falls silent where it would fail, whatever the error: from then on all goes to the null
    device, what child processes write and what is left in buffers included. Where it would only have to wait
    (a pipe that ssh, tee or node has made non-blocking), that text alone is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except BlockingIOError:
            return len(text)
        except OSError:
            self._silence()
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except BlockingIOError:
            pass
        except OSError:
            self._silence()

    def finish(self) -> None:
        """Flushes what is left, and waits for a slow reader for a while: Python would fail in the end."""
        for _ in range(FLUSH_ATTEMPTS):
            try:
                self.stream.flush()
                return
            except BlockingIOError:
                with suppress(OSError, ValueError):
                    select.select([], [self.stream.fileno()], [], 1.0)
            except OSError:
                break
        self._silence()

    def _silence(self) -> None:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), self.stream.fileno())


def protect_output() -> None:
    """From now on, in this process and those that it forks. Letters that the terminal's encoding lacks are
    written as escapes."""
    for name in ("stdout", "stderr"):
        # None where it was closed at the start; it is open for as long as the process is.
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if stream in (sys.__stdout__, sys.__stderr__):
            stream.reconfigure(errors="backslashreplace")
        if not isinstance(stream, SafeStream):
            setattr(sys, name, cast(TextIO, SafeStream(stream)))


@contextmanager
def safe_output() -> Iterator[None]:
    """`protect` for as long as a command runs; what it wrote is flushed in the end."""
    before = sys.stdout, sys.stderr
    protect_output()
    ours = cast(SafeStream, sys.stdout), cast(SafeStream, sys.stderr)
    try:
        yield
    finally:
        for stream in ours:
            stream.finish()
        sys.stdout, sys.stderr = before
