"""Archive of a folder's result files, where they take a tenth of the bytes: results of one folder have most
sentences and settings in common.
"""

import io
import lzma
import tarfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from zipper.disk import write_atomic
from zipper.errors import DataError

ARCHIVE = "results.tar.xz"
PACKED = ".xz"  # suffix of files that are compressed outside of the archive, but not in it


def result_files(folder: Path, below: bool = True) -> list[Path]:
    """Result files (NAME.json) of a folder, in its archive or beside it. below: and of the folders in it."""
    find = folder.rglob if below else folder.glob
    packed = {
        archive.with_name(name)
        for archive in find(ARCHIVE)
        for name in _content(archive)
        if name.endswith(".json")
    }
    return sorted({*find("*.json"), *packed})


def read_bytes(file: Path) -> bytes | None:
    """Content of a file, decompressed, or else of its copy in the folder's archive; None if there is neither.
    Raises DataError if the archive is damaged, LZMAError if the file is."""
    if file.is_file():
        content = file.read_bytes()
        return lzma.decompress(content) if file.suffix == PACKED else content
    archive = file.with_name(ARCHIVE)
    return _content(archive).get(file.name.removesuffix(PACKED)) if archive.is_file() else None


def pack(files: Iterable[Path]) -> None:
    """Move files into their folders' archives, in place of what these have of the same names."""
    files = sorted(files)
    for folder in sorted({file.parent for file in files}):
        moved = [file for file in files if file.parent == folder]
        archive = folder / ARCHIVE
        content = dict(_content(archive)) if archive.is_file() else {}
        content |= {file.name.removesuffix(PACKED): read_bytes(file) or b"" for file in moved}
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:xz", preset=9) as tar:
            for name in sorted(content, key=lambda name: (Path(name).suffix, name)):  # like beside like
                entry = tarfile.TarInfo(name)
                entry.size = len(content[name])
                tar.addfile(entry, io.BytesIO(content[name]))
        write_atomic(archive, out.getvalue())
        for file in moved:
            file.unlink()


def _content(archive: Path) -> dict[str, bytes]:
    return _unpacked(archive, archive.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _unpacked(archive: Path, changed: int) -> dict[str, bytes]:
    """Files of an archive by name. changed: its modification time. Raises DataError if it is damaged."""
    try:
        whole = io.BytesIO(lzma.decompress(archive.read_bytes()))  # checks what tarfile would not read
        with tarfile.open(fileobj=whole) as tar:
            return {one.name: stream.read() for one in tar if (stream := tar.extractfile(one))}
    except (lzma.LZMAError, tarfile.TarError) as error:
        raise DataError(f"{archive} is damaged ({error}). Restore it, or evaluate its runs again.") from error
