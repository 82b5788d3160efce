"""`zipper serve` as a process: what it opens, and how it ends."""

import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import soundfile as sf
from fastapi.testclient import TestClient
from openai import OpenAI

import zipper
from reproduce import ROOT
from zipper.serving.app import create_app

RECORDING = ROOT / "results/samples/test-00000-original.flac"
TEXT = "why did helen give the blue wallet to the quiet singer"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_server_after_what_was_asked_is_answered(number):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "zipper", "serve", str(ROOT / "assets/zipped"), f"--port={port}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)

    def health() -> str | None:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read().decode()
        except OSError:
            return None

    def speak() -> int:
        return len(client.audio.speech.create(model="tts-1", voice="a", input=TEXT).content)

    try:
        while health() is None:
            assert process.poll() is None
            time.sleep(0.05)
        with ThreadPoolExecutor(4) as pool:
            alone, asked = speak(), [pool.submit(speak) for _ in range(4)]
            time.sleep(0.1)
            process.send_signal(number)
            assert [one.result() for one in asked] == [alone] * 4
        out, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0
    assert f"{number.name}: stopped" in out
    assert not error
    assert health() is None


def test_no_name_from_a_request_reaches_the_file_system(tmp_path, monkeypatch):
    """Not that of an upload, nor one in place of an upload, nor a text that is a path."""
    model, opened = zipper.Zipper.from_pretrained(ROOT / "assets/zipped"), list[str]()
    here = threading.Event()

    def watch(event: str, arguments: tuple) -> None:
        if here.is_set() and event in ("open", "os.listdir", "os.scandir", "os.remove", "os.rename"):
            opened.extend(str(one) for one in arguments[:2])

    sys.addaudithook(watch)  # Python's files; libsndfile opens its own
    init = sf.SoundFile.__init__
    monkeypatch.setattr(
        sf.SoundFile, "__init__",
        lambda self, file, *more, **named: opened.append(str(file)) or init(self, file, *more, **named),
    )  # fmt: skip
    secret = tmp_path / "secret.flac"
    secret.write_bytes(RECORDING.read_bytes())
    named = {name: str(secret) for name in ("model", "language", "prompt", "response_format")}
    with TestClient(create_app(model)) as client:
        here.set()
        listen, speak = "/v1/audio/transcriptions", "/v1/audio/speech"
        found = client.post(listen, files={"file": (str(secret), secret.name.encode())})
        assert found.status_code == 400
        assert (
            client.post(listen, files={"file": (f"../{secret}", RECORDING.read_bytes())}).status_code == 200
        )
        assert client.post(listen, data={"file": str(secret)}).status_code == 400
        for name, value in named.items():
            client.post(listen, files={"file": ("a.flac", RECORDING.read_bytes())}, data={name: value})
            client.post(speak, json={"input": "the tiger", name: value})
        assert client.post(speak, json={"input": str(secret)}).status_code == 400
        assert client.get(f"/v1/models/..{secret}").status_code == 404
        here.clear()
    assert opened  # the uploads themselves
    assert not [one for one in opened if secret.name in one]
