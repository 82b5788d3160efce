"""Wall-clock seconds of each stage of a command."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Stopwatch: `with clock.stage("train"): ...` adds the seconds of the block to `seconds["train"]`."""

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
        """Seconds by stage, as written to a result file."""
        return {name: round(seconds, 1) for name, seconds in self.seconds.items()}
