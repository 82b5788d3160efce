"""`zipper download`: fetches LibriSpeech with mini-LibriSpeech, and LibriTTS, from openslr.org.

Subsets are downloaded one by one, and each appears atomically.
"""

import shutil
import tarfile
import urllib.error
import urllib.request
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from zipper.config import RunConfig, expanded
from zipper.corpora.librispeech import PUBLISHED, SUBSETS
from zipper.disk import check_writable, disk_failure, file_lock
from zipper.errors import ConfigError, DataError
from zipper.hashes import sha256

ARCHIVES = {  # number at openslr.org, gigabytes, SHA-256
    "librispeech": {
        "dev-clean": (12, 0.34, "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
        "dev-other": (12, 0.31, "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"),
        "test-clean": (12, 0.35, "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
        "test-other": (12, 0.33, "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"),
        "train-clean-100": (12, 6.3, "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"),
        "train-clean-360": (12, 23, "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf"),
        "train-other-500": (12, 30, "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2"),
        "train-clean-5": (31, 0.33, "47805806c8b15f7549f3c51bd6b7da72ec0128a34d32830c8014a88658c0292d"),
        "dev-clean-2": (31, 0.13, "176ec501490eced2d6c1f89f4f0ddc7dfe799e649e5322f8ba49fe3ff50c8012"),
    },
    "libritts": {
        "dev-clean": (60, 1.2, "da0864e1bd26debed35da8a869dd5c04dfc27682921936de7cff9c8a254dbe1a"),
        "dev-other": (60, 0.92, "d413eda26f3a152ac7c9cf3658ef85504dfb1b625296e5fa83727f5186cca79c"),
        "test-clean": (60, 1.2, "234ea5b25859102a87024a4b9b86641f5b5aaaf1197335c95090cde04fe9a4f5"),
        "test-other": (60, 0.96, "33a5342094f3bba7ccc2e0500b9e72d558f72eb99328ac8debe1d9080402f10d"),
        "train-clean-100": (60, 7.7, "c5608bf1ef74bb621935382b8399c5cdd51cd3ee47cec51f00f885a64c6c7f6b"),
        "train-clean-360": (60, 27, "ce7cff44dcac46009d18379f37ef36551123a1dc4e5c8e4eb73ae57260de4886"),
        "train-other-500": (60, 44, "e35f7e34deeb2e2bdfe4403d88c8fdd5fbf64865cae41f027a185a6965f0a5df"),
    },
}
UNPACKED = 1.1  # unpacked size, relative to the archive
OPENSLR = "https://www.openslr.org/resources"
BLOCK = 1 << 20  # bytes


def _complete(archive: Path, url: str, name: str) -> None:
    """Download an archive, or what is missing of it."""
    have = archive.stat().st_size if archive.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"})
    try:
        with urllib.request.urlopen(request, timeout=60) as source:
            if source.status == HTTPStatus.OK:  # the server ignores ranges
                archive.unlink(missing_ok=True)
                have = 0
            total = int(source.headers.get("Content-Length", 0)) + have
            with (
                archive.open("ab") as out,
                tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=name, mininterval=1.0) as bar,
            ):
                while block := source.read(BLOCK):
                    out.write(block)
                    bar.update(len(block))
            if archive.stat().st_size < total:
                raise ConnectionError("the connection was closed early")
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # the archive is complete
            raise


def download(cfg: RunConfig) -> None:
    """Downloads every subset of data.splits that data.folder lacks, after printing the sizes.

    A partial archive is completed, complete subsets are not downloaded again.
    Raises ConfigError for another corpus, DataError if disk space, the network or a checksum fails.
    """
    corpora = [name for name in cfg.data.corpora if name in PUBLISHED]
    if not corpora or cfg.data.folder is None:
        raise ConfigError(
            f"data.corpus={cfg.data.corpus}, data.folder={cfg.data.folder}: download supports "
            f"{' and '.join(PUBLISHED)}, and needs data.folder. Libri-Light has its own download scripts "
            "(github.com/facebookresearch/libri-light)."
        )
    folder = expanded(cfg.data.folder)
    wanted = [(corpus, subset) for corpus in corpora for subset in subsets(cfg.data.splits)]
    if unknown := [subset for corpus, subset in wanted if subset not in ARCHIVES[corpus]]:
        raise ConfigError(f"data.splits names {unknown[0]}; known are {', '.join(ARCHIVES[corpora[0]])}.")
    missing = [(c, s) for c, s in wanted if not (_root(folder, c) / s).is_dir()]
    for corpus, subset in wanted:
        known = "missing" if (corpus, subset) in missing else "there"
        print(f"{corpus:<12} {subset:<16} {ARCHIVES[corpus][subset][1]:6.2f} GB  {known}")
    if not missing:
        return
    sizes = [ARCHIVES[corpus][subset][1] for corpus, subset in missing]
    needed = UNPACKED * sum(sizes) + max(sizes)  # one archive at a time is stored next to its unpacked files
    print(f"to fetch: {sum(sizes):.1f} GB; disk needed: {needed:.1f} GB in {folder.resolve()}")
    check_writable(folder, int(needed * 1e9), f"data.folder={cfg.data.folder}", "data.folder=FOLDER")
    with file_lock(folder / ".incoming.lock", f"data.folder={cfg.data.folder}", other="another data.folder"):
        for corpus, subset in missing:
            _fetch(folder, corpus, subset)


def subsets(splits: dict[str, list[str]]) -> list[str]:
    """Names of the archives that hold these splits; all archives if no splits are given."""
    parts = [part for several in (splits or SUBSETS).values() for part in several]
    return list(dict.fromkeys(part.strip("/").split("/")[0] for part in parts))


def _root(folder: Path, corpus: str) -> Path:
    """Folder of a corpus's subsets: in `folder`, or `folder` itself, as they are read (X/LibriSpeech)."""
    inside = folder / PUBLISHED[corpus]
    return folder if folder.name == inside.name and not inside.is_dir() else inside


def _fetch(folder: Path, corpus: str, subset: str) -> None:
    """Downloads and unpacks a subset in a temporary folder, then moves it to its place."""
    aside, name = folder / ".incoming" / corpus, PUBLISHED[corpus]
    shutil.rmtree(aside / name, ignore_errors=True)  # left by an interrupted extraction
    aside.mkdir(parents=True, exist_ok=True)
    print(f"{corpus} {subset}")
    archive = aside / f"{subset}.tar.gz"
    try:
        number, _, digest = ARCHIVES[corpus][subset]
        if not archive.is_file() or sha256(archive) != digest:  # not put there by hand
            _complete(archive, f"{OPENSLR}/{number}/{archive.name}", subset)
            if (found := sha256(archive)) != digest:
                raise tarfile.TarError(f"the hash of the archive is {found[:12]}, not {digest[:12]}")
        with tarfile.open(archive) as tar:
            # Rejects members outside the folder, links to outside, devices and foreign permissions.
            tar.extractall(aside, filter="data")
        if not (aside / name / subset).is_dir():
            raise tarfile.TarError(f"the archive holds no {name}/{subset}")
    except tarfile.TarError as error:
        archive.unlink(missing_ok=True)
        raise DataError(
            f"{corpus} {subset}: {error}. The archive is deleted: give the same command again."
        ) from error
    except (OSError, EOFError, HTTPException) as error:
        if isinstance(error, OSError) and disk_failure(error):
            raise  # reported by the command line
        raise DataError(
            f"{corpus} {subset} could not be downloaded ({error}). Complete subsets are kept: give the same "
            f"command again, or put the archive at {archive}."
        ) from error
    target = _root(folder, corpus) / subset
    target.parent.mkdir(parents=True, exist_ok=True)
    (aside / name / subset).rename(target)
    for file in (aside / name).iterdir():  # SPEAKERS.TXT and the like
        if file.is_file() and not (target.parent / file.name).exists():
            file.rename(target.parent / file.name)
    shutil.rmtree(aside / name)
    archive.unlink(missing_ok=True)
