"""Downloads, from archives that stand in for those of openslr.org: whole or not at all."""

import hashlib
import io
import random
import tarfile
import threading
from http.client import BadStatusLine, IncompleteRead
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from zipper.config import load_config
from zipper.corpora import download as download_module
from zipper.corpora.download import ARCHIVES, download, subsets
from zipper.corpora.librispeech import SUBSETS, index_librispeech
from zipper.disk import file_lock
from zipper.errors import ConfigError, DataError

WORDS = [
    "data.corpus=librispeech",
    "data.folder=data",
    "data.splits={train: [dev-clean], test: [test-clean/61]}",
]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server with tiny archives. served: their contents; most: bytes after which it hangs up; asked:
    subset and first byte of each request."""
    monkeypatch.chdir(tmp_path)
    server = SimpleNamespace(served={}, most=None, asked=[])
    for number, subset in ((12, "dev-clean"), (12, "test-clean"), (31, "train-clean-5")):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz") as tar:
            for name, size in ((f"{subset}/61/70968/61-70968-0000.flac", 9000), ("SPEAKERS.TXT", 2)):
                member = tarfile.TarInfo(f"LibriSpeech/{name}")
                member.size = size
                tar.addfile(member, io.BytesIO(random.Random(0).randbytes(size)))
        server.served[subset] = content.getvalue()
        digest = hashlib.sha256(content.getvalue()).hexdigest()
        monkeypatch.setitem(ARCHIVES["librispeech"], subset, (number, 0.35, digest))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            number, name = self.path.split("/")[-2:]
            subset = name.removesuffix(".tar.gz")
            assert int(number) == ARCHIVES["librispeech"][subset][0]
            first = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            server.asked.append((subset, first))
            if first >= len(content := server.served[subset]):
                self.send_error(416)
                return
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            self.wfile.write(content[first:][: server.most])

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        monkeypatch.setattr(download_module, "OPENSLR", f"http://127.0.0.1:{http.server_port}")
        yield server
        http.shutdown()


def names(server) -> list[str]:
    return [subset for subset, _ in server.asked]


def test_every_published_subset_has_its_size():
    for name, corpus in ARCHIVES.items():
        mini = {"train-clean-5", "dev-clean-2"} if name == "librispeech" else {*()}
        assert {*corpus} - mini == {subset for several in SUBSETS.values() for subset in several}
    assert subsets({"train": ["dev-clean/1", "dev-clean/2"], "dev": ["dev-other"]}) == [
        "dev-clean",
        "dev-other",
    ]


def test_what_is_missing_is_fetched_once_and_said_before(server, capsys):
    download(load_config(None, WORDS))
    assert names(server) == ["dev-clean", "test-clean"]
    said = capsys.readouterr().out
    assert "to fetch: 0.7 GB; disk needed: 1.1 GB" in said
    assert said.index("to fetch") < said.index("librispeech dev-clean\n")
    assert Path("data/LibriSpeech/test-clean/61/70968/61-70968-0000.flac").is_file()
    assert Path("data/LibriSpeech/SPEAKERS.TXT").is_file()
    assert not list(Path("data").rglob("*.tar.gz"))  # the disk is not held twice
    download(load_config(None, WORDS))
    assert len(server.asked) == 2


def test_a_folder_of_the_corpus_itself_is_completed_and_read(server):
    words = [*WORDS[:1], "data.folder=data/LibriSpeech", *WORDS[2:]]
    download(
        load_config(None, ["data.corpus=librispeech", "data.folder=data", "data.splits={train: [dev-clean]}"])
    )
    download(load_config(None, words))
    assert names(server) == ["dev-clean", "test-clean"]
    found = index_librispeech("librispeech", Path("data/LibriSpeech"), {"train": ["dev-clean", "test-clean"]})
    assert {u.subset for u in found} == {"librispeech/dev-clean", "librispeech/test-clean"}


def test_two_downloads_into_one_folder_are_refused(server):
    Path("data").mkdir()
    with (
        file_lock(Path("data/.incoming.lock"), "x"),
        pytest.raises(ConfigError, match=r"data\.folder=data is in use"),
    ):
        download(load_config(None, WORDS))
    assert not server.asked
    download(load_config(None, WORDS))
    assert names(server) == ["dev-clean", "test-clean"]


def test_a_wrong_checksum_leaves_nothing_and_those_before_it_stay(server):
    good = server.served["test-clean"]
    server.served["test-clean"] = bytes(len(good))
    with pytest.raises(DataError, match=r"test-clean: the hash of .*give the same command again"):
        download(load_config(None, WORDS))
    assert Path("data/LibriSpeech/dev-clean").is_dir()
    assert not Path("data/LibriSpeech/test-clean").exists()
    server.served["test-clean"] = good
    download(load_config(None, WORDS))
    assert server.asked == [("dev-clean", 0), ("test-clean", 0), ("test-clean", 0)]
    assert Path("data/LibriSpeech/test-clean").is_dir()


def test_an_archive_that_was_cut_off_is_completed_and_an_unpacking_begins_again(server):
    server.most = 4000
    for _ in range(2):  # of about 9,300 bytes
        with pytest.raises(DataError, match=r"dev-clean could not be downloaded .*give the same command"):
            download(load_config(None, WORDS))
    half = Path("data/.incoming/librispeech/LibriSpeech/dev-clean/61")
    half.mkdir(parents=True)  # killed while it unpacked
    server.most = None
    download(load_config(None, WORDS))
    assert server.asked == [*(("dev-clean", have) for have in (0, 4000, 8000)), ("test-clean", 0)]
    assert Path("data/LibriSpeech/dev-clean/61/70968/61-70968-0000.flac").stat().st_size == 9000


def test_an_archive_that_was_put_there_needs_no_network(server, monkeypatch):
    monkeypatch.setattr(download_module, "OPENSLR", "http://127.0.0.1:9")
    folder = Path("data/.incoming/librispeech")
    folder.mkdir(parents=True)
    folder.joinpath("dev-clean.tar.gz").write_bytes(server.served["dev-clean"])
    with pytest.raises(DataError, match=r"test-clean could not be downloaded .*put the archive at"):
        download(load_config(None, WORDS))
    assert Path("data/LibriSpeech/dev-clean").is_dir()


def test_a_whole_archive_is_kept_whatever_a_server_answers(server):
    """One that ignores ranges, as a page of a hotel, once took the archive's place."""
    archive = Path("data/.incoming/librispeech/dev-clean.tar.gz")
    archive.parent.mkdir(parents=True)
    archive.write_bytes(server.served["dev-clean"])
    server.served["dev-clean"] = b"<html>" * 9999
    download(load_config(None, WORDS))
    assert Path("data/LibriSpeech/dev-clean").is_dir()
    assert names(server) == ["test-clean"]


@pytest.mark.parametrize("error", [IncompleteRead(b""), BadStatusLine("x")], ids=repr)
def test_a_broken_answer_is_reported(server, monkeypatch, error):
    def answer(*args, **kwargs):
        raise error

    monkeypatch.setattr("urllib.request.urlopen", answer)
    with pytest.raises(DataError, match="dev-clean could not be downloaded"):
        download(load_config(None, WORDS))


def test_a_damaged_archive_that_was_put_there_is_thrown_away(server):
    archive = Path("data/.incoming/librispeech/dev-clean.tar.gz")
    archive.parent.mkdir(parents=True)
    archive.write_bytes(bytes(len(server.served["dev-clean"])))
    with pytest.raises(DataError, match="give the same command again"):
        download(load_config(None, WORDS))
    assert not archive.exists()
    download(load_config(None, WORDS))
    assert names(server) == ["dev-clean", "dev-clean", "test-clean"]


@pytest.mark.parametrize("name", ["../../../../outside", "/outside", "LibriSpeech/dev-clean/link"])
def test_an_archive_cannot_write_outside_its_folder(server, tmp_path, monkeypatch, name):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as made:
        member = tarfile.TarInfo(name)
        if name.endswith("link"):
            member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path / "outside")
            made.addfile(member)
        else:
            member.size = 4
            made.addfile(member, io.BytesIO(b"evil"))
    server.served["dev-clean"] = content.getvalue()
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    monkeypatch.setitem(ARCHIVES["librispeech"], "dev-clean", (12, 0.35, digest))
    with pytest.raises(DataError, match=r"dev-clean: .*deleted: give the same command again"):
        download(load_config(None, WORDS))
    assert not Path("/outside").exists()
    assert not [file for file in tmp_path.rglob("outside") if ".incoming" not in file.parts]
    assert not Path("data/LibriSpeech/dev-clean").exists()


def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(server, monkeypatch):
    monkeypatch.setitem(ARCHIVES["librispeech"], "dev-clean", (12, 1e9, ""))
    with pytest.raises(DataError, match="MB are free, but this needs"):
        download(load_config(None, WORDS))
    assert server.asked == []


def test_mini_librispeech_lies_beside_librispeech(server):
    download(load_config(None, [*WORDS[:2], "data.splits={train: [train-clean-5]}"]))
    assert names(server) == ["train-clean-5"]
    assert Path("data/LibriSpeech/train-clean-5/61/70968/61-70968-0000.flac").is_file()
