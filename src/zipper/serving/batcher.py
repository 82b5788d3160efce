"""One thread that runs a model for many requests: those that wait together are generated together."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from zipper.errors import ZipperError
from zipper.generation.generate import generate
from zipper.generation.prompts import prompt_of
from zipper.generation.zipper import Zipper

END = None  # of a stream's pieces


class Busy(ZipperError):
    """Too many requests wait already."""


@dataclass
class Request:
    """A prompt, and the modality to generate. pieces: of the waveform, for a stream."""

    modality: str
    raw: Any
    to: str
    future: "Future[Any]" = field(default_factory=Future)
    pieces: "queue.Queue[Tensor | Exception | None] | None" = None


class Batcher:
    """Runs a model in its own thread. Requests of one kind that wait when it is free become one batch, whose
    prompts do not affect one another."""

    def __init__(
        self,
        model: Zipper,
        batch: int = 16,
        waiting: int = 64,
        seen: Callable[[int], None] = lambda size: None,
    ) -> None:
        """batch: largest one. waiting: requests that may wait; more are refused. seen: told of each batch."""
        self.model, self.batch, self.most, self.seen = model.eval(), batch, waiting, seen
        self.waiting: deque[Request] = deque()
        self.changed = threading.Condition()
        self.closed = False
        self.thread = threading.Thread(target=self._run, name="zipper-batcher", daemon=True)
        self.thread.start()

    def generate(self, modality: str, raw: Any, to: str) -> "Future[Any]":
        """Value of the segment of modality `to` after a prompt: text, or a waveform float32 [n]. Raises Busy;
        the future raises ConfigError or DataError on a prompt that cannot be used."""
        return self._add(Request(modality, raw, to)).future

    def stream(self, text: str) -> Iterator[Tensor]:
        """Pieces float32 [n] of a text's speech while it is generated. Raises as `generate`, before the first
        piece."""
        request = self._add(Request("text", text, "speech", pieces=queue.Queue()))
        assert request.pieces is not None
        while (piece := request.pieces.get()) is not END:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def close(self) -> None:
        """Finish what waits, then stop."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()

    def _add(self, request: Request) -> Request:
        with self.changed:
            if self.closed or len(self.waiting) >= self.most:
                raise Busy(f"{len(self.waiting)} requests wait already. Try again in a few seconds.")
            self.waiting.append(request)
            self.changed.notify()
        return request

    def _take(self) -> list[Request]:
        """The next batch; empty once closed. A stream is taken alone."""
        with self.changed:
            while not self.waiting and not self.closed:
                self.changed.wait()
            if not self.waiting:
                return []
            first = self.waiting.popleft()
            if first.pieces is not None:
                return [first]
            alike = [one for one in self.waiting if one.to == first.to and one.pieces is None]
            batch = [first, *alike[: self.batch - 1]]
            for one in batch[1:]:
                self.waiting.remove(one)
            return batch

    def _run(self) -> None:
        while batch := self._take():
            self.seen(len(batch))
            if batch[0].pieces is not None:
                self._speak(batch[0])
            else:
                self._generate(batch)

    def _speak(self, request: Request) -> None:
        assert request.pieces is not None
        try:
            for piece in self.model.stream(request.raw):
                request.pieces.put(piece)
        except Exception as error:  # the request's, not the server's end
            request.pieces.put(error)
        request.pieces.put(END)

    def _generate(self, batch: list[Request]) -> None:
        model, documents, running = self.model, [], []
        for request in batch:
            if not request.future.set_running_or_notify_cancel():
                continue  # whoever asked has gone
            try:
                # All have one id, so that an answer does not depend on the batch.
                documents.append(prompt_of("0", model.encode(request.modality, request.raw)))
                running.append(request)
            except Exception as error:  # that of one prompt, which does not end the batch
                request.future.set_exception(error)
        if not running:
            return
        try:
            order = [running[0].to]
            found = generate(model.network, documents, order, model.statistics, model.config.decode)
            for request, (segment,) in zip(running, found, strict=True):
                request.future.set_result(model.modalities[segment.modality].decode(segment.content))
        except Exception as error:  # whoever asked gets it, and the thread goes on
            for request in running:
                if not request.future.done():
                    request.future.set_exception(error)
