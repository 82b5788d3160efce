"""Safe reading of checkpoint files, and the integrity check that runs first.

A checkpoint is a zip archive. Its directory is written last, so a truncated file has none, and it holds a
checksum for every tensor.
"""

import errno
import os
import re
import shutil
import struct
import zlib
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

from zipper.errors import DataError

LAST, PREVIOUS, BEST = "last.ckpt", "last-before.ckpt", "best.ckpt"
CODE_KEYS = ("_instantiator", "_class_path")  # hyperparameters that name code, which Lightning calls


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Content of a checkpoint, with memory-mapped tensors.

    Raises DataError if the file is damaged or could run code: if it holds anything but tensors and plain
    values, or a hyperparameter that names code.
    """
    if why := find_damage(file):
        raise DataError(
            f"{file} is damaged ({why}). Restore it, choose another checkpoint (evaluate.checkpoint), or "
            "train again under another name."
        )
    return load_plain(file, mmap=True)


def load_plain(file: Path, mmap: bool) -> dict[str, Any]:
    """As `read_checkpoint`, without the integrity check. mmap: map the tensors from disk."""
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
    """Reason why a checkpoint cannot be read, or None. Reads the whole file."""
    try:
        with ZipFile(file) as parts:
            damaged = parts.testzip()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL):  # EINVAL: an offset before the start of the file
            raise  # an unreadable disk is not a damaged file
        return f"{type(error).__name__}: {error}"
    except (BadZipFile, EOFError, LookupError, RuntimeError, ValueError, struct.error, zlib.error) as error:
        return f"{type(error).__name__}: {error}"  # a flipped bit in the directory raises any of these
    return f"the checksum of {damaged} is wrong" if damaged else None


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
