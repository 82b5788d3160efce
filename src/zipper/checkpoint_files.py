"""Safe reading of checkpoint files, and the integrity check that runs first.

A checkpoint is a zip archive. Its directory is written last, so a truncated file has none, and it holds a
checksum for every tensor. A sharded one (`zipper.sharded`) names files with the tensors, and their hashes.
"""

import errno
import os
import re
import shutil
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from safetensors import safe_open
from torch import Tensor

from zipper.errors import DataError
from zipper.hashes import sha256

LAST, PREVIOUS, BEST = "last.ckpt", "last-before.ckpt", "best.ckpt"
SHARDS = "shards"  # key of a sharded checkpoint, file name to (bytes, SHA-256); and start of their folder
WEIGHTS = "state_dict/"  # start of a weight's key in a shard
CODE_KEYS = ("_instantiator", "_class_path")  # hyperparameters that name code, which Lightning calls


def read_checkpoint(file: Path, whole: bool = True) -> dict[str, Any]:
    """Content of a checkpoint, with memory-mapped tensors. whole: put the weights of a sharded one together,
    in memory; without, they are left out, as its optimiser states always are.

    Raises DataError if the file is damaged or could run code: if it holds anything but tensors and plain
    values, or a hyperparameter that names code.
    """
    if why := find_damage(file):
        raise DataError(
            f"{file} is damaged ({why}). Restore it, choose another checkpoint (evaluate.checkpoint), or "
            "train again under another name."
        )
    return load_plain(file, mmap=True) if whole else load_index(file)


def load_plain(file: Path, mmap: bool) -> dict[str, Any]:
    """As `read_checkpoint`, without the integrity check. mmap: map the tensors from disk."""
    saved = load_index(file, mmap)
    if SHARDS not in saved:
        return saved
    try:
        check_shards(file, saved[SHARDS])
        return {**saved, "state_dict": ShardFiles(file.parent, saved[SHARDS]).weights()}
    except FileNotFoundError:  # a training has put another checkpoint in its place
        if load_index(file)[SHARDS] == saved[SHARDS]:
            raise
        return load_plain(file, mmap)


def load_index(file: Path, mmap: bool = True) -> dict[str, Any]:
    """As `load_plain`, without the tensors of a sharded checkpoint."""
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
        what = f"more than tensors and plain values ({found[1] if found else 'a pickle'})"
    else:
        if not isinstance(saved, dict):
            raise DataError(f"{file} is not a checkpoint: it holds no dict. Train again under another name.")
        parts = {key: value for key, value in saved.items() if key not in ("state_dict", "optimizer_states")}
        if not (named := _code_named(parts)):
            return saved
        what = f"the hyperparameter {named}, which names code to run"
    raise DataError(
        f"{file} holds {what}: it is not loaded, because it could run arbitrary code. Train again, or use a "
        "model in safetensors (export=...)."
    )


def _code_named(values: Any) -> str | None:
    """First of CODE_KEYS that occurs at any depth, with its value; None if there is none."""
    if isinstance(values, list | tuple):
        return next(filter(None, map(_code_named, values)), None)
    if not isinstance(values, dict):
        return None
    here = (f"{key}={values[key]}" for key in CODE_KEYS if key in values)
    return next(here, None) or _code_named([*values.values()])


def find_damage(file: Path) -> str | None:
    """Reason why a checkpoint cannot be read, or None. Reads the whole file; of shards, only their sizes."""
    try:
        with ZipFile(file) as parts:
            damaged = parts.testzip()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL):  # EINVAL: an offset before the start of the file
            raise  # an unreadable disk is not a damaged file
        return f"{type(error).__name__}: {error}"
    except (BadZipFile, EOFError, LookupError, RuntimeError, ValueError, struct.error, zlib.error) as error:
        return f"{type(error).__name__}: {error}"  # a flipped bit in the directory raises any of these
    if damaged:
        return f"the checksum of {damaged} is wrong"
    return next(
        (
            f"its shard {name} is missing or cut off"
            for name, (size, _) in load_index(file).get(SHARDS, {}).items()
            if not (file.parent / name).is_file() or (file.parent / name).stat().st_size != size
        ),
        None,
    )


def check_shards(file: Path, shards: Mapping[str, tuple[int, str]]) -> None:
    """Raises DataError if a shard is not what the checkpoint `file` says. Reads all of them."""
    for name, (_, digest) in shards.items():
        if sha256(file.parent / name) != digest:
            raise DataError(
                f"{file} is damaged (the checksum of its shard {name} is wrong). Restore the shard, or "
                "delete the checkpoint: a training then resumes from another one of the folder."
            )


class ShardFiles:
    """Shards of a checkpoint, in the order of their processes: each holds rows of its own of every tensor."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.of: dict[str, list[Any]] = {}  # by key, its rows in each file that has some
        for name in sorted(names):
            file = safe_open(folder / name, framework="pt")
            for key in file.offset_keys():
                self.of.setdefault(key, []).append(file.get_slice(key))

    def rows(self, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows of a tensor from `start` to before `stop`; default all. Raises KeyError without such a
        tensor."""
        parts = self.of[key]
        if not parts[0].get_shape():  # a number
            return parts[0][...]
        found, first = [], 0
        for part in parts:
            count = part.get_shape()[0]
            low, high = max(start - first, 0), count if stop is None else min(stop - first, count)
            if low < high:
                found.append(part[low:high])
            first += count
        return torch.cat(found) if found else parts[0][:0]

    def shape(self, key: str) -> list[int]:
        """Shape of a tensor. Raises KeyError without such a tensor."""
        shapes = [part.get_shape() for part in self.of[key]]
        return [sum(shape[0] for shape in shapes), *shapes[0][1:]] if shapes[0] else []

    def weights(self) -> dict[str, Tensor]:
        """`state_dict` of the checkpoint."""
        return {key.removeprefix(WEIGHTS): self.rows(key) for key in self.of if key.startswith(WEIGHTS)}


def flush_folder(folder: Path) -> None:
    """Syncs a folder to disk, so that a rename survives a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link_checkpoint(file: Path, name: Path) -> None:
    """Makes `name` a hard link to `file`, or a copy, and replaces an existing `name` atomically."""
    aside = name.with_name(f"{name.name}.{os.getpid()}.part")
    aside.unlink(missing_ok=True)
    try:
        os.link(file, aside)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, aside)
    aside.replace(name)
    aside.unlink(missing_ok=True)  # if both names are already one file, replace() does nothing
