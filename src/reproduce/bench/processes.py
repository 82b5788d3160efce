"""Commands as processes of their own that can be killed, starved and locked out; and what they leave
behind."""

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

OVERRIDE = 0b110  # capabilities 1 and 2: to write and to read whatever the permissions say
TIMES = ("seconds", "command", "versions", "units_per")  # what differs from run to run, in a result file


def _context() -> Any:
    """Processes are forked from one that has imported everything, which takes longer than a small run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zipper.training.run", "zipper.evaluation.run", "zipper.cli"])
    return context


class Process:
    """`zipper COMMAND ...`, one thread, what it says kept in memory."""

    def __init__(self, words: list[str]) -> None:
        context = _context()
        receive, send = context.Pipe(duplex=False)
        self.process = context.Process(target=_main, args=(words, send))
        self.process.start()
        send.close()
        self.transcript = bytearray()
        self.locked: list[Path] = []
        self.speech_scorer = threading.Thread(target=self._listen, args=(receive,), daemon=True)
        self.speech_scorer.start()

    def _listen(self, pipe: Connection) -> None:
        while part := os.read(pipe.fileno(), 65536):
            self.transcript += part
        pipe.close()

    def alive(self) -> bool:
        return self.process.is_alive()

    def said(self) -> str:
        """stdout and stderr together."""
        return self.transcript.decode(errors="replace")

    def end(self, seconds: float) -> int | None:
        """The exit code, negative where a signal killed it; None: it had to be killed after `seconds`."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            return None
        self.speech_scorer.join(5)
        return self.process.exitcode

    def signal(self, number: int) -> bool:
        """False where the process is gone."""
        try:
            os.kill(self.process.pid, number)
        except ProcessLookupError:
            return False
        return True

    def fill_disk(self, size: int) -> bool:
        """From now on no file can be written beyond `size` bytes."""
        try:
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        except ProcessLookupError:
            return False
        return True

    def forbid(self, folders: list[Path]) -> bool:
        """From now on nothing can be made, renamed or removed in these folders."""
        for folder in folders:
            folder.chmod(0o555)
        self.locked += folders
        return bool(folders)

    def lift(self) -> None:
        """Gives the folders back."""
        for folder in self.locked:
            folder.chmod(0o755)


def _main(words: list[str], pipe: Connection) -> None:
    """In the new process."""
    multiprocessing.set_start_method("fork", force=True)  # as it is in a command that a user starts
    for stream in (1, 2):
        os.dup2(pipe.fileno(), stream)
    pipe.close()
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8")
    _obey_permissions()
    torch.set_num_threads(1)
    from zipper.cli import main

    main(words)


def _obey_permissions() -> None:
    """A superuser's process may write everywhere: gives that up."""
    if os.geteuid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, data)
    data[0] &= ~OVERRIDE
    libc.capset(header, data)


def contents(folder: Path, command: str) -> dict[str, str]:
    """Hashes of all that a command leaves: of stores and corpora every byte, of a run its weights, optimiser,
    schedule, metrics and results."""
    found = {}
    for file in sorted([*folder.glob("stores/*/*"), *folder.glob("corpora/**/*.*")]):
        if file.suffix not in (".part", ".listing") and file.is_file():
            found[str(file.relative_to(folder))] = _hash(file.read_bytes().replace(os.fsencode(folder), b""))
    if command == "prepare":
        return found
    found.clear()
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
            whole = read_result(file, utterances=False)  # they are hashed by their own file
            result = {k: v for k, v in whole.items() if not k.startswith(TIMES)}
            result.pop("wall_seconds", None), result.pop("stage_seconds", None)
            result.get("config", {}).pop("build", None)
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
