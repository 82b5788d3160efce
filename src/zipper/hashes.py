"""Content hashes of files, each read once: again only where its size or a time of change is another one."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
from pyarrow import feather
from tqdm import tqdm

READERS = 8  # files at a time: reading waits for the disk
KEPT = "hashes.arrow"  # in the build folder
MISSING = "missing"
SHOWN = 1000  # files from which on hashing them shows a bar


def file_hashes(files: Sequence[str | Path], kept: Path) -> list[str]:
    """BLAKE2 of each file's content, as hexadecimal digits; `missing` where it cannot be read.

    kept: the file (Arrow) that remembers them, with the size and times that each file had.
    """
    names = [str(Path(file).absolute()) for file in files]
    known = _read(kept)
    with ThreadPoolExecutor(READERS) as pool:
        stamps = dict(zip(names, pool.map(_stamp, names), strict=True))
        unread = [name for name, stamp in stamps.items() if known.get(name, ("", ""))[0] != stamp]
        digests = pool.map(_digest, unread)
        bar = tqdm(digests, "hash", len(unread), False, unit="file", disable=len(unread) < SHOWN)
        for name, digest in zip(unread, bar, strict=True):
            known[name] = stamps[name], digest
    if unread:
        _write(kept, known)
    return [known[name][1] for name in names]


def joint_hash(hashes: Sequence[str]) -> str:
    """Short hash of several, in their order."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:16]


def _stamp(name: str) -> str:
    try:
        found = os.stat(name)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return MISSING
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def _digest(name: str) -> str:
    try:
        with open(name, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except (OSError, ValueError):
        return MISSING


def _read(kept: Path) -> dict[str, tuple[str, str]]:
    try:
        table = feather.read_table(kept)
        columns = (table.column(name).to_pylist() for name in ("file", "stamp", "digest"))
        return {file: (stamp, digest) for file, stamp, digest in zip(*columns, strict=True)}
    except (OSError, KeyError, pa.ArrowInvalid):  # none yet, or cut off: every file is read once more
        return {}


def _write(kept: Path, known: dict[str, tuple[str, str]]) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    aside = kept.with_suffix(f".{os.getpid()}.part")
    stamps, digests = zip(*known.values(), strict=True)
    feather.write_feather(
        pa.table({"file": list(known), "stamp": list(stamps), "digest": list(digests)}), str(aside)
    )
    aside.rename(kept)
