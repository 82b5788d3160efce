"""`zipper serve`, asked by OpenAI's own client and by others that mean no good."""

import io
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile as sf
import torch
from fastapi.testclient import TestClient
from openai import APIStatusError, OpenAI
from served import serving

import zipper
from zipper.config import with_overrides
from zipper.errors import ConfigError
from zipper.serving.app import FORMATS, _written, create_app
from zipper.serving.batcher import Batcher, Busy
from zipper.serving.middleware import Limits

ROOT = Path(__file__).parents[3]
RECORDING = ROOT / "results/samples/test-00000-original.flac"
TEXT = "why did helen give the blue wallet to the quiet singer"


@pytest.fixture(scope="module")
def model() -> zipper.Zipper:
    return zipper.Zipper.from_pretrained(ROOT / "assets/zipped")


@pytest.fixture(scope="module")
def address(model) -> Iterator[str]:
    with serving(create_app(model, limits=Limits(seconds=0.5))) as address:
        yield address


@pytest.fixture
def client(address) -> OpenAI:
    return OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0)


def test_openais_client_transcribes(client, model):
    expected = model.transcribe(RECORDING)
    with RECORDING.open("rb") as file:
        assert client.audio.transcriptions.create(model="whisper-1", file=file).text == expected
    with RECORDING.open("rb") as file:
        answer = client.audio.transcriptions.create(
            model="zipper", file=file, response_format="verbose_json", timestamp_granularities=["word"]
        )
    assert answer.text == expected
    assert [(one.word, one.start, one.end) for one in answer.words] == model.transcribe_words(RECORDING)
    assert answer.duration == pytest.approx(sf.info(RECORDING).duration, abs=0.01)
    with RECORDING.open("rb") as file:
        answer = client.audio.transcriptions.create(model="zipper", file=file, response_format="text")
    assert answer.strip() == expected
    assert [one.id for one in client.models.list()] == ["zipper"]
    assert client.models.retrieve("zipper").id == "zipper"
    with pytest.raises(APIStatusError, match="model='other' is not served here"):
        client.models.retrieve("other")


def test_a_recording_longer_than_a_prompt_is_cut_at_pauses_among_other_requests(client, model):
    wave, rate = sf.read(RECORDING, dtype="float32")
    long = np.tile(np.concatenate([wave, np.zeros(rate, np.float32)]), 5)
    assert len(long) > model.longest_recording * rate
    file = io.BytesIO()
    sf.write(file, long, rate, format="wav")

    def transcribe(recording: bytes, **asked) -> Any:
        return client.audio.transcriptions.create(model="zipper", file=("a.wav", recording), **asked)

    timed = {"response_format": "verbose_json", "timestamp_granularities": ["word"]}
    with ThreadPoolExecutor(3) as pool:
        whole = pool.submit(transcribe, file.getvalue())
        words = pool.submit(transcribe, file.getvalue(), **timed)
        short = pool.submit(transcribe, RECORDING.read_bytes())
    expected = model.transcribe_words(long)
    assert len(expected) > 40
    assert whole.result().text == words.result().text == model.transcribe(long)
    assert [(one.word, one.start, one.end) for one in words.result().words] == expected
    assert short.result().text == model.transcribe(RECORDING)


def test_openais_client_speaks(client, model):
    whole = model.synthesize(TEXT)
    for shape, tolerance in (("wav", 1e-3), ("flac", 1e-3), ("mp3", None), ("opus", None)):
        spoken = client.audio.speech.create(model="tts-1", voice="alloy", input=TEXT, response_format=shape)
        samples, rate = sf.read(io.BytesIO(spoken.content), dtype="float32")
        assert len(samples) / rate == pytest.approx(len(whole) / model.sample_rate, abs=0.1)
        if tolerance:
            np.testing.assert_allclose(samples, whole.clamp(-1, 1), atol=tolerance)


def test_speech_is_streamed_and_is_the_same(client, model):
    ask = client.audio.speech.with_streaming_response.create
    with ask(model="tts-1", voice="alloy", input=TEXT, response_format="pcm") as answer:
        parts = [*answer.iter_bytes()]
    assert len(parts) > 3
    samples = torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.int16) / 32767
    import torchaudio.functional as AF

    whole = AF.resample(model.synthesize(TEXT), model.sample_rate, 24_000)
    assert len(samples) == len(whole)
    torch.testing.assert_close(samples, whole.clamp(-1, 1), rtol=0, atol=2e-3)


def test_a_long_recording_that_has_begun_is_finished_though_others_wait(model):
    batcher = Batcher(model, waiting=1)
    free = threading.Event()
    try:
        pieces = batcher.transcribe_long(
            torch.randn(int(4 * model.longest_recording * model.sample_rate)) / 10
        )
        next(pieces).result()
        held = batcher.run(free.wait)
        while batcher.calls:
            time.sleep(0.01)  # until the thread has taken it
        batcher.run(lambda: None)
        with pytest.raises(Busy):
            batcher.run(lambda: None)
        second = next(pieces)
        free.set()
        assert held.result()
        assert isinstance(second.result(), list)
    finally:
        free.set()
        batcher.close()


def bytes_of(wave: np.ndarray, shape: str = "WAV") -> bytes:
    out = io.BytesIO()
    sf.write(out, wave, 16_000, format=shape)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"no audio at all", 400, "cannot be read as audio"),
        (b"", 400, "cannot be read as audio"),
        (bytes_of(np.zeros(16_000)), 400, "is silent"),
        (RECORDING.read_bytes()[:9000], 400, "The recording"),
        (
            bytes_of(np.resize([0.1, -0.1], 16_000 * 1501), "FLAC"),
            400,
            "more than the 1500 s that this server",
        ),
        (bytes(26_000_000), 413, "exceeds 25 MB"),
    ],
    ids=["text", "empty", "silent", "cut", "long", "large"],
)
def test_a_recording_that_cannot_be_used_is_refused_with_the_reason(client, content, status, reason):
    with pytest.raises(APIStatusError, match=reason) as error:
        client.audio.transcriptions.create(model="zipper", file=("../../etc/passwd", content))
    assert error.value.status_code == status
    assert "/tmp" not in str(error.value)
    with RECORDING.open("rb") as file:  # and harms nobody
        assert client.audio.transcriptions.create(model="zipper", file=file).text


def test_word_times_are_given_where_the_api_has_them(client):
    ask = partial(client.audio.transcriptions.create, model="zipper", file=("a.flac", RECORDING.read_bytes()))
    assert ask(response_format="verbose_json").words is None
    with pytest.raises(APIStatusError, match="verbose_json alone") as error:
        ask(response_format="json", timestamp_granularities=["word"])
    assert error.value.status_code == 400
    with pytest.raises(APIStatusError, match="no log-probabilities"):
        ask(include=["logprobs"])


@pytest.mark.parametrize(
    ("asked", "status", "reason"),
    [
        ({"input": ""}, 400, "no letter"),
        ({"input": "7 up"}, 400, "digits"),
        ({"input": TEXT, "response_format": "aac"}, 400, "not one of"),
        ({"input": TEXT, "speed": 1.5}, 400, "one speed"),
        ({"input": TEXT, "extra_body": {"stream_format": "sse"}}, 400, "no events"),
        ({"input": TEXT, "model": "gpt-4o"}, 404, "not served here"),
        ({"input": "the cat " * 300}, 400, "accepts at most"),
        ({"input": "", "response_format": "pcm"}, 400, "no letter"),
    ],
)
def test_a_text_that_cannot_be_spoken_is_refused_with_the_reason(client, asked, status, reason):
    with pytest.raises(APIStatusError, match=reason) as error:
        client.audio.speech.create(**{"model": "tts-1", "voice": "alloy", **asked})
    assert error.value.status_code == status


def test_what_is_not_served_is_refused_as_openai_refuses(model):
    with TestClient(create_app(model)) as client:
        for answer in (client.post("/v1/embeddings", json={}), client.get("/v1/audio/speech")):
            assert "is not served here" in answer.json()["error"]["message"]
        assert answer.status_code == 405


def test_a_body_that_stops_arriving_is_given_up(address):
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as one:
        head = "POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        one.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        assert b" 408 " in one.recv(4000)


@pytest.mark.parametrize("body", [b"{", b"[1]", b'{"input": 3}', b"\xff\xfe"])
def test_json_that_is_none_or_holds_something_else_is_refused(model, body):
    with TestClient(create_app(model)) as client:
        answer = client.post("/v1/audio/speech", content=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]
        assert client.post("/v1/audio/transcriptions", content=body).status_code == 400
        assert client.get("/health").json()["status"] == "ok"
        assert client.head("/health").status_code == 200  # as load balancers ask
        assert 'path="/v1/audio/speech",status="400"' in client.get("/metrics").text


def test_more_requests_than_may_wait_are_refused_until_some_are_answered(model):
    with TestClient(create_app(model, limits=Limits(waiting=0))) as client:
        answer = client.post("/v1/audio/speech", json={"input": TEXT})
        assert answer.status_code == 429
        assert answer.headers["Retry-After"]


def test_requests_join_and_leave_a_batch_and_get_what_they_would_get_alone(model):
    sizes: list[int] = []
    texts = [TEXT, "julia carried thirty five green buttons", "every wednesday at five daniel slept"]
    prompts = [model.document("0", {"text": text}) for text in texts]
    expected = [model.synthesize(text) for text in texts]
    speech = model.modalities["speech"]
    batcher = Batcher(model, batch=2, seen=sizes.append)
    with batcher.changed:  # the model is busy until all have come
        futures = [batcher.generate(prompt, "speech") for prompt in prompts]
        gone = batcher.generate(prompts[0], "speech")
        assert gone.cancel()
    listening = batcher.generate(model.document("0", {"speech": expected[1]}), "text")
    streamed = [*batcher.stream(prompts[0], "speech")]
    for future, wave in zip(futures, expected, strict=True):
        torch.testing.assert_close(speech.decode(future.result(60).content), wave, rtol=0, atol=1e-5)
    assert torch.equal(torch.cat(streamed, 1), futures[0].result().content)
    assert model.modalities["text"].decode(listening.result(60).content) == model.transcribe(expected[1])
    assert max(sizes) == 2
    assert batcher.run(lambda: 1 + 1).result(60) == 2
    late = batcher.generate(prompts[0], "speech")
    batcher.close()  # answers what waits
    assert torch.equal(late.result(0).content, futures[0].result().content)
    with pytest.raises(zipper.ZipperError, match="is being stopped"):
        batcher.generate(prompts[0], "speech")


def test_a_stream_that_nobody_reads_is_not_generated_further(model):
    sizes: list[int] = []
    batcher = Batcher(model, seen=sizes.append)
    stream = batcher.stream(model.document("0", {"text": TEXT}), "speech")
    next(stream)
    stream.close()
    batcher.close()
    assert len(sizes) < 40  # of about 65 timesteps


@pytest.mark.parametrize("shape", ["wav", "pcm"])
def test_more_requests_than_may_wait_are_refused_and_clients_that_go_are_forgotten(model, shape, monkeypatch):
    """Streams, too, wait before their first piece, and do not hold up what else is asked meanwhile."""
    made, busy = list[Batcher](), threading.Event()
    monkeypatch.setattr("zipper.serving.app.Batcher", lambda *given: made.append(Batcher(*given)) or made[0])
    app = create_app(model, limits=Limits(batch=1, waiting=20))
    body = {"model": "zipper", "voice": "alloy", "input": TEXT, "response_format": shape}

    def ask(seconds: float) -> int:
        try:
            return httpx.post(f"http://{address}/v1/audio/speech", json=body, timeout=seconds).status_code
        except httpx.TimeoutException:
            return 0

    with serving(app) as address, ThreadPoolExecutor(30) as several:
        made[0].run(lambda: busy.wait(60))
        found = several.map(ask, [3.0] * 30)
        time.sleep(1)
        assert httpx.post(f"http://{address}/v1/audio/speech", json=body | {"input": " "}).status_code == 400
        assert sorted(found) == [0] * 20 + [429] * 10
        time.sleep(1)  # they are looked for every half second
        assert all(one.future.cancelled() for one in made[0].waiting)
        busy.set()
        assert ask(60) == 200


def test_an_error_of_the_model_goes_to_who_asked_and_the_next_is_answered(model, monkeypatch):
    batcher, prompt = Batcher(model), model.document("0", {"text": TEXT})
    with batcher.changed:
        monkeypatch.setattr(batcher.batches["speech"], "step", lambda: 1 / 0)
        future = batcher.generate(prompt, "speech")
    with pytest.raises(ZeroDivisionError):
        future.result(60)
    assert batcher.generate(prompt, "speech").result(60).finish_reason == "stop"
    batcher.close()


def test_an_error_of_the_model_ends_a_stream_too(model, monkeypatch):
    batcher, told = Batcher(model), list[Exception]()
    with batcher.changed:
        monkeypatch.setattr(batcher.batches["speech"], "step", lambda: 1 / 0)
        stream = batcher.stream(model.document("0", {"text": TEXT}), "speech")

    def ask() -> None:
        try:
            next(stream)
        except ZeroDivisionError as error:
            told.append(error)

    waiting = threading.Thread(target=ask, daemon=True)
    waiting.start()
    waiting.join(20)
    assert told
    batcher.close()


def test_a_server_that_cannot_generate_any_more_says_so(model, monkeypatch):
    def end(self: Batcher) -> None:
        """Of the thread, at once."""

    monkeypatch.setattr(Batcher, "_run", end)
    with TestClient(create_app(model)) as client:
        answer = client.get("/health")
    assert answer.status_code == 503
    assert "has ended" in answer.json()["error"]["message"]


def with_beams(model: zipper.Zipper) -> zipper.Zipper:
    config = with_overrides(model.config, ["decode.text.beams=3"])
    return zipper.Zipper(model.network, model.statistics, config, model.modalities)


def test_beam_search_is_answered_one_after_another_and_words_and_speech_beside_it(model):
    beams = with_beams(model)
    with serving(create_app(beams, limits=Limits(seconds=0.5))) as address, ThreadPoolExecutor(4) as pool:
        client = OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0)

        def transcript(_: int) -> str:
            return client.audio.transcriptions.create(
                model="zipper",
                file=RECORDING,
                response_format="verbose_json",
                timestamp_granularities=["word"],
            ).text

        spoken = pool.submit(
            client.audio.speech.create, model="tts-1", voice="alloy", input=TEXT, response_format="wav"
        )
        assert {*pool.map(transcript, range(4))} == {beams.transcribe(RECORDING)}
        assert sf.info(io.BytesIO(spoken.result().content)).duration > 1


def test_more_beam_searches_than_may_wait_are_refused(model):
    beams = with_beams(model)
    batcher = Batcher(beams, waiting=2)
    held = threading.Event()
    batcher.run(held.wait)
    prompt = beams.document("0", {"speech": RECORDING})
    try:
        while batcher.calls:  # until it is being run
            pass
        asked = [batcher.generate(prompt, "text") for _ in range(2)]
        with pytest.raises(Busy, match="2 requests wait"):
            batcher.generate(prompt, "text")
        with pytest.raises(ConfigError, match="cannot be streamed"):
            next(batcher.stream(prompt, "text"))
    finally:
        held.set()
    assert len({tuple(one.result().content.flatten().tolist()) for one in asked}) == 1
    batcher.close()


def test_an_answer_is_generated_no_further_once_its_client_has_gone(model, monkeypatch):
    made, sizes = list[Batcher](), list[int]()

    def slow(size: int) -> None:
        sizes.append(size)
        time.sleep(0.05)

    monkeypatch.setattr(
        "zipper.serving.app.Batcher", lambda *given: made.append(Batcher(*given[:3], slow)) or made[0]
    )
    body = {"model": "zipper", "voice": "alloy", "input": TEXT, "response_format": "wav"}
    with serving(create_app(model)) as address:
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"http://{address}/v1/audio/speech", json=body, timeout=0.5)
        time.sleep(1.5)  # it is looked for every half second
        assert not made[0].running["speech"]
        assert 0 < len(sizes) < 50  # of about 65 timesteps


def test_word_times_are_asked_for_with_and_without_brackets(address):
    for name in ("timestamp_granularities[]", "timestamp_granularities"):
        asked = {"response_format": "verbose_json", name: "word"}
        with RECORDING.open("rb") as file:
            answer = httpx.post(
                f"http://{address}/v1/audio/transcriptions", files={"file": file}, data=asked, timeout=60
            )
        assert len(answer.json()["words"]) == 10


def test_streams_have_the_network_as_long_as_what_else_is_asked(model):
    """A function that takes 0.3 s does not come after every timestep of 0.01 s."""
    order: list[str] = []
    batcher = Batcher(model, seen=lambda size: order.append("step"))

    def call() -> None:
        order.append("call")
        time.sleep(0.3)

    calls = [batcher.run(call) for _ in range(3)]
    pieces = batcher.stream(model.document("0", {"text": TEXT}), "speech")
    assert len([*pieces]) > 10
    for one in calls:
        one.result()
    batcher.close()
    first, *between, _ = "".join("c" if one == "call" else "s" for one in order).split("c")
    assert not first
    assert sum(len(steps) > 3 for steps in between) >= 1


def test_clients_that_have_gone_do_not_wait(model):
    held, begun = threading.Event(), threading.Event()
    batcher = Batcher(model, batch=1, waiting=2)
    busy = batcher.run(lambda: (begun.set(), held.wait()))
    begun.wait()
    prompt = model.document("0", {"text": TEXT})
    for ask in (lambda: batcher.generate(prompt, "speech"), lambda: batcher.run(lambda: None)):
        gone = [ask() for _ in range(2)]
        with pytest.raises(Busy, match="2 requests wait already"):
            ask()
        assert all(one.cancel() for one in gone)
        ask()
    assert batcher.queued == 2
    held.set()
    busy.result()
    batcher.close()


def test_a_recording_of_any_length_is_refused_by_a_model_that_does_not_recognise():
    speaker = zipper.Zipper.from_pretrained(ROOT / "assets/zipped")
    speaker.network.used = [("speech", "text")]
    with TestClient(create_app(speaker), raise_server_exceptions=False) as client:
        for seconds in (2, 20):
            sound = np.random.default_rng(0).normal(0, 0.1, 16_000 * seconds)
            answer = client.post("/v1/audio/transcriptions", files={"file": ("a.wav", bytes_of(sound))})
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "file"
        assert client.get("/v1/audio/speech").headers["allow"] == "POST"


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100])
@pytest.mark.parametrize("shape", [*FORMATS])
def test_speech_of_any_rate_is_written_in_every_format(rate, shape):
    wave = torch.sin(torch.arange(rate) / rate * 2 * torch.pi * 200) / 2
    found, written = sf.read(io.BytesIO(_written(wave, rate, shape)))
    assert len(found) / written == pytest.approx(1, abs=0.1)


def test_candidates_are_named_where_they_cannot_be_streamed():
    model = zipper.Zipper.from_pretrained(ROOT / "assets/zipped")
    model.config = with_overrides(
        model.config, ["decode.speech.candidates=2", "decode.speech.temperature=0.7"]
    )
    batcher = Batcher(model)
    with pytest.raises(ConfigError, match="speech: 2 candidates, of which the best is kept"):
        batcher.stream(model.document("0", {"text": TEXT}), "speech")
    batcher.close()
