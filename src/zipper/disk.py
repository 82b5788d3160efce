"""Checks of output folders and disk space, a file lock, and messages for disk failures."""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zipper.config import RunConfig
from zipper.errors import ConfigError, DataError

UTTERANCE = 100_000  # bytes of a synthetic utterance with its codes (measured: 88 kB at 2.6 s)
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
LONGEST_WRITTEN = 200  # bytes of a name that a user gives: some are added while the file is written
LONGEST_NAME = 150  # bytes of UTF-8; file systems allow 255, and suffixes need some of them
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def check_output_paths(cfg: RunConfig) -> None:
    """Raises DataError if an output path of the config cannot be written or the disk has too little space."""
    data, build = cfg.data, Path(cfg.build)
    made = any(build.glob("corpora/*/manifest.jsonl")) and any(build.glob("stores/*/store.json"))
    needed = 0 if made else UTTERANCE * (data.train + data.dev + data.test)
    check_writable(build, needed, f"build={cfg.build}", "build=FOLDER")
    if cfg.result:
        check_result_file(Path(cfg.result), "result=", f"{cfg.name}.json")
    if cfg.export:
        check_writable(Path(cfg.export), 0, f"export={cfg.export}", "export=FOLDER")


def check_result_file(file: Path, option: str, name: str = "result.json") -> None:
    """Raises DataError if a file cannot be written. option: that names it, as `result=`; name: of a file to
    suggest where a folder is named."""
    if file.is_dir():
        raise DataError(f"{option}{file} is a folder. Name a file: {option}{file / name}")
    check_writable(file.parent, 0, f"{option}{file}", f"{option}FILE")


def check_writable(folder: Path, needed: int, setting: str, other: str) -> None:
    """Raises DataError if a folder cannot be written or has less free space than `needed` bytes.

    folder: created if missing. setting: `key=value` that names it; other: a replacement to suggest.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(
            f"{setting}: {folder} cannot be written ({error.strerror}). Give user {_user()} access to it, "
            f"or name another: {other}."
        ) from error
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{setting}: {free / 1e6:.0f} MB are free, but this needs about {needed / 1e6:.0f} MB. Free some "
            f"space, or name a folder on another disk: {other}."
        )


def write_atomic(file: Path, content: bytes) -> None:
    """Writes a file under a temporary name and renames it, so that it is complete or absent."""
    aside = file.with_name(f"{file.name}.{os.getpid()}.part")  # other processes may write the same file
    try:
        aside.write_bytes(content)
        aside.rename(file)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def file_lock(
    lock: Path, what: str, wait: bool = False, other: str = "another name (name=...)"
) -> Iterator[None]:
    """Holds a lock file; the lock of a process that dies is released.

    If another process holds it, waits for it (`wait`) or raises ConfigError, which names what is in use and
    the other choice.
    """
    while True:
        handle = lock.open("a+", encoding="utf-8")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            owner = f"{what} is in use by process {handle.read().strip()}"
            if not wait:
                raise ConfigError(f"{owner}. Wait for it, stop it, or choose {other}.") from None
            print(f"{owner}: waiting for it", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle.fileno()), lock.stat()):
                break  # otherwise its previous holder has removed the file
        handle.close()
    with handle:
        handle.truncate(0)
        handle.write(f"{os.getpid()} on {socket.gethostname()}")
        handle.flush()
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def check_folder(folder: Path) -> None:
    """Raise ConfigError if a folder to write is a file, or would be in one."""
    if files := [one for one in (folder, *folder.parents) if one.is_file()]:
        raise ConfigError(f"{folder}: {files[0]} is a file. Name a folder.")


def check_file_name(file: Path) -> None:
    """Raises ConfigError if a file cannot be written for its name, or is a folder."""
    name = file.name.encode(errors="surrogatepass")
    if len(name) > LONGEST_WRITTEN or b"\0" in bytes(file):
        raise ConfigError(
            f"{str(file)[:80]!r}...: a name may have {LONGEST_WRITTEN} bytes, and no NUL. Give a shorter one."
        )
    if file.is_dir():
        raise ConfigError(f"{file} is a folder. Give the name of a file.")


def disk_failure(error: OSError) -> str | None:
    """Error message for a write that failed for lack of space or permission; None for other errors."""
    where = f" while writing {error.filename}" if error.filename else ""
    if error.errno in FULL:
        what, fix = "no space left", "free some space"
    elif error.errno in FORBIDDEN:
        what, fix = "not allowed", f"give user {_user()} write access"
    else:
        return None
    return (
        f"{what}{where} ({error.strerror}). Finished work is kept: {fix}, and run the same command to resume."
    )


def file_name(id: str) -> str:
    """File name for an id from user data: the id itself if it is safe, else its safe part and a hash."""
    plain = re.sub(r"[\x00-\x1f\x7f/\\:*?\"<>|\ud800-\udfff]+", "_", id).strip(" .")
    plain = plain.encode()[:LONGEST_NAME].decode(errors="ignore")
    if plain == id and plain:
        return id
    return f"{plain or '_'}-{hashlib.sha256(id.encode(errors='surrogatepass')).hexdigest()[:8]}"


def _user() -> str:
    return str(os.environ.get("USER", os.getuid()))
