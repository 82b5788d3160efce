"""Seconds of each stage of a command."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """`with clock.stage("train"): ...` adds what that took to `seconds["train"]`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def rounded(self) -> dict[str, float]:
        """As it stands in a result file."""
        return {name: round(seconds, 1) for name, seconds in self.seconds.items()}
