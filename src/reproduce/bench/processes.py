"""Commands as subprocesses into which faults are injected, and hashes of their output."""

import ctypes
import hashlib
import json
import multiprocessing
import os
import resource
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from zipper.evaluation.metrics import read_metrics
from zipper.evaluation.result_file import read_result

OVERRIDE = 0b110  # capabilities 1 and 2: ignore file permissions
# Prefixes of result keys that differ between runs.
TIMES = ("seconds", "wall_seconds", "stage_seconds", "command", "versions", "units_per")


class Process:
    """`zipper COMMAND ...` in a subprocess with one thread; its output is kept in memory."""

    def __init__(self, arguments: list[str]) -> None:
        # Forked from a process that has imported everything, since imports take longer than a small run.
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["zipper.training.run", "zipper.evaluation.run", "zipper.cli"])
        receive, send = context.Pipe(duplex=False)
        self.process = context.Process(target=_main, args=(arguments, send))
        self.process.start()
        send.close()
        self.output = bytearray()
        self.locked: list[Path] = []
        self.reader = threading.Thread(target=self._read, args=(receive,), daemon=True)
        self.reader.start()

    def _read(self, pipe: Connection) -> None:
        while part := os.read(pipe.fileno(), 65536):
            self.output += part
        pipe.close()

    def alive(self) -> bool:
        return self.process.is_alive()

    def text(self) -> str:
        """Combined stdout and stderr."""
        return self.output.decode(errors="replace")

    def end(self, seconds: float) -> int | None:
        """Exit code, negative after a fatal signal; None if the process was killed after `seconds`."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            return None
        self.reader.join(5)
        return self.process.exitcode

    def signal(self, number: int) -> bool:
        """Sends a signal. Returns False if the process has exited."""
        try:
            os.kill(self.process.pid, number)
        except ProcessLookupError:
            return False
        return True

    def fill_disk(self, size: int) -> bool:
        """Simulates a full disk: files cannot grow beyond `size` bytes. False if the process has exited."""
        try:
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        except ProcessLookupError:
            return False
        return True

    def forbid(self, folders: list[Path]) -> bool:
        """Makes folders read-only. Returns False without folders."""
        for folder in folders:
            folder.chmod(0o555)
        self.locked += folders
        return bool(folders)

    def lift(self) -> None:
        """Makes the folders writable again."""
        for folder in self.locked:
            folder.chmod(0o755)


def _main(arguments: list[str], pipe: Connection) -> None:
    """Runs the command in the subprocess."""
    multiprocessing.set_start_method("fork", force=True)  # as in a command of a user
    for stream in (1, 2):
        os.dup2(pipe.fileno(), stream)
    pipe.close()
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8")
    _obey_permissions()
    torch.set_num_threads(1)
    from zipper.cli import main

    main(arguments)


def _obey_permissions() -> None:
    """Drops the capabilities by which root ignores file permissions."""
    if os.geteuid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, data)
    data[0] &= ~OVERRIDE
    libc.capset(header, data)


def contents(folder: Path, command: str) -> dict[str, str]:
    """Hashes of a command's output.

    Covers every byte of encoded datasets and corpora; for a run, its weights, optimiser, schedule, metrics
    and results.
    """
    if command == "prepare":
        files = sorted([*folder.glob("stores/*/*"), *folder.glob("corpora/**/*.*")])
        kept = [file for file in files if file.suffix not in (".part", ".listing") and file.is_file()]
        content = {file: file.read_bytes().replace(os.fsencode(folder), b"") for file in kept}
        return {str(file.relative_to(folder)): _hash(one) for file, one in content.items()}
    found: dict[str, str] = {}
    run = folder / "runs" / "faults"
    for which in ("last", "best"):
        with suppress(FileNotFoundError):
            saved = torch.load(run / "checkpoints" / f"{which}.ckpt", weights_only=True)
            parts = {k: saved[k] for k in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")}
            found[f"{which}.ckpt"] = _hash(repr(_plain(parts)).encode())
    if command == "train":
        for name, series in read_metrics(run).items():
            if "second" not in name:
                found[f"metric {name}"] = _hash(repr(series).encode())
    for file in sorted([*run.glob("*.json"), *run.glob("*.tsv"), *run.glob("*.xz")]):
        found[file.name] = _hash(file.read_bytes())
        if file.suffix == ".json" and file.name != "tokenizer.json":
            whole = read_result(file, utterances=False)  # utterances have their own file
            whole.get("config", {}).pop("build", None)
            result = {k: v for k, v in whole.items() if not k.startswith(TIMES)}
            found[file.name] = _hash(json.dumps(result).encode())
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _hash(value.contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes())
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
