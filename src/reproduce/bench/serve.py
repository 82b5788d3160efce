"""`zipper bench-serve`: many clients of a server at once, with bad ones among them.

Two servers of one model take turns: one batches, the other generates one request after another. Every client
is OpenAI's own, in a thread of this process.
"""

import argparse
import io
import itertools
import json
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from openai import APIStatusError, OpenAI

from reproduce.bench.record import write_record
from zipper.config import load_config
from zipper.corpora.spoken import recipe_hash, spoken_texts
from zipper.errors import ConfigError

CONFIG, SENTENCES = Path("configs/asr.yaml"), 16
KINDS = ("transcription", "wav", "mp3", "stream")
PAUSE = 2.0  # seconds that a body may pause
Answer = tuple[str, float, float, Any]  # kind, seconds to the first byte and to the last, content


def run(args: argparse.Namespace) -> None:
    """Measure, print the figures, and write them to args.out."""
    cfg = load_config(CONFIG)
    texts = spoken_texts(cfg.data)["test"][:SENTENCES]
    batch = args.batch
    with ExitStack() as stack:
        servers = {size: stack.enter_context(_server(args.model, size)) for size in (batch, 1)}
        clients = {size: [_client(address) for _ in range(args.clients)] for size, address in servers.items()}
        waves = [_speak(clients[batch][0], text)[-1] for text in texts]
        jobs = [(kind, text, wave) for kind, text, wave in zip(itertools.cycle(KINDS), texts, waves)]
        idle = [_ask(clients[1][0], *job) for job in jobs]
        alone = [content for *_, content in idle]
        rates: dict[int, list[float]] = {size: [] for size in servers}
        answers: dict[int, list[Answer]] = {size: [] for size in servers}
        lost, refused = 0, []
        for _ in range(args.turns):
            for size, address in servers.items():
                asked = [i % len(jobs) for i in range(args.clients * args.requests)]

                def turn(client: int, size: int = size, asked: list[int] = asked) -> list[Answer]:
                    mine = asked[client :: args.clients]
                    return [_ask(clients[size][client], *jobs[i]) for i in mine]

                started = time.perf_counter()
                with ThreadPoolExecutor(args.clients + 1) as pool:
                    bad = pool.submit(_misuse, address, waves[0])
                    found = [*pool.map(turn, range(args.clients))]
                rates[size].append(len(asked) / (time.perf_counter() - started))
                refused.append(bad.result())
                for client, own in enumerate(found):
                    expected = [alone[i] for i in asked[client :: args.clients]]
                    lost += sum(one[-1] != right for one, right in zip(own, expected, strict=True))
                    answers[size] += own
    ratios = [many / one for many, one in zip(rates[batch], rates[1], strict=True)]
    content = {
        "clients": args.clients,
        "requests": args.clients * args.requests * args.turns * len(servers),
        "lost_or_different": lost,
        "requests_per_second": {str(size): _spread(rate) for size, rate in rates.items()},
        "throughput_ratio": _spread(ratios),
        "latency": {str(size): _latencies(found) for size, found in answers.items()},
        "latency_idle": _latencies(idle),
        "refused": {name: sorted({turn[name] for turn in refused}) for name in refused[0]},
    }
    print(json.dumps(content, indent=2))
    data = {"corpus": f"spoken {recipe_hash(cfg.data)}", "split": "test"}
    settings = {"model": args.model.name, "batch": batch, "turns": args.turns, "data_fingerprint": data}
    write_record("bench-serve", args.line, {**settings, **content}, args.out, cfg=cfg)


@contextmanager
def _server(model: Path, batch: int) -> Iterator[str]:
    """Address of a server that generates `batch` requests at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "zipper", "serve", str(model), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--batch", str(batch), "--waiting", "1000", "--seconds", str(PAUSE)],
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise ConfigError(f"The server of {model} ended before it answered: its error is above.")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise ConfigError(f"The server of {model} does not answer after a minute.")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _ask(client: OpenAI, kind: str, text: str, wave: bytes) -> Answer:
    if kind != "transcription":
        return _speak(client, text, "pcm" if kind == "stream" else kind)
    started = time.perf_counter()
    found = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", wave))
    took = time.perf_counter() - started
    return kind, took, took, found.text


def _speak(client: OpenAI, text: str, shape: Any = "wav") -> Answer:
    started, first, out = time.perf_counter(), 0.0, io.BytesIO()
    asking = client.audio.speech.with_streaming_response
    with asking.create(model="tts-1", voice="alloy", input=text, response_format=shape) as answer:
        for part in answer.iter_bytes():
            first = first or time.perf_counter() - started
            out.write(part)
    return "stream" if shape == "pcm" else shape, first, time.perf_counter() - started, out.getvalue()


def _client(address: str) -> OpenAI:
    return OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0, timeout=300)


def _misuse(address: str, wave: bytes) -> dict[str, int]:
    """Status of requests that cannot be answered. wave: a recording."""
    client, noise = _client(address), np.random.default_rng(0).bytes(9000)

    def status(ask: Callable[[], Any]) -> int:
        try:
            ask()
        except APIStatusError as error:
            return error.status_code
        return 200

    def transcribe(content: bytes) -> int:
        return status(lambda: client.audio.transcriptions.create(model="whisper-1", file=("a.wav", content)))

    def speak(text: str, model: str = "tts-1") -> int:
        return status(lambda: client.audio.speech.create(model=model, voice="alloy", input=text))

    host, port = address.split(":")
    head = b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"
    with socket.create_connection((host, int(port))) as cut:  # its body ends early
        cut.sendall(head)
    with socket.create_connection((host, int(port))) as slow:  # it never sends the rest
        slow.sendall(head)
        return {
            "malformed": status(lambda: client.post("/audio/speech", body=b"{", cast_to=object)),
            "no audio": transcribe(noise),
            "truncated": transcribe(wave[: len(wave) // 2]),
            "oversized": transcribe(bytes(26_000_000)),
            "too long": speak("the tiger " * 300),
            "unknown model": speak("the tiger", "other"),
            "slow": int(slow.recv(100).split()[1]),
        }


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "min": round(min(values), 2),
        "median": round(statistics.median(values), 2),
        "max": round(max(values), 2),
    }


def _latencies(answers: list[Answer]) -> dict[str, dict[str, float]]:
    found = {}
    for kind in KINDS:
        first, last = np.array([one[1:3] for one in answers if one[0] == kind]).T
        found[kind] = {f"p{q}": round(float(np.percentile(last, q)), 2) for q in (50, 95, 99)}
        found[kind] |= {f"first_byte_p{q}": round(float(np.percentile(first, q)), 2) for q in (50, 95)}
    return found
