"""Downloads, from archives that stand in for those of openslr.org: whole or not at all."""

import hashlib
import io
import random
import shutil
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torchaudio.datasets.librispeech as published

from zipper.config import load_config
from zipper.corpora import download as download_module
from zipper.corpora.download import GIGABYTES, MINI, download, subsets
from zipper.corpora.librispeech import SUBSETS
from zipper.disk import file_lock
from zipper.errors import ConfigError, DataError

WORDS = [
    "data.corpus=librispeech",
    "data.folder=data",
    "data.splits={train: [dev-clean], test: [test-clean/61]}",
]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Two tiny archives; returns the list of what was fetched."""
    monkeypatch.chdir(tmp_path)
    fetched: list[str] = []
    for subset in ("dev-clean", "test-clean"):
        folder = tmp_path / "made" / "LibriSpeech" / subset / "61" / "70968"
        folder.mkdir(parents=True)
        (folder / "61-70968-0000.flac").write_bytes(b"fLaC")
        (tmp_path / "made" / "LibriSpeech" / "SPEAKERS.TXT").write_text("61", encoding="utf-8")
        with tarfile.open(tmp_path / f"{subset}.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / "made" / "LibriSpeech", "LibriSpeech")
        shutil.rmtree(tmp_path / "made")

    def fetch(url: str, target: str, hash_prefix: str) -> None:
        """As torch.hub does it: the file appears only when its hash is right."""
        file = tmp_path / Path(url).name
        fetched.append(file.stem.removesuffix(".tar"))
        if hashlib.sha256(file.read_bytes()).hexdigest() != hash_prefix:
            raise RuntimeError(f'invalid hash value (expected "{hash_prefix}")')
        shutil.copy(file, target)

    sums = {
        f"http://www.openslr.org/resources/12/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
        for file in tmp_path.glob("*.tar.gz")
    }
    monkeypatch.setattr(published, "download_url_to_file", fetch)
    monkeypatch.setattr(published, "_CHECKSUMS", sums)
    return fetched


def test_every_published_subset_has_its_size():
    for corpus in GIGABYTES.values():
        assert {*corpus} - {*MINI} == {subset for several in SUBSETS.values() for subset in several}
    assert {*published._DATA_SUBSETS, *MINI} == {*GIGABYTES["librispeech"]}
    assert subsets({"train": ["dev-clean/1", "dev-clean/2"], "dev": ["dev-other"]}) == [
        "dev-clean",
        "dev-other",
    ]


def test_what_is_missing_is_fetched_once_and_said_before(server, capsys):
    download(load_config(None, WORDS))
    assert server == ["dev-clean", "test-clean"]
    said = capsys.readouterr().out
    assert "to fetch: 0.7 GB; disk needed: 1.1 GB" in said
    assert said.index("to fetch") < said.index("librispeech dev-clean\n")
    assert Path("data/LibriSpeech/test-clean/61/70968/61-70968-0000.flac").is_file()
    assert Path("data/LibriSpeech/SPEAKERS.TXT").is_file()
    assert not list(Path("data").rglob("*.tar.gz"))  # the disk is not held twice
    download(load_config(None, WORDS))
    assert len(server) == 2


def test_two_downloads_into_one_folder_are_refused(server):
    Path("data").mkdir()
    with (
        file_lock(Path("data/.incoming.lock"), "x"),
        pytest.raises(ConfigError, match=r"data\.folder=data is in use"),
    ):
        download(load_config(None, WORDS))
    assert not server
    download(load_config(None, WORDS))
    assert server == ["dev-clean", "test-clean"]


def test_a_wrong_checksum_leaves_nothing_and_those_before_it_stay(server, monkeypatch):
    good = dict(published._CHECKSUMS)
    wrong = {url: ("0" * 64 if "test-clean" in url else digest) for url, digest in good.items()}
    monkeypatch.setattr(published, "_CHECKSUMS", wrong)
    with pytest.raises(DataError, match=r"test-clean: invalid hash value.*give the same command again"):
        download(load_config(None, WORDS))
    assert Path("data/LibriSpeech/dev-clean").is_dir()
    assert not Path("data/LibriSpeech/test-clean").exists()
    monkeypatch.setattr(published, "_CHECKSUMS", good)
    download(load_config(None, WORDS))
    assert server == ["dev-clean", "test-clean", "test-clean"]
    assert Path("data/LibriSpeech/test-clean").is_dir()


def test_a_network_that_stops_and_an_unpacking_that_was_cut_off_go_on(server, monkeypatch):
    real = published.download_url_to_file

    def cut_off(url, target, hash_prefix):
        raise ConnectionResetError(104, "connection reset by peer")

    monkeypatch.setattr(published, "download_url_to_file", cut_off)
    with pytest.raises(DataError, match=r"dev-clean could not be downloaded .*connection reset"):
        download(load_config(None, WORDS))
    half = Path("data/.incoming/librispeech/LibriSpeech/dev-clean/61")
    half.mkdir(parents=True)  # killed while it unpacked
    monkeypatch.setattr(published, "download_url_to_file", real)
    download(load_config(None, WORDS))
    assert Path("data/LibriSpeech/dev-clean/61/70968/61-70968-0000.flac").is_file()


def test_a_damaged_archive_that_was_put_there_is_thrown_away(server):
    archive = Path("data/.incoming/librispeech/dev-clean.tar.gz")
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"no archive")
    with pytest.raises(DataError, match="give the same command again"):
        download(load_config(None, WORDS))
    assert not archive.exists()
    download(load_config(None, WORDS))
    assert server == ["dev-clean", "test-clean"]


@pytest.mark.parametrize("name", ["../../../../outside", "/outside", "LibriSpeech/dev-clean/link"])
def test_an_archive_cannot_write_outside_its_folder(server, tmp_path, name):
    archive = Path("data/.incoming/librispeech/dev-clean.tar.gz")
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as made:
        member = tarfile.TarInfo(name)
        if name.endswith("link"):
            member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path / "outside")
            made.addfile(member)
        else:
            member.size = 4
            made.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(DataError, match=r"dev-clean: .*deleted: give the same command again"):
        download(load_config(None, WORDS))
    assert not Path("/outside").exists()
    assert not [file for file in tmp_path.rglob("outside") if ".incoming" not in file.parts]
    assert not Path("data/LibriSpeech/dev-clean").exists()


def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(server, monkeypatch):
    monkeypatch.setitem(download_module.GIGABYTES["librispeech"], "dev-clean", 1e9)
    with pytest.raises(DataError, match="MB are free, but this needs"):
        download(load_config(None, WORDS))
    assert server == []


@pytest.fixture
def mini(tmp_path, monkeypatch):
    """A web server with one archive; `most`: bytes after which it hangs up, `asked`: ranges asked for."""
    monkeypatch.chdir(tmp_path)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        member = tarfile.TarInfo("LibriSpeech/train-clean-5/1/2/1-2-0000.flac")
        member.size = 9000
        tar.addfile(member, io.BytesIO(bytes(random.Random(0).randbytes(9000))))
    served = SimpleNamespace(content=content.getvalue(), most=None, asked=[])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            first = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            served.asked.append(first)
            if first >= len(served.content):
                self.send_error(416)
                return
            part = served.content[first:]
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part[: served.most])

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(download_module, "MINI_URL", f"http://127.0.0.1:{server.server_port}")
        digest = hashlib.sha256(served.content).hexdigest()
        monkeypatch.setitem(download_module.MINI, "train-clean-5", digest)
        yield served
        server.shutdown()


MINI_WORDS = [*WORDS[:2], "data.splits={train: [train-clean-5]}"]


def test_mini_librispeech_is_completed_after_a_cut_and_a_wrong_archive_is_thrown_away(mini):
    mini.most = 4000
    with pytest.raises(DataError, match="give the same command again"):
        download(load_config(None, MINI_WORDS))
    mini.most = None
    download(load_config(None, MINI_WORDS))
    assert mini.asked == [0, 4000]
    assert Path("data/LibriSpeech/train-clean-5/1/2/1-2-0000.flac").stat().st_size == 9000
    shutil.rmtree("data/LibriSpeech")
    archive = Path("data/.incoming/librispeech/train-clean-5.tar.gz")
    archive.write_bytes(mini.content)
    download(load_config(None, MINI_WORDS))  # it was complete
    assert mini.asked[2:] == [len(mini.content)]
    shutil.rmtree("data/LibriSpeech")
    archive.write_bytes(b"x" * len(mini.content))
    with pytest.raises(DataError, match=r"hash of the archive .*deleted"):
        download(load_config(None, MINI_WORDS))
    assert not archive.exists()
