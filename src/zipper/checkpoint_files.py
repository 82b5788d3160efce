"""Checkpoint files: written atomically, read as tensors and plain values alone.

A checkpoint is a zip file: its directory is written last, so that one that was cut off has none, and every
tensor stands beside its checksum.
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

LAST, BEFORE, BEST = "last.ckpt", "last-before.ckpt", "best.ckpt"
RUN = ("_instantiator", "_class_path")  # hyperparameters whose code Lightning imports and calls


def read_checkpoint(file: Path) -> dict[str, Any]:
    """All of a checkpoint, its tensors left on the disk until they are looked at. Raises DataError where it
    is damaged, or holds what could run code: anything but tensors and plain values, or a hyperparameter that
    names code."""
    if why := flaw(file):
        raise DataError(
            f"{file} is damaged ({why}). Restore it, take another one (evaluate.checkpoint), or train again "
            "under another name."
        )
    return plain_values(file, mmap=True)


def plain_values(file: Path, mmap: bool) -> dict[str, Any]:
    """As `read_checkpoint`, of a file that is known to be undamaged. mmap: leave its tensors on the disk."""
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
        what = f"more than tensors and plain values ({found[1] if found else 'a pickle'})"
    else:
        if not isinstance(saved, dict):
            raise DataError(f"{file} is no checkpoint: it holds no dict. Train again under another name.")
        parts = {key: value for key, value in saved.items() if key not in ("state_dict", "optimizer_states")}
        if not (named := _code_named(parts)):
            return saved
        what = f"the hyperparameter {named}, which names code to run"
    raise DataError(
        f"{file} holds {what}: it is not read, since it could run anything. Train again, or take a model in "
        "safetensors (export=...)."
    )


def _code_named(values: Any) -> str | None:
    """The first of RUN, with its value, at any depth."""
    if isinstance(values, list | tuple):
        return next(filter(None, map(_code_named, values)), None)
    if not isinstance(values, dict):
        return None
    here = (f"{key}={values[key]}" for key in RUN if key in values)
    return next(here, None) or _code_named([*values.values()])


def flaw(file: Path) -> str | None:
    """Why a checkpoint cannot be read, None if it can. Reads all of it."""
    try:
        with ZipFile(file) as parts:
            damaged = parts.testzip()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL):  # EINVAL: a directory that points before the file
            raise  # a disk that cannot be read now is no damage
        return f"{type(error).__name__}: {error}"
    except (BadZipFile, EOFError, LookupError, RuntimeError, ValueError, struct.error, zlib.error) as error:
        return f"{type(error).__name__}: {error}"  # whatever a flipped bit makes of the directory
    return f"the checksum of {damaged} is wrong" if damaged else None


def flush_folder(folder: Path) -> None:
    """So that a rename outlives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def keep(file: Path, name: Path) -> None:
    """A second name for a file, in place of what had it: `file` itself never vanishes."""
    aside = name.with_name(f"{name.name}.{os.getpid()}.part")
    aside.unlink(missing_ok=True)
    try:
        os.link(file, aside)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, aside)
    aside.replace(name)
    aside.unlink(missing_ok=True)  # two names of one file already: replacing does nothing
