"""Speech recognition and text-to-speech over HTTP, as OpenAI's clients ask for them.

    POST /v1/audio/transcriptions   multipart: file, model; response_format json, text or verbose_json
    POST /v1/audio/speech           JSON: input, model, voice; response_format mp3, opus, flac, wav or pcm
    GET  /v1/models, /health, /metrics

No name from a request reaches the file system.
"""

import asyncio
import io
import itertools
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import prometheus_client as prometheus
import soundfile as sf
import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from torch import Tensor

from zipper.data.documents import Document
from zipper.errors import ConfigError, DataError
from zipper.generation.word_times import Word
from zipper.generation.zipper import Zipper
from zipper.modalities.audio import samples
from zipper.modalities.resampling import ResamplingStream, resample
from zipper.modalities.speech import Speech
from zipper.serving.batcher import GONE_EVERY, LIMIT, LONGEST, Batcher, Busy
from zipper.serving.middleware import LimitBody, Limits, Measure, Metrics, TooLarge, TooSlow

PCM_RATE = 24_000  # Hz, of OpenAI's `pcm`
FORMATS = {  # of libsndfile: format, subtype, media type
    "wav": ("WAV", "PCM_16", "audio/wav"),
    "flac": ("FLAC", "PCM_16", "audio/flac"),
    "mp3": ("MP3", "MPEG_LAYER_III", "audio/mpeg"),
    "opus": ("OGG", "OPUS", "audio/ogg"),
}
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)  # Hz
TEXTS = ("json", "text", "verbose_json")
MODELS = ("whisper-1", "tts-1", "tts-1-hd")  # names that clients send without being told
PIECE = 0.2  # seconds of a piece of streamed speech


class Refused(Exception):
    """A request that cannot be answered: HTTP status, reason, and the parameter at fault."""

    def __init__(self, status: int, reason: str, parameter: str | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.parameter = status, reason, parameter


def create_app(
    model: Zipper, name: str = "zipper", limits: Limits | None = None, page: bool = False
) -> FastAPI:
    """Server of a model. name: by which clients may ask for it. page: also a page for people, at /."""
    limits, metrics = limits or Limits(), Metrics()
    batcher = Batcher(model, limits.batch, limits.waiting, metrics.batch.observe)
    starting = ThreadPoolExecutor(limits.batch + limits.waiting)  # streams that wait for their first piece

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batcher.close)

    app = FastAPI(title=name, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
        content = {"message": error.reason, "type": kind, "param": error.parameter, "code": None}
        headers = {"Retry-After": "2"} if error.status == 429 else None
        return JSONResponse({"error": content}, error.status, headers)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> JSONResponse:
        reason = f"{request.method} {request.url.path} is not served here ({error.detail})."
        answer = await refused(request, Refused(error.status_code, reason))
        answer.headers.update(error.headers or {})  # Allow
        return answer

    @app.post("/v1/audio/transcriptions")
    async def transcriptions(request: Request) -> Response:
        form = await _body(request.form(max_files=1, max_fields=20), limits)
        _check_model(form.get("model"), name)
        shape = form.get("response_format") or "json"
        if shape not in TEXTS:
            raise Refused(
                400, f"response_format={shape!r} is not one of {', '.join(TEXTS)}.", "response_format"
            )
        if str(language := form.get("language") or "en").lower() not in ("en", "english"):
            raise Refused(400, f"language={language!r}: this model knows English alone.", "language")
        if str(form.get("stream") or "false").lower() != "false":
            raise Refused(400, "stream: a transcript comes as a whole. Leave it out.", "stream")
        if any(form.getlist(key) for key in ("include[]", "include")):
            raise Refused(400, "include: no log-probabilities are given. Leave it out.", "include")
        # As clients send it, and as people write it.
        granularities = [one for end in ("[]", "") for one in form.getlist(f"timestamp_granularities{end}")]
        if other := [one for one in granularities if one != "word"]:
            reason = f"timestamp_granularities={other[0]!r}: only words have times."
            raise Refused(400, reason, "timestamp_granularities")
        if "word" in granularities and shape != "verbose_json":
            reason = "Words have times in response_format=verbose_json alone."
            raise Refused(400, reason, "timestamp_granularities")
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise Refused(400, "file is missing: send a recording as multipart/form-data.", "file")
        wave = await asyncio.to_thread(_wave, model, await file.read())
        words: list[Word] = []
        if _refusing(model.is_long, wave, parameter="file"):
            words = await _long(request, batcher, wave, "word" in granularities)
            text = " ".join(word.text for word in words)
        else:
            text = await _answer(request, batcher, "speech", wave, "text")
            if text and "word" in granularities:
                words = await _word_times(batcher, wave, text)
        if shape == "text":
            return PlainTextResponse(text + "\n")
        found: dict[str, Any] = {"text": text}
        if shape == "verbose_json":
            found |= {"task": "transcribe", "language": "english", "duration": len(wave) / model.sample_rate}
        if "word" in granularities:
            found["words"] = [{"word": word, "start": start, "end": end} for word, start, end in words]
        return JSONResponse(found)

    @app.post("/v1/audio/speech")
    async def speech(request: Request) -> Response:
        asked = await _body(request.json(), limits)
        if not isinstance(asked, dict) or not isinstance(text := asked.get("input"), str):
            raise Refused(400, "input is missing: send JSON with the text to speak.", "input")
        _check_model(asked.get("model"), name)
        shape = asked.get("response_format") or "mp3"
        if shape not in (*FORMATS, "pcm"):
            known = ", ".join([*FORMATS, "pcm"])
            raise Refused(400, f"response_format={shape!r} is not one of {known}.", "response_format")
        if (asked.get("stream_format") or "audio") != "audio":
            raise Refused(400, "stream_format: only audio is sent, no events.", "stream_format")
        if asked.get("speed", 1) not in (None, 1):
            raise Refused(400, "speed: this model speaks at one speed. Leave it out.", "speed")
        if shape == "pcm":
            prompt, gone = await asyncio.to_thread(_prompt, model, "text", text), threading.Event()
            pieces = _pcm(_refusing(_spoken, batcher, prompt, gone), model.sample_rate)
            first = asyncio.get_running_loop().run_in_executor(starting, _refusing, next, pieces, b"")
            start = await _unless_gone(request, first, gone.set)
            return StreamingResponse(itertools.chain([start], pieces), media_type="audio/pcm")
        wave = await _answer(request, batcher, "text", text, "speech")
        return Response(
            await asyncio.to_thread(_written, wave, model.sample_rate, shape), media_type=FORMATS[shape][2]
        )

    entry = {"id": name, "object": "model", "owned_by": "zipper", "created": 0}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [entry]}

    @app.get("/v1/models/{asked:path}")
    async def model_entry(asked: str) -> dict[str, Any]:
        _check_model(asked, name)
        return entry

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> dict[str, Any]:
        if not batcher.thread.is_alive():
            raise Refused(503, "The thread that generates has ended. Start the server again.")
        return {"status": "ok", "waiting": batcher.queued}

    @app.get("/metrics")
    async def counters() -> Response:
        return PlainTextResponse(prometheus.generate_latest(metrics.registry))

    if page:
        from zipper.serving.web import add_page  # its package is another extra

        @app.api_route("/v1/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
        async def no_page(rest: str) -> None:
            """The page answers all that nothing else does."""
            raise HTTPException(404, "Not Found")

        add_page(app, model, batcher, name, limits.megabytes)
    app.add_middleware(Measure, seen=metrics.answered)
    app.add_middleware(LimitBody, most=int(limits.megabytes * 1e6), seconds=limits.seconds)
    return app


async def _body(parsed: Any, limits: Limits) -> Any:
    """Parsed body of a request. Raises Refused."""
    try:
        return await parsed
    except TooLarge:
        raise Refused(413, f"The body exceeds {limits.megabytes:g} MB. Send a shorter recording.") from None
    except TooSlow:
        raise Refused(408, f"The body paused for {limits.seconds:g} s. Send it again.") from None
    except Exception as error:  # every parser has its own
        raise Refused(400, f"The body cannot be read ({str(error) or type(error).__name__}).") from error


def _check_model(asked: Any, name: str) -> None:
    if asked is not None and asked not in (name, *MODELS):
        raise Refused(404, f"model={asked!r} is not served here: ask for {name!r}.", "model")


def _wave(model: Zipper, content: bytes) -> Tensor:
    """Waveform of an uploaded recording. Raises Refused."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recording"
        file.write_bytes(content)
        try:
            return model.modalities["speech"].read(file, longest=LONGEST, limit=LIMIT)
        except DataError as error:
            raise Refused(400, str(error).replace(str(file), "The recording"), "file") from error


def _refusing(run: Any, *arguments: Any, parameter: str = "input") -> Any:
    """Result of a call. Raises Refused in place of a model's errors."""
    try:
        return run(*arguments)
    except Busy as error:
        raise Refused(429, str(error)) from error
    except (ConfigError, DataError) as error:
        raise Refused(400, str(error), parameter) from error


def _prompt(model: Zipper, modality: str, raw: Any) -> Document:
    """All have one id, so that an answer does not depend on the others. Raises Refused."""
    return _refusing(
        model.document, "0", {modality: raw}, parameter="file" if modality == "speech" else "input"
    )


async def _answer(request: Request, batcher: Batcher, modality: str, raw: Any, to: str) -> Any:
    """Value that a model generates. Raises Refused, also if the client goes meanwhile."""
    prompt, gone = await asyncio.to_thread(_prompt, batcher.model, modality, raw), threading.Event()
    named = "file" if modality == "speech" else "input"
    try:
        asked = asyncio.wrap_future(_refusing(batcher.generate, prompt, to, gone, parameter=named))
        asked.add_done_callback(lambda _: gone.set())  # also if it is cancelled
        segment = await _unless_gone(request, asked, asked.cancel)
    except (ConfigError, DataError) as error:
        raise Refused(400, str(error), named) from error
    return await asyncio.to_thread(batcher.model.modalities[to].decode, segment.content)


async def _unless_gone(request: Request, asked: "asyncio.Future[Any]", stop: Callable[[], object]) -> Any:
    """Result of what a client waits for. Calls `stop` and raises Refused if it goes meanwhile."""
    while not (await asyncio.wait({asked}, timeout=GONE_EVERY))[0]:
        if await request.is_disconnected():
            stop()
            raise Refused(499, "The client has gone.")
    return asked.result()


async def _long(request: Request, batcher: Batcher, wave: Tensor, times: bool) -> list[Word]:
    """Words of a recording that is longer than a prompt; of its beginning if the client goes. Raises
    Refused."""
    words: list[Word] = []
    pieces = batcher.transcribe_long(wave, times)
    while asked := _refusing(next, pieces, None, parameter="file"):
        try:
            words += await asyncio.wrap_future(asked)
        except (ConfigError, DataError) as error:
            raise Refused(400, str(error), "file") from error
        if await request.is_disconnected():
            break
    return words


async def _word_times(batcher: Batcher, wave: Tensor, text: str) -> list[Word]:
    """Words of a transcript with their start and end in seconds. Raises Refused."""
    try:
        return await asyncio.wrap_future(
            _refusing(batcher.run, lambda: batcher.model.transcript_words(wave, text))
        )
    except ConfigError as error:
        raise Refused(400, str(error), "timestamp_granularities") from error


def _written(wave: Tensor, rate: int, shape: str) -> bytes:
    """File of a waveform float32 [n] at `rate` (Hz) in one of FORMATS; Opus has few rates, others become
    PCM_RATE."""
    container, subtype, _ = FORMATS[shape]
    if shape == "opus" and rate not in OPUS_RATES:
        wave, rate = resample(wave, rate, PCM_RATE), PCM_RATE
    out = io.BytesIO()
    sf.write(out, samples(wave), rate, subtype, format=container)
    return out.getvalue()


def _spoken(batcher: Batcher, prompt: Document, gone: threading.Event) -> Iterator[Tensor]:
    """Pieces float32 [n] of speech while it is generated. gone: set once nobody waits for them."""
    speech = batcher.model.modalities["speech"]
    assert isinstance(speech, Speech)
    return speech.decode_stream(batcher.stream(prompt, "speech", gone), PIECE)


def _pcm(pieces: Iterator[Tensor], rate: int) -> Iterator[bytes]:
    """16-bit samples at PCM_RATE, little endian, of pieces of a waveform at `rate`."""
    resampled = ResamplingStream(rate, PCM_RATE)
    for piece in pieces:
        yield _int16(resampled.push(piece))
    yield _int16(resampled.push(torch.zeros(0), last=True))


def _int16(wave: Tensor) -> bytes:
    return (wave.clamp(-1, 1) * 32767).round().numpy().astype(np.dtype("<i2")).tobytes()
