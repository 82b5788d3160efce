"""Everything bad that can come in: an error before work starts, or a counted and listed skip."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile as sf

from broken_runs import room_for
from conftest import units
from reproduce import ROOT
from zipper import cli
from zipper.arguments import config_command
from zipper.config import DataConfig
from zipper.corpora import spoken
from zipper.corpora.utterance import Utterance
from zipper.data.dataset import open_dataset
from zipper.data.encode import prepare_dataset
from zipper.data.skipped import Skipped, check_budget
from zipper.disk import check_writable, disk_failure
from zipper.errors import DataError

RATE = 16_000


def said(folder: Path, samples: np.ndarray, rate: int = RATE, text: str = "so it is") -> Utterance:
    file = folder / "said.wav"
    sf.write(file, samples, rate, subtype="FLOAT")
    return Utterance("said", str(file), text, "x", "train")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no text"),
        ("?! ...", "normalises to nothing"),
        ("in 1984 it was", "has digits .'1984'"),
        ("So it is.", "is not normalised"),
    ],
)
def test_text_that_cannot_be_used_is_listed_before_anything_is_encoded(
    tmp_path, utterances, codec, subwords, monkeypatch, text, reason
):
    bad = Utterance("bad", utterances[0].audio, text, "x", "train")
    monkeypatch.setattr(type(codec), "encode", lambda *_: pytest.fail("encoded before the texts were read"))
    with pytest.raises(DataError, match=rf"1 of 37 utterances.*{reason}"):
        prepare_dataset(tmp_path, [*utterances, bad], units(codec, subwords), 30.0)
    (listing,) = tmp_path.glob("*/texts.skipped")
    assert json.loads(listing.read_text(encoding="utf-8"))["id"] == "bad"


def test_within_the_budget_a_skip_is_counted_and_the_rest_is_kept(
    tmp_path, utterances, codec, subwords, monkeypatch
):
    monkeypatch.setattr("zipper.data.skipped.SKIP_BUDGET", 0.06)
    quiet = said(tmp_path, np.zeros(RATE, np.float32))
    digits = Utterance("digits", utterances[0].audio, "room 101", "x", "dev")
    dataset = prepare_dataset(tmp_path / "s", [*utterances, quiet, digits], units(codec, subwords), 30.0)
    assert dataset.info["skipped"] == 2
    assert dataset.info["rows"] == {"train": 24, "dev": 6, "test": 6}
    reasons = "".join(f.read_text(encoding="utf-8") for f in dataset.folder.glob("skipped.jsonl"))
    assert "is silent" in reasons
    assert "has digits" in reasons


def test_the_budget_is_used_up_by_one_in_a_hundred_and_no_more(tmp_path):
    skipped = [Skipped(id=str(i), reason="is silent") for i in range(3)]
    check_budget(tmp_path, skipped[:2], 200)
    with pytest.raises(DataError, match="3 of 200 utterances cannot be used, more than 1%"):
        check_budget(tmp_path, skipped, 200)


def test_what_shards_skip_adds_up_and_ends_the_encoding_once_it_is_too_much(
    tmp_path, utterances, codec, subwords, monkeypatch
):
    monkeypatch.setattr("zipper.data.skipped.SKIP_BUDGET", 0.04)  # one of these
    quiet = said(tmp_path, np.zeros(RATE, np.float32))
    some = [replace(quiet, id="quiet-0"), *utterances[:20], replace(quiet, id="quiet-1"), *utterances[20:]]
    with pytest.raises(DataError, match="2 of 38 utterances"):
        prepare_dataset(tmp_path / "stores", some, units(codec, subwords), 30.0)
    written = {file.name for file in tmp_path.glob("stores/*/*.arrow")}
    assert written == {"train-00000.arrow", "train-00001.arrow"}  # each within the budget


def test_a_code_out_of_range_is_found_when_the_store_is_opened(tmp_path, utterances, codec, subwords):
    dataset = prepare_dataset(tmp_path, utterances, units(codec, subwords), 30.0)
    shard = next(dataset.folder.glob("dev-*.arrow"))
    with pa.ipc.open_stream(pa.memory_map(str(shard))) as reader:
        table = reader.read_all()
    codes = table.column("codes").to_pylist()
    codes[2][5] = 16
    column = pa.array(codes, type=table.schema.field("codes").type)
    table = table.set_column(table.schema.get_field_index("codes"), table.schema.field("codes"), column)
    damaged = shard.with_suffix(".damaged")
    with pa.OSFile(str(damaged), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    damaged.rename(shard)
    with pytest.raises(DataError, match="dev holds codes from 0 to 16, outside 0 to 15"):
        open_dataset(dataset.folder, dataset.modalities)


def test_a_disk_that_fills_up_leaves_no_store_and_the_same_command_goes_on(
    tmp_path, utterances, codec, subwords
):
    with room_for(6000), pytest.raises(OSError) as caught:
        prepare_dataset(tmp_path, utterances, units(codec, subwords), 30.0)
    assert "no space left" in (disk_failure(caught.value) or "")
    (folder,) = tmp_path.iterdir()
    with pytest.raises(DataError, match="no finished dataset"):
        open_dataset(folder, units(codec, subwords))
    assert prepare_dataset(tmp_path, utterances, units(codec, subwords), 30.0).info["rows"]["train"] == 24


def test_a_full_disk_ends_the_command_with_one_line(monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "build/x")

    monkeypatch.setitem(cli.COMMANDS, "prepare", config_command(full))
    with pytest.raises(SystemExit) as end:
        cli.main(["prepare", str(ROOT / "configs" / "asr.yaml")])
    assert end.value.code == 2
    assert "error: no space left while writing build/x" in capsys.readouterr().err
    monkeypatch.setitem(cli.COMMANDS, "prepare", config_command(lambda *_: Path("/nowhere").stat()))
    with pytest.raises(FileNotFoundError):  # any other one is a bug, and shows as one
        cli.main(["prepare", str(ROOT / "configs" / "asr.yaml")])


def test_too_little_room_and_no_permission_are_said_before_work_starts(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"build=.*MB are free, but this needs about 10+ MB"):
        check_writable(tmp_path, 10**24, "build=x", "build=FOLDER")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"build=.*cannot be written.*build=FOLDER"):
        check_writable(tmp_path / "file" / "below", 0, "build=x", "build=FOLDER")

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    with pytest.raises(DataError, match=r"result=.*Permission denied"):
        check_writable(tmp_path, 0, "result=x", "result=FILE")


def test_a_missing_voice_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(spoken, "find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"hibari-tts.*make setup"):
        spoken.spoken_corpus(DataConfig(), tmp_path, 1)
    assert list(tmp_path.iterdir()) == []
