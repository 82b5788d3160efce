"""A terminal that is gone and a pipe that nobody reads end no command."""

import os
import pty
import socket
import struct
import subprocess
import sys

import pytest

from conftest import config
from reproduce import ROOT
from zipper.streams import SafeStream, safe_output
from zipper.training import run as run_module


def a_pipe() -> int:
    read, written = os.pipe()
    os.close(read)
    return written


def a_terminal() -> int:
    master, slave = pty.openpty()
    os.close(master)
    return slave


def not_for_writing() -> int:
    return os.open(os.devnull, os.O_RDONLY)


def not_connected() -> int:
    return socket.socket().detach()


def left_by_its_reader() -> int:
    """Who had not read all."""
    ours, theirs = socket.create_server(("127.0.0.1", 0)), socket.socket()
    theirs.connect(ours.getsockname())
    accepted, _ = ours.accept()
    ours.close()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    return accepted.detach()


@pytest.mark.parametrize("gone", [a_pipe, a_terminal, not_for_writing, not_connected, left_by_its_reader])
def test_a_stream_that_is_gone_falls_silent(gone):
    with os.fdopen(gone(), "w", buffering=1, encoding="utf-8") as plain:
        stream = SafeStream(plain)
        assert stream.write("one\n") == 4
        stream.writelines(["two\n"] * 10_000)
        stream.flush()
        print("three", file=stream, flush=True)
        child = [sys.executable, "-c", "print('four', flush=True)"]
        assert subprocess.run(child, stdout=stream, check=False).returncode == 0


def test_where_it_would_have_to_wait_a_text_is_dropped_alone():
    """As in a pipe that ssh or tee has made non-blocking."""
    read, written = os.pipe()
    os.set_blocking(written, False)
    with os.fdopen(written, "w", buffering=1, encoding="utf-8") as plain, os.fdopen(read, "rb", 0) as reader:
        stream = SafeStream(plain)
        for _ in range(10_000):
            assert stream.write("x" * 99 + "\n") == 100
            stream.flush()
        assert len(reader.read(1_000_000)) < 1_000_000
        stream.write("on again\n")
        stream.finish()
        assert reader.read(1_000_000).endswith(b"on again\n")


def test_a_reader_that_never_reads_on_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("zipper.streams.FLUSH_ATTEMPTS", 0)
    read, written = os.pipe()
    os.set_blocking(written, False)
    with os.fdopen(written, "w", buffering=1, encoding="utf-8") as plain:
        stream = SafeStream(plain)
        for _ in range(10_000):
            stream.write("x" * 99 + "\n")
        stream.finish()
        plain.flush()
        assert os.path.samestat(os.fstat(plain.fileno()), os.stat(os.devnull))
    os.close(read)


def test_streams_are_put_back_and_one_that_was_closed_is_silent(monkeypatch):
    before = sys.stdout
    monkeypatch.setattr(sys, "stderr", None)
    with safe_output():
        print("x", file=sys.stderr)
        print("y")
    assert (sys.stdout, sys.stderr) == (before, None)


@pytest.mark.parametrize(
    ("words", "status"), [(["--help"], 0), (["train", "--help"], 0), (["train", "nothing.yaml"], 2)]
)
def test_a_command_whose_output_nobody_reads_ends_as_ever(tmp_path, words, status):
    written = a_pipe()
    with (tmp_path / "err").open("w", encoding="utf-8") as err:
        command = [sys.executable, "-m", "zipper", *words]
        found = subprocess.run(command, stdout=written, stderr=written if status else err, check=False)
    os.close(written)
    assert (found.returncode, (tmp_path / "err").read_text(encoding="utf-8")) == (status, "")


def test_a_training_outlives_its_output(prepared):
    """In the callbacks' own prints, with the streams as `main` has them."""
    broken = os.fdopen(a_pipe(), "w", buffering=1, encoding="utf-8")
    before, sys.stdout = sys.stdout, broken
    try:
        with safe_output():
            result = run_module.train(
                config("train.steps=3", "name=silent", "evaluate.mismatched=false"), "x"
            )
    finally:
        sys.stdout = before
        broken.close()
    assert "wer" in result["asr"]


def test_speech_that_is_left_at_the_end_of_a_program_ends_without_a_word():
    code = f"""
import zipper
model = zipper.Zipper.from_pretrained({str(ROOT / "assets/zipped")!r})
pieces = model.stream("julia carried thirty five green buttons")
for piece in pieces:
    print(len(piece) > 0)
    break
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "True"
    assert "ignored" not in out.stderr
