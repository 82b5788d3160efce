"""A terminal that is gone and a pipe that nobody reads end no command."""

import errno
import os
import pty
import subprocess
import sys

import pytest

from conftest import config
from zipper.streams import Unbroken, unbroken_output
from zipper.train import run as run_module


def a_pipe() -> int:
    read, written = os.pipe()
    os.close(read)
    return written


def a_terminal() -> int:
    master, slave = pty.openpty()
    os.close(master)
    return slave


@pytest.mark.parametrize("gone", [a_pipe, a_terminal])
def test_a_stream_that_is_gone_falls_silent(gone):
    with os.fdopen(gone(), "w", buffering=1, encoding="utf-8") as plain:
        stream = Unbroken(plain)
        assert stream.write("one\n") == 4
        stream.writelines(["two\n"] * 10_000)
        stream.flush()
        print("three", file=stream, flush=True)
        child = [sys.executable, "-c", "print('four', flush=True)"]
        assert subprocess.run(child, stdout=stream, check=False).returncode == 0


class Closed:
    """A stream with an error that tells of a mistake of ours."""

    def write(self, text: str) -> None:
        raise OSError(errno.EBADF, "no")

    flush = write


def test_another_error_is_raised():
    with pytest.raises(OSError, match="no"):
        Unbroken(Closed()).write("x")


def test_streams_are_put_back_and_one_that_was_closed_is_silent(monkeypatch):
    before = sys.stdout
    monkeypatch.setattr(sys, "stderr", None)
    with unbroken_output():
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


def test_a_training_outlives_its_output(prepared, nothing_is_drawn):
    """In the callbacks' own prints, with the streams as `main` has them."""
    broken = os.fdopen(a_pipe(), "w", buffering=1, encoding="utf-8")
    before, sys.stdout = sys.stdout, broken
    try:
        with unbroken_output():
            result = run_module.train(config("train.steps=3", "name=silent", "evaluate.shuffled=false"), "x")
    finally:
        sys.stdout = before
        broken.close()
    assert "wer" in result["asr"]
