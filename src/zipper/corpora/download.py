"""`zipper download`: fetches LibriSpeech and LibriTTS with torchaudio's dataset classes and checksums, and
mini-LibriSpeech (openslr.org/31), two subsets that belong to LibriSpeech, by itself.

Subsets are downloaded one by one, and each appears atomically.
"""

import os
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

from torchaudio.datasets import LIBRISPEECH, LIBRITTS
from tqdm import tqdm

from zipper.config import RunConfig
from zipper.corpora.librispeech import PUBLISHED, SUBSETS
from zipper.disk import check_writable, disk_failure, file_lock
from zipper.errors import ConfigError, DataError
from zipper.hashes import sha256

# Gigabytes of each archive, from openslr.org.
GIGABYTES = {
    "librispeech": {
        "dev-clean": 0.34, "dev-other": 0.31, "test-clean": 0.35, "test-other": 0.33, "train-clean-100": 6.3,
        "train-clean-360": 23, "train-other-500": 30, "train-clean-5": 0.33, "dev-clean-2": 0.13,
    },
    "libritts": {
        "dev-clean": 1.2, "dev-other": 0.92, "test-clean": 1.2, "test-other": 0.96, "train-clean-100": 7.7,
        "train-clean-360": 27, "train-other-500": 44,
    },
}  # fmt: skip
UNPACKED = 1.1  # unpacked size, relative to the archive
MINI_URL = "https://www.openslr.org/resources/31"
MINI = {  # SHA-256 of each archive
    "train-clean-5": "47805806c8b15f7549f3c51bd6b7da72ec0128a34d32830c8014a88658c0292d",
    "dev-clean-2": "176ec501490eced2d6c1f89f4f0ddc7dfe799e649e5322f8ba49fe3ff50c8012",
}
BLOCK = 1 << 20  # bytes


def _fetch_mini(folder: str, url: str, download: bool) -> None:
    """Download and unpack a subset of mini-LibriSpeech; a partial archive is completed. Arguments as in
    torchaudio. Raises RuntimeError on a wrong hash."""
    archive = Path(folder) / f"{url}.tar.gz"
    have = archive.stat().st_size if archive.is_file() else 0
    request = urllib.request.Request(f"{MINI_URL}/{url}.tar.gz", headers={"Range": f"bytes={have}-"})
    try:
        with urllib.request.urlopen(request, timeout=60) as source:
            if source.status == HTTPStatus.OK:  # the server ignores ranges
                archive.unlink(missing_ok=True)
                have = 0
            total = int(source.headers.get("Content-Length", 0)) + have
            with (
                archive.open("ab") as out,
                tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=url, mininterval=1.0) as bar,
            ):
                while block := source.read(BLOCK):
                    out.write(block)
                    bar.update(len(block))
            if archive.stat().st_size < total:
                raise ConnectionError("the connection was closed early")
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # the archive is complete
            raise
    if (found := sha256(archive)) != MINI[url]:
        raise RuntimeError(f"the hash of the archive is {found[:12]}, not {MINI[url][:12]}")
    with tarfile.open(archive) as tar:
        tar.extractall(folder)


FETCH: dict[str, Callable[..., object]] = {"librispeech": LIBRISPEECH, "libritts": LIBRITTS}


def download(cfg: RunConfig) -> None:
    """Downloads every subset of data.splits that data.folder lacks, after printing the sizes.

    A partial archive is downloaded again (that of mini-LibriSpeech is completed), complete subsets are not.
    Raises ConfigError for another corpus, DataError if disk space, the network or a checksum fails.
    """
    corpora = [name for name in cfg.data.corpora if name in PUBLISHED]
    if not corpora or cfg.data.folder is None:
        raise ConfigError(
            f"data.corpus={cfg.data.corpus}, data.folder={cfg.data.folder}: download supports "
            f"{' and '.join(PUBLISHED)}, and needs data.folder. Libri-Light has its own download scripts "
            "(github.com/facebookresearch/libri-light)."
        )
    folder = Path(cfg.data.folder).expanduser()
    wanted = [(corpus, subset) for corpus in corpora for subset in subsets(cfg.data.splits)]
    if unknown := [subset for corpus, subset in wanted if subset not in GIGABYTES[corpus]]:
        raise ConfigError(f"data.splits names {unknown[0]}; known are {', '.join(GIGABYTES[corpora[0]])}.")
    missing = [(c, s) for c, s in wanted if not (folder / PUBLISHED[c] / s).is_dir()]
    for corpus, subset in wanted:
        known = "missing" if (corpus, subset) in missing else "there"
        print(f"{corpus:<12} {subset:<16} {GIGABYTES[corpus][subset]:6.2f} GB  {known}")
    if not missing:
        return
    sizes = [GIGABYTES[corpus][subset] for corpus, subset in missing]
    needed = UNPACKED * sum(sizes) + max(sizes)  # one archive at a time is stored next to its unpacked files
    print(f"to fetch: {sum(sizes):.1f} GB; disk needed: {needed:.1f} GB in {folder.resolve()}")
    check_writable(folder, int(needed * 1e9), f"data.folder={cfg.data.folder}", "data.folder=FOLDER")
    with file_lock(folder / ".incoming.lock", f"data.folder={cfg.data.folder}"):
        for corpus, subset in missing:
            _fetch(folder, corpus, subset)


def subsets(splits: dict[str, list[str]]) -> list[str]:
    """Names of the archives that hold these splits; all archives if no splits are given."""
    parts = [part for several in (splits or SUBSETS).values() for part in several]
    return list(dict.fromkeys(part.strip("/").split("/")[0] for part in parts))


def _fetch(folder: Path, corpus: str, subset: str) -> None:
    """Downloads and unpacks a subset in a temporary folder, then moves it to its place."""
    aside, name = folder / ".incoming" / corpus, PUBLISHED[corpus]
    shutil.rmtree(aside / name, ignore_errors=True)  # left by an interrupted extraction
    aside.mkdir(parents=True, exist_ok=True)
    print(f"{corpus} {subset}")
    archive = aside / f"{subset}.tar.gz"
    # The filter rejects members outside the folder, links to outside, devices and foreign permissions.
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        fetch = _fetch_mini if subset in MINI else FETCH[corpus]
        fetch(os.fspath(aside), url=subset, download=True)
        if not (aside / name / subset).is_dir():
            raise tarfile.TarError(f"the archive holds no {name}/{subset}")
    except (RuntimeError, tarfile.TarError) as error:  # wrong hash, or damaged archive
        archive.unlink(missing_ok=True)
        raise DataError(
            f"{corpus} {subset}: {error}. The archive is deleted: give the same command again."
        ) from error
    except (OSError, EOFError) as error:
        if isinstance(error, OSError) and disk_failure(error):
            raise  # reported by the command line
        raise DataError(
            f"{corpus} {subset} could not be downloaded ({error}). Complete subsets are kept: give the same "
            f"command again, or put the archive at {archive}."
        ) from error
    target = folder / name / subset
    target.parent.mkdir(parents=True, exist_ok=True)
    (aside / name / subset).rename(target)
    for file in (aside / name).iterdir():  # SPEAKERS.TXT and the like
        if file.is_file() and not (target.parent / file.name).exists():
            file.rename(target.parent / file.name)
    shutil.rmtree(aside / name)
    archive.unlink(missing_ok=True)
