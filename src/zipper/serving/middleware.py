"""Limits of a server, and ASGI middleware: what a body may be, and what each request took."""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import prometheus_client as prometheus

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """batch: requests that are generated together. waiting: requests that wait; more are refused with 429.
    megabytes: of a body. seconds: between its parts."""

    batch: int = 16
    waiting: int = 64
    megabytes: float = 25.0
    seconds: float = 30.0


class TooLarge(Exception):
    """The body exceeds the limit."""


class TooSlow(Exception):
    """The body stopped arriving."""


class LimitBody:
    """ASGI middleware: a body of more than `most` bytes ends with TooLarge, one that pauses for more than
    `seconds` with TooSlow, whatever its headers say. An app that does not catch them answers 413 or 408."""

    def __init__(self, app: App, most: int, seconds: float) -> None:
        self.app, self.most, self.seconds = app, most, seconds

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        taken, ended, status = 0, False, 500

        async def limited() -> Message:
            nonlocal taken, ended, status
            if ended:
                return await receive()  # waits for the client to go
            try:
                message = await asyncio.wait_for(receive(), self.seconds)
            except TimeoutError:
                status = 408
                raise TooSlow from None
            taken += len(message.get("body", b""))
            ended = not message.get("more_body", False)
            if taken > self.most:
                status = 413
                raise TooLarge
            return message

        async def named(message: Message) -> None:
            await send({**message, "status": status} if message.get("status") == 500 else message)

        with suppress(TooLarge, TooSlow):
            await self.app(scope, limited, named)


class Metrics:
    """Counters in Prometheus' format."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        self.requests = prometheus.Counter(
            "zipper_requests", "Answered requests", ["path", "status"], registry=self.registry
        )
        self.seconds = prometheus.Histogram(
            "zipper_seconds", "Seconds from a request to its answer", ["path"], registry=self.registry
        )
        self.batch = prometheus.Histogram(
            "zipper_batch",
            "Requests generated together",
            registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32),
        )

    def answered(self, path: str, status: int, seconds: float) -> None:
        self.requests.labels(path, status).inc()
        self.seconds.labels(path).observe(seconds)


class Measure:
    """ASGI middleware that calls `seen(path, status, seconds)` after each answer; path: of its route."""

    def __init__(self, app: App, seen: Callable[[str, int, float], None]) -> None:
        self.app, self.seen = app, seen

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def told(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, told)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.seen(path, status, time.perf_counter() - started)
