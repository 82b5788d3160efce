"""One thread that runs a model for many requests: they join a batch while it is generated, and leave it when
they have ended."""

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zipper.data.documents import Document
from zipper.errors import ConfigError, ZipperError
from zipper.generation.continuous import ContinuousBatch, Running
from zipper.generation.generate import GenerationOutput, generate
from zipper.generation.order import check_prompts
from zipper.generation.threads import few_threads
from zipper.generation.word_times import Word
from zipper.generation.zipper import Zipper

LONGEST = 1500.0  # seconds of a recording, as OpenAI's endpoint takes
LIMIT = "the {:g} s that this server accepts"
END = None  # of a stream's pieces
GONE_EVERY = 0.5  # seconds between two looks at whether who waits has gone


class Busy(ZipperError):
    """Too many requests wait already."""


@dataclass(eq=False)
class Request:
    """A prompt, and the modality to generate. pieces: of the content int64 [Q, F], for a stream."""

    prompt: Document
    to: str
    future: "Future[GenerationOutput]" = field(default_factory=Future)
    pieces: "queue.Queue[Tensor | Exception | None]" = field(default_factory=queue.Queue)
    gone: threading.Event = field(default_factory=threading.Event)  # set once nobody waits for it
    streams: bool = False
    sent: int = 0  # frames
    row: Running | None = None  # while it is generated


class Batcher:
    """Runs a model's network in its own thread; a modality's requests are one `ContinuousBatch`, or, where it
    is decoded by beam search, one after another. Encoding and decoding are the callers'. An answer does not
    depend on the others."""

    def __init__(
        self,
        model: Zipper,
        batch: int = 16,
        waiting: int = 64,
        seen: Callable[[int], None] = lambda size: None,
    ) -> None:
        """batch: most requests at once, of each modality. waiting: requests that may wait for that; more are
        refused. seen: told of the size of each timestep's batch."""
        self.model, self.batch, self.most, self.seen = model.eval(), batch, waiting, seen
        network, decode = model.network, model.config.decode
        self.batches = {
            name: ContinuousBatch(network, name, model.statistics, decode)
            for name in network.names
            if name not in decode or decode[name].incremental
        }
        self.running: dict[str, list[Request]] = {name: [] for name in self.batches}
        self.waiting: deque[Request] = deque()
        self.calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self.next_call = 0.0  # on the clock of time.monotonic; timesteps come first until then
        self.changed = threading.Condition()
        self.closed = False
        self.thread = threading.Thread(target=self._run, name="zipper-batcher", daemon=True)
        self.thread.start()

    def generate(
        self, prompt: Document, to: str, gone: threading.Event | None = None
    ) -> "Future[GenerationOutput]":
        """Segment of modality `to` after a prompt. gone: set once nobody waits for it, it is generated no
        further, and has no result. Raises Busy, and ConfigError as `check_prompts`."""
        if to not in self.batches:
            model = self.model
            check_prompts(model.network, [prompt], [to])
            return self.run(
                lambda: generate(model.network, [prompt], [to], model.statistics, model.config.decode)[0][0]
            )
        return self._add(Request(prompt, to, gone=gone or threading.Event())).future

    def stream(self, prompt: Document, to: str, gone: threading.Event | None = None) -> Iterator[Tensor]:
        """Pieces int64 [Q, F] of the content of a segment while it is generated. gone: as of `generate`; it
        is set if the pieces are closed early. Raises as `generate`, and ConfigError on beam search."""
        return self._pieces(self._add(Request(prompt, to, gone=gone or threading.Event(), streams=True)))

    @staticmethod
    def _pieces(request: Request) -> Iterator[Tensor]:
        try:
            while not request.gone.is_set():
                try:
                    piece = request.pieces.get(timeout=GONE_EVERY)
                except queue.Empty:
                    continue
                if piece is END:
                    return
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            request.gone.set()
            request.future.cancel()  # while it waits for room

    def run(self, function: Callable[[], Any], begun: bool = False) -> "Future[Any]":
        """Result of a function that uses the network, between two timesteps, which have it for as long as the
        function before took. Raises Busy, unless it goes on with what has begun."""
        future: Future[Any] = Future()
        with self.changed:
            self.calls = deque(one for one in self.calls if not one[1].cancelled())
            if not begun or self.closed:
                self._check_room(len(self.calls))
            self.calls.append((function, future))
            self.changed.notify()
        return future

    def transcribe_long(self, wave: Tensor, times: bool = True) -> "Iterator[Future[list[Word]]]":
        """Words of a recording float32 [n] that is longer than a prompt may be, cut at its pauses: one piece
        after another, between the timesteps of others. times: of the words. Raises Busy before the first,
        and ConfigError on times if the model has no zips."""
        live = self.model.recording_transcript(wave, times)
        for at, piece in enumerate(wave.split(live.step)):
            yield self.run(partial(live.feed, piece), begun=at > 0)
        yield self.run(live.finish, begun=True)

    @property
    def queued(self) -> int:
        """Number of requests that wait, of every kind."""
        return len(self.waiting) + len(self.calls)

    def close(self) -> None:
        """Finish what waits, then stop."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()

    def _add(self, request: Request) -> Request:
        check_prompts(self.model.network, [request.prompt], [request.to])
        if request.to not in self.batches:
            how = self.model.config.decode[request.to]
            why = f"{how.candidates} candidates, of which the best is kept" if how.candidates > 1 else "beams"
            raise ConfigError(
                f"Speech or text that is chosen at its end cannot be streamed ({request.to}: {why}). Ask for "
                "the whole of it, or set decode to one candidate without beams."
            )
        with self.changed:
            self.waiting = deque(one for one in self.waiting if not one.future.cancelled())
            self._check_room(len(self.waiting))
            self.waiting.append(request)
            self.changed.notify()
        return request

    def _check_room(self, waiting: int) -> None:
        if self.closed:
            raise Busy("The server is being stopped. Try again when it has started.")
        if waiting >= self.most:
            raise Busy(f"{waiting} requests wait already. Try again in a few seconds.")

    def _run(self) -> None:
        while True:
            with self.changed:
                while not (self.waiting or self.calls or any(self.running.values()) or self.closed):
                    self.changed.wait()
                if not (self.waiting or self.calls or any(self.running.values())):
                    return
                joining = self._joining()
                due = time.monotonic() >= self.next_call or not (joining or any(self.running.values()))
                call = self.calls.popleft() if self.calls and due else None
            if call:
                begun = time.monotonic()
                self._call(*call)
                self.next_call = 2 * time.monotonic() - begun
            for name in self.batches:
                try:
                    self._step(name, [one for one in joining if one.to == name])
                except Exception as error:  # whoever asked gets it, and the thread goes on
                    self._fail(name, error)

    @staticmethod
    def _call(function: Callable[[], Any], future: "Future[Any]") -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function())
            except Exception as error:  # whoever asked gets it
                future.set_exception(error)

    def _joining(self) -> list[Request]:
        """Requests that have room in their batch, in the order in which they came."""
        found: list[Request] = []
        for name, running in self.running.items():
            alike = (one for one in self.waiting if one.to == name)
            found += itertools.islice(alike, max(0, self.batch - len(running)))
        for one in found:
            self.waiting.remove(one)
        # Without those whose caller has gone.
        return [one for one in found if one.future.set_running_or_notify_cancel()]

    def _step(self, name: str, joining: list[Request]) -> None:
        batch, running = self.batches[name], self.running[name]
        running += joining
        if joining:
            rows = batch.add([one.prompt for one in joining])
            for one, row in zip(joining, rows, strict=True):
                one.row = row
        if not running:
            return
        for one in running:
            if one.row is not None and one.gone.is_set():
                one.row.wanted = False
        self.seen(len(running))
        with few_threads(batch.model, len(running)):
            left = {id(row) for row in batch.step()}
        for one in running:
            if one.streams:
                self._send(one)
        for one in [one for one in running if id(one.row) in left]:
            running.remove(one)
            one.pieces.put(END)
            if one.row is not None and one.row.output is not None:
                one.future.set_result(one.row.output)

    def _send(self, request: Request) -> None:
        """Hand out the frames whose codebooks are all known."""
        assert request.row is not None
        content = self.batches[request.to].layout.complete(torch.stack(request.row.tokens))
        if content.shape[1] > request.sent:
            request.pieces.put(content[:, request.sent :])
            request.sent = content.shape[1]

    def _fail(self, name: str, error: Exception) -> None:
        """Give an error to all of a batch, and begin a new one."""
        network, decode = self.model.network, self.model.config.decode
        self.batches[name] = ContinuousBatch(network, name, self.model.statistics, decode)
        for one in self.running[name]:
            one.future.set_exception(error)
            one.pieces.put(error)
        self.running[name] = []
