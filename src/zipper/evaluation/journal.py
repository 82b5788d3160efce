"""What a long evaluation has finished, a JSON line a piece: cut off anywhere, it goes on behind the last
whole line."""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from zipper.commit import commit
from zipper.config import RunConfig, to_dict
from zipper.errors import ConfigError
from zipper.evaluation.result import versions


class Journal:
    """Pieces by key."""

    def __init__(self, file: Path, work: dict[str, Any]) -> None:
        """work: all that the pieces follow from; a file of other work is begun anew. Raises ConfigError where
        another process is at it."""
        self.file, self.pieces = file, dict[str, Any]()
        self.lines = file.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self.lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{file}: another process is at the same evaluation. Wait for it.") from None
        except OSError:  # a file system without locks
            pass
        found, length = read_pieces(file)
        if not found or found[0] != work:
            found, length = [], 0
        self.lines.truncate(length)  # what was being written when it was cut off
        if not found:
            self._write(work)
        for key, value in found[1:]:
            self.pieces[key] = value

    def add(self, key: str, value: Any) -> None:
        """On the disk when this returns."""
        self.pieces[key] = value
        self._write([key, value])

    def _write(self, line: Any) -> None:
        self.lines.write(json.dumps(line) + "\n")
        self.lines.flush()

    def done(self) -> None:
        """The results stand elsewhere by now."""
        self.file.unlink(missing_ok=True)
        self.lines.close()


def read_pieces(file: Path) -> tuple[list[Any], int]:
    """Whole lines up to the first that is none, and how many bytes they take. Nothing where there is no
    file."""
    found, length = [], 0
    for line in file.read_bytes().splitlines(keepends=True) if file.exists() else []:
        try:
            piece = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:  # a UnicodeDecodeError is one too
            piece = None
        if piece is None:
            break
        found.append(piece)
        length += len(line)
    return found, length


@contextmanager
def open_journal(file: Path, work: dict[str, Any]) -> Iterator[Journal]:
    """A journal that is removed when all is done, and stays when it is not."""
    kept = Journal(file, json.loads(json.dumps(work)))
    try:
        yield kept
    except BaseException:
        kept.lines.close()
        raise
    kept.done()


def evaluation_identity(checkpoint: Path, cfg: RunConfig, judge: str | None) -> dict[str, Any]:
    """All that an evaluation follows from. judge: its name, where there is one."""
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    config = {key: value for key, value in to_dict(cfg).items() if key not in ("result", "export")}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    made_by = {"commit": commit(), "versions": versions(), "judge": judge, "device": device}
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    return {"checkpoint": digest, **made_by, "ranks": ranks, "config": config}


def journal_name(suffix: str = "", rank: int = 0) -> str:
    """Hidden in the run folder, and gone when the evaluation is done; each process of a group has its own."""
    return f".evaluating{suffix}{f'-rank{rank}' if rank else ''}.jsonl"
