"""Standard output and error that never raise: a closed terminal or pipe must not stop a run."""

import os
import select
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

FLUSH_ATTEMPTS = 5  # at exit, each waits up to one second for a slow reader


class SafeStream:
    """Text stream that redirects to the null device after an I/O error.

    Output of child processes and buffered text are redirected too. A write that would block (a non-blocking
    pipe of ssh, tee or node) drops only its own text.
    """

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
        """Flushes the buffer and waits for a slow reader, since Python would raise at exit."""
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
    """Wraps stdout and stderr of this process and its forks in `SafeStream`.

    Characters that the terminal's encoding lacks are written as escapes.
    """
    for name in ("stdout", "stderr"):
        # None if it was closed at the start. The null device stays open until the process exits.
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if stream in (sys.__stdout__, sys.__stderr__):
            stream.reconfigure(errors="backslashreplace")
        if not isinstance(stream, SafeStream):
            setattr(sys, name, cast(TextIO, SafeStream(stream)))


@contextmanager
def safe_output() -> Iterator[None]:
    """Context with protected stdout and stderr, which are flushed at its end."""
    before = sys.stdout, sys.stderr
    protect_output()
    ours = cast(SafeStream, sys.stdout), cast(SafeStream, sys.stderr)
    try:
        yield
    finally:
        for stream in ours:
            stream.finish()
        sys.stdout, sys.stderr = before
