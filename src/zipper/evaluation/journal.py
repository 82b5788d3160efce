"""Journal of a long evaluation: one JSON line per finished item, from which it resumes."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from zipper.commit import commit
from zipper.config import RunConfig, to_dict
from zipper.distributed import in_group
from zipper.errors import ConfigError
from zipper.evaluation.result import versions
from zipper.hashes import sha256


class Journal:
    """Finished items of an evaluation by key, stored in a file."""

    def __init__(self, file: Path, work: dict[str, Any]) -> None:
        """Opens or creates a journal. work: identity of the evaluation; a file with another one is cleared.

        Raises ConfigError if another process uses the file.
        """
        self.file = file
        self.pieces: dict[str, Any] = {}
        self.lines = file.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self.lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{file}: another process runs the same evaluation. Wait for it.") from None
        except OSError:  # a file system without locks
            pass
        found, length = read_pieces(file)
        if found[:1] == [work]:
            self.lines.truncate(length)  # drops an incomplete line
            self.pieces = dict(found[1:])
        else:
            self.lines.truncate(0)
            self._write(work)

    def add(self, key: str, value: Any) -> None:
        """Adds an item and writes it to the file."""
        self.pieces[key] = value
        self._write([key, value])

    def _write(self, line: Any) -> None:
        self.lines.write(json.dumps(line) + "\n")
        self.lines.flush()

    def done(self) -> None:
        """Removes the file, once the results are written."""
        self.file.unlink(missing_ok=True)
        self.lines.close()


def read_pieces(file: Path) -> tuple[list[Any], int]:
    """Complete JSON lines up to the first invalid one, and their size in bytes. A missing file gives none."""
    found, length = [], 0
    for line in file.read_bytes().splitlines(keepends=True) if file.exists() else []:
        try:
            piece = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:  # includes UnicodeDecodeError
            piece = None
        if piece is None:
            break
        found.append(piece)
        length += len(line)
    return found, length


@contextmanager
def open_journal(file: Path, work: dict[str, Any]) -> Iterator[Journal]:
    """Journal that is removed at the end of the context, and kept on an exception."""
    kept = Journal(file, json.loads(json.dumps(work)))
    try:
        yield kept
    except BaseException:
        kept.lines.close()
        raise
    kept.done()


def evaluation_identity(checkpoint: Path, cfg: RunConfig, asr_scorer: str | None) -> dict[str, Any]:
    """Everything that determines the output of an evaluation. asr_scorer: its name, if one is used."""
    config = {key: value for key, value in to_dict(cfg).items() if key not in ("result", "export")}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    made_by = {"commit": commit(), "versions": versions(), "asr_scorer": asr_scorer, "device": device}
    ranks = dist.get_world_size() if in_group() else 1
    return {"checkpoint": sha256(checkpoint), **made_by, "ranks": ranks, "config": config}


def journal_name(suffix: str = "", rank: int = 0) -> str:
    """File name of the journal in the run folder; one for each rank."""
    return f".evaluating{suffix}{f'-rank{rank}' if rank else ''}.jsonl"
