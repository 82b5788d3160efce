"""What made a store, or started a run, is known by its content: another one is another store, or refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile as sf
import torch
from datasets.arrow_dataset import Column

from conftest import config, units
from zipper import hashes
from zipper.config import DataConfig, RunConfig
from zipper.corpora.spoken import recipe_hash, spoken_corpus
from zipper.corpora.utterance import SPLITS, Utterance, write_manifest
from zipper.data.dataset import listing_hash
from zipper.data.encode import prepare_dataset
from zipper.data.schedule import BatchSchedule
from zipper.data.statistics import measure_statistics
from zipper.errors import ConfigError
from zipper.evaluation.journal import evaluation_identity
from zipper.evaluation.significance import different_data
from zipper.hashes import check_once, file_hashes
from zipper.models.pretrained import save_tower, tower_hashes
from zipper.models.resolve import resolve
from zipper.models.tower import Tower
from zipper.training import run as run_module


def test_other_recordings_under_the_same_names_make_another_store(tmp_path, utterances, codec, subwords):
    folder = tmp_path / "corpus"
    folder.mkdir()
    moved = [replace(u, audio=str(shutil.copy(u.audio, folder / f"{u.id}.flac"))) for u in utterances]
    first = prepare_dataset(tmp_path / "build/stores", moved, units(codec, subwords), 30.0)
    again = prepare_dataset(tmp_path / "build/stores", moved, units(codec, subwords), 30.0)
    assert again.folder == first.folder
    wave, rate = sf.read(moved[3].audio, dtype="int16")
    sf.write(moved[3].audio, wave[::-1], rate)  # as long, of the same name, text and speaker
    other = prepare_dataset(tmp_path / "build/stores", moved, units(codec, subwords), 30.0)
    assert other.folder != first.folder
    before, after = (dict(one.info["fingerprint"]) for one in (first, other))
    assert before.pop("audio") != after.pop("audio")
    assert before == after
    row, before = other.splits[moved[3].split], first.splits[moved[3].split]
    at = row["id"].index(moved[3].id)
    assert row[at]["codes"] != before[at]["codes"]


@pytest.mark.parametrize(
    "change",
    [
        {"id": "b"}, {"split": "dev"}, {"text": "y"}, {"audio": "/here/books/b.wav"},
        {"audio": "/here/other/a.wav"}, {"audio": ""}, {"speaker": "t"}, {"subset": "manifest/dev"},
        {"start": 0.5}, {"seconds": 2.5}, {"other": {"music": "c d"}},
    ],
)  # fmt: skip
def test_every_entry_of_a_list_makes_another_store(change):
    one = Utterance("a", "/here/books/a.wav", "x", "s", "train", "manifest/train", 0.0, 2.0, {"music": "c e"})
    assert listing_hash([one]) == listing_hash([replace(one, other=dict(one.other))])
    assert listing_hash([one]) != listing_hash([replace(one, **change)])


def test_a_file_is_read_once_and_again_only_when_it_has_changed(tmp_path, monkeypatch):
    read, digest = [], hashes._digest
    monkeypatch.setattr(hashes, "_digest", lambda name: (read.append(Path(name).name), digest(name))[1])
    files = [tmp_path / name for name in ("a", "b", "gone")]
    for file in files[:2]:
        file.write_bytes(b"same")
    first = file_hashes(files, tmp_path / "kept.arrow")
    assert first[0] == first[1] != first[2] == "missing"
    assert sorted(read) == ["a", "b"]
    read.clear()
    assert file_hashes(files, tmp_path / "kept.arrow") == first
    assert read == []
    files[1].write_bytes(b"diff")
    second = file_hashes(files, tmp_path / "kept.arrow")
    assert read == ["b"]
    assert second[0] == first[0]
    assert second[1] != first[1]
    (tmp_path / "kept.arrow").write_bytes(b"cut off")
    assert file_hashes(files, tmp_path / "kept.arrow") == second
    files[0].unlink()  # deleted since: a store that was made of it needs it no more
    assert file_hashes(files, tmp_path / "kept.arrow") == second


def test_an_error_of_the_disk_is_not_remembered(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x")
    with monkeypatch.context() as broken:
        broken.setattr(hashes, "_digest", lambda name: hashes.MISSING)
        assert file_hashes([tmp_path / "a"], tmp_path / "kept.arrow") == ["missing"]
    assert file_hashes([tmp_path / "a"], tmp_path / "kept.arrow") != ["missing"]


def test_a_check_that_files_have_passed_is_not_made_again_until_they_change(tmp_path):
    file, made = tmp_path / "a", []
    file.write_bytes(b"x")
    for _ in range(2):
        check_once(tmp_path, [file], lambda: made.append(1), tmp_path / "kept.arrow")
    assert made == [1]
    file.write_bytes(b"xy")
    with pytest.raises(ZeroDivisionError):
        check_once(tmp_path, [file], lambda: 1 / 0, tmp_path / "kept.arrow")
    check_once(tmp_path, [file], lambda: made.append(1), tmp_path / "kept.arrow")
    assert made == [1, 1]


def test_a_run_does_not_go_on_from_another_tower_under_the_same_name(in_tmp, prepared, monkeypatch):
    cfg = resolve(config(), prepared)
    statistics = {"modality": "text", "reads": prepared.modalities["text"].fingerprint}
    statistics["trained_on"] = prepared.info["trained_on"]
    save_tower(in_tmp / "tower", Tower(cfg.model.towers["text"]), statistics)
    words = [f"model.towers.text.init={in_tmp / 'tower'}", "log.wandb=disabled"]
    monkeypatch.setattr(run_module, "prepare", lambda *_: prepared)
    run_module.train(config(*words), "x")
    checkpoint = in_tmp / "build/runs/run/checkpoints/last.ckpt"
    kept = torch.load(checkpoint, weights_only=True)["hyper_parameters"]["statistics"]["towers"]
    assert kept == tower_hashes(config(*words).model.towers, in_tmp / "kept.arrow")
    (in_tmp / "build/runs/run/result.json").unlink()  # as if it had not ended
    save_tower(in_tmp / "tower", Tower(cfg.model.towers["text"]), statistics)  # other random weights
    with pytest.raises(ConfigError, match=r"started from the text tower .* its weights have changed"):
        run_module.train(config(*words), "x")


def test_an_evaluation_goes_on_from_one_of_the_same_checkpoint_settings_and_scorer_alone(tmp_path):
    file = tmp_path / "best.ckpt"
    file.write_bytes(b"weights")
    first = evaluation_identity(file, RunConfig(), "whisper")
    assert evaluation_identity(file, RunConfig(result="copy.json", export="model"), "whisper") == first
    assert evaluation_identity(file, RunConfig(seed=1), "whisper") != first
    assert evaluation_identity(file, RunConfig(), "another") != first
    file.write_bytes(b"of a longer training")
    assert evaluation_identity(file, RunConfig(), "whisper") != first


def test_results_of_other_data_are_told_apart_by_the_part_that_differs():
    data = {"corpus": "a", "audio": "1", "corpus_folder": "librispeech"}
    a, b = {"data": data}, {"data": {**data, "audio": "2"}}
    assert list(different_data(a, b)) == [("data.audio", "1", "2")]
    older = {"data": {"corpus": "a", "corpus_folder": "librispeech"}, "data_fingerprint": "x"}
    assert list(different_data(a, older)) == []
    spoken = [{"data": {**one["data"], "corpus_folder": "spoken-1"}} for one in (a, b)]
    assert list(different_data(*spoken)) == []  # spoken anew, by another CPU


def test_a_start_decodes_no_code_and_reads_columns_at_once(prepared, monkeypatch):
    """Whatever it did row by row would take half an hour of a corpus of 600,000."""
    lean = {split: rows.remove_columns(["codes", "ids", "text"]) for split, rows in prepared.splits.items()}
    expected, dataset = measure_statistics(prepared), replace(prepared, splits=lean)

    def one_by_one(*_: object) -> None:
        raise AssertionError("element by element")

    whole = Column.__getitem__

    def by_slice(self, key):
        return whole(self, key) if isinstance(key, slice) else one_by_one()

    monkeypatch.setattr(Column, "__iter__", one_by_one)
    monkeypatch.setattr(Column, "__getitem__", by_slice)
    assert measure_statistics(dataset) == expected
    steps = BatchSchedule(dataset, "train", {"asr": 1.0, "tts": 1.26}, 400, 1, 0, 0.0)
    assert steps.epoch_length(0) > 1


def test_a_project_that_was_moved_keeps_its_synthetic_corpus(tmp_path):
    cfg = DataConfig(train=1, dev=1, test=1)
    folder = tmp_path / "there" / f"spoken-{recipe_hash(cfg)}"
    made = [Utterance(f"{s}-0", str(tmp_path / f"here/{s}/{s}-0.flac"), "a", "x", s) for s in SPLITS]
    folder.mkdir(parents=True)
    write_manifest(folder / "manifest.jsonl", made)
    found = spoken_corpus(cfg, tmp_path / "there", 1)
    assert [u.audio for u in found] == [str(folder / s / f"{s}-0.flac") for s in SPLITS]


def test_files_that_have_moved_are_the_same_list():
    def at(folder: str) -> list[Utterance]:
        files = {"image": f"{folder}/a/b/c/x.png"}
        return [Utterance("a", f"{folder}/a/b/c/x.wav", "x", "s", "train", "manifest/train", other=files)]

    assert listing_hash(at("/here")) == listing_hash(at("/there"))
    assert listing_hash(at("/here")) != listing_hash(
        [replace(at("/here")[0], other={"image": "/here/y.png"})]
    )
