"""Content hashes of files, cached by file size and modification time, and of a model's weights."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
from pyarrow import feather
from torch import nn
from tqdm import tqdm

from zipper.disk import file_lock, write_atomic

_SCHEMA = pa.schema([(name, pa.string()) for name in ("file", "stamp", "digest")])
READERS = 8  # files read in parallel, since reading waits for the disk
KEPT = "hashes.arrow"  # cache file in the build folder
MISSING = "missing"
SHOWN = 1000  # a progress bar is shown from this number of files

Known = dict[str, tuple[str, str]]  # by absolute path: (size and times, digest)


def file_hashes(files: Sequence[str | Path], kept: Path) -> list[str]:
    """BLAKE2 hash of each file's content, in hexadecimal.

    A deleted file keeps its last hash; a file that was never read has the hash `missing`.
    kept: Arrow file of the cache. Processes that need the same files wait for the first one.
    """
    names = [str(Path(file).absolute()) for file in files]
    with ThreadPoolExecutor(READERS) as pool:
        stamps = dict(zip(names, pool.map(_stamp, names), strict=True))
    known = _read(kept)
    if _unread(stamps, known):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(kept.with_name(f".{kept.name}.lock"), str(kept), wait=True):
            known = _read(kept)
            unread = _unread(stamps, known)
            with ThreadPoolExecutor(READERS) as pool:
                digests = pool.map(_digest, unread)
                bar = tqdm(digests, "hash", len(unread), False, unit="file", disable=len(unread) < SHOWN)
                read = dict(zip(unread, bar, strict=True))
            # A file that could not be read is read again on the next call.
            known.update({name: (stamps[name], digest) for name, digest in read.items() if digest != MISSING})
            _write(kept, known)
    return [known.get(name, ("", MISSING))[1] for name in names]


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def joint_hash(hashes: Sequence[str]) -> str:
    """Short hash of a sequence of hashes."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:16]


def check_once(folder: Path, files: Sequence[Path], check: Callable[[], None], kept: Path) -> None:
    """Runs `check`, which raises on failure, unless these files of the folder have passed it before."""
    stamp = joint_hash([_stamp(str(file)) for file in files])
    known, name = _read(kept), str(folder.absolute())
    if known.get(name, ("", ""))[0] != stamp:
        check()
        with file_lock(kept.with_name(f".{kept.name}.lock"), str(kept), wait=True):
            _write(kept, {**_read(kept), name: (stamp, "checked")})


def digest(model: nn.Module) -> str:
    """Short hash of all weights by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _unread(stamps: dict[str, str], known: Known) -> list[str]:
    return [name for name, stamp in stamps.items() if stamp not in (MISSING, known.get(name, ("", ""))[0])]


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
    except OSError:
        return MISSING


def _read(kept: Path) -> Known:
    try:
        table = feather.read_table(kept)
        columns = (table.column(name).to_pylist() for name in _SCHEMA.names)
        return {file: (stamp, digest) for file, stamp, digest in zip(*columns, strict=True)}
    except (OSError, KeyError, pa.ArrowInvalid):  # no cache, or a truncated one: read all files again
        return {}


def _write(kept: Path, known: Known) -> None:
    rows = [{"file": name, "stamp": stamp, "digest": digest} for name, (stamp, digest) in known.items()]
    out = pa.BufferOutputStream()
    feather.write_feather(pa.Table.from_pylist(rows, _SCHEMA), out)
    write_atomic(kept, out.getvalue().to_pybytes())
