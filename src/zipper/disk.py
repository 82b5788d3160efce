"""Can it be written, and does it fit? Asked before work starts; and what a full disk looks like later."""

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

UTTERANCE = 100_000  # bytes that a spoken utterance takes, with its codes (measured: 88 kB at 2.6 s)
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
LONGEST_NAME = 150  # bytes of UTF-8; file systems take 255, some of which endings need
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def check_output_paths(cfg: RunConfig) -> None:
    """Raises DataError where a place that the config names cannot be written, or the disk is too full."""
    data, build = cfg.data, Path(cfg.build)
    made = any(build.glob("corpora/*/manifest.jsonl")) and any(build.glob("stores/*/store.json"))
    needed = 0 if made else UTTERANCE * (data.train + data.dev + data.test)
    check_writable(build, needed, f"build={cfg.build}", "build=FOLDER")
    if cfg.result:
        if Path(cfg.result).is_dir():
            raise DataError(
                f"result={cfg.result} is a folder. Name a file: result={cfg.result}/{cfg.name}.json"
            )
        check_writable(Path(cfg.result).parent, 0, f"result={cfg.result}", "result=FILE")
    if cfg.export:
        check_writable(Path(cfg.export), 0, f"export={cfg.export}", "export=FOLDER")


def check_writable(folder: Path, needed: int, setting: str, other: str) -> None:
    """folder: made if missing. needed: bytes. setting: key and value; other: what to give instead."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(
            f"{setting}: {folder} cannot be written ({error.strerror}). Give that folder to user {_user()}, "
            f"or name another: {other}."
        ) from error
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{setting}: {free / 1e6:.0f} MB are free, but this needs about {needed / 1e6:.0f} MB. "
            f"Free some, or name a place on another disk: {other}."
        )


@contextmanager
def file_lock(lock: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Holds a lock file, which a process that dies lets go of. Where another one holds it, waits for it, or
    raises ConfigError."""
    while True:
        handle = lock.open("a+", encoding="utf-8")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            owner = f"{what} is in use by process {handle.read().strip()}"
            if not wait:
                raise ConfigError(
                    f"{owner}. Wait for it, end it, or choose another name (name=...)."
                ) from None
            print(f"{owner}: waiting for it", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle.fileno()), lock.stat()):
                break  # else its holder has removed it in between
        handle.close()
    with handle:
        handle.truncate(0)
        handle.write(f"{os.getpid()} on {socket.gethostname()}")
        handle.flush()
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def disk_failure(error: OSError) -> str | None:
    """What to tell the user when writing failed for want of space, or of permission; None if that was not the
    reason."""
    where = f" while writing {error.filename}" if error.filename else ""
    if error.errno in FULL:
        what, mend = "no space left", "free some space"
    elif error.errno in FORBIDDEN:
        what, mend = "not allowed", f"give the place to user {_user()}, or make it writable"
    else:
        return None
    return (
        f"{what}{where} ({error.strerror}). What was finished is kept: {mend}, and give the same command "
        "again "
        "to go on."
    )


def file_name(id: str) -> str:
    """Names the files of an id that came from outside: the id itself where it is a safe name in any folder,
    else what is safe of it, with a hash that keeps names apart."""
    plain = re.sub(r"[\x00-\x1f\x7f/\\:*?\"<>|\ud800-\udfff]+", "_", id).strip(" .")
    plain = plain.encode()[:LONGEST_NAME].decode(errors="ignore")
    if plain == id and plain:
        return id
    return f"{plain or '_'}-{hashlib.sha256(id.encode(errors='surrogatepass')).hexdigest()[:8]}"


def _user() -> str:
    return str(os.environ.get("USER", os.getuid()))
