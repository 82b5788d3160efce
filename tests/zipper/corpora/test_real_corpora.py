"""Corpora in the layouts as published, made small: indexed without opening audio, and told apart when
damaged."""

import gzip
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from conftest import units
from zipper.codecs.codec import Codec
from zipper.config import load_config
from zipper.corpora.open import open_corpus
from zipper.corpora.utterance import Utterance, hold_out
from zipper.data.dataset import EncodedDataset, listing_hash
from zipper.data.encode import prepare_dataset
from zipper.data.schedule import BatchSchedule
from zipper.data.statistics import measure_statistics
from zipper.errors import ConfigError, DataError
from zipper.evaluation.result import by_column, chosen_rows
from zipper.modalities import audio as audio_module
from zipper.modalities.scoring import WordErrors
from zipper.modalities.tokenizer import Tokenizer

TEXTS = ["IT WAS NOW MID JULY", "THE PLAGUE HAD RAGED", "SAINT ANDREW'S HOLBORN", "FOR THE CITY"]


def noise(file: Path, seconds: float = 0.4, rate: int = 16000) -> None:
    draw = np.random.default_rng(len(file.name) + sum(map(ord, file.stem)))
    file.parent.mkdir(parents=True, exist_ok=True)
    sf.write(file, draw.normal(0, 0.1, int(seconds * rate)), rate)


def librispeech(root: Path) -> Path:
    """Two training speakers, one of dev-clean, one of test-clean, one of test-other; two sentences a
    chapter."""
    for subset, speaker in (
        ("train-clean-100", "19"), ("train-clean-100", "26"), ("dev-clean", "84"), ("test-clean", "61"),
        ("test-other", "1688"),
    ):  # fmt: skip
        for chapter in ("198", "495"):
            folder, lines = root / "LibriSpeech" / subset / speaker / chapter, []
            for i in range(2):
                noise(folder / f"{speaker}-{chapter}-{i:04d}.flac", 0.4 + 0.1 * i)
                lines.append(f"{speaker}-{chapter}-{i:04d} {TEXTS[i]}\n")
            (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines), encoding="utf-8")
    return root


def libritts(root: Path) -> Path:
    for subset in ("train-clean-100", "dev-clean", "test-clean"):
        for i in range(2):
            name = f"{subset[:2]}9_100_00000{i}_000000"
            noise(root / "LibriTTS" / subset / "9" / "100" / f"{name}.wav", 0.5, 24000)
            (root / "LibriTTS" / subset / "9" / "100" / f"{name}.normalized.txt").write_text(
                "It wasn't, then.", encoding="utf-8"
            )
    return root


SPLITS = "data.splits={train: [train-clean-100], dev: [dev-clean], test: [test-clean]}"
OTHER = SPLITS.replace("test-clean", "test-clean, test-other")


def opened(corpus: str, folder: Path, *words: str) -> list[Utterance]:
    return open_corpus(load_config(None, [f"data.corpus={corpus}", f"data.folder={folder}", *words]))


def encoded(folder: Path, codec: Codec, found: list[Utterance], texts: Iterable[str]) -> EncodedDataset:
    return prepare_dataset(folder / "stores", found, units(codec, Tokenizer.train(texts, 40)), 30.0)


def test_librispeech_is_indexed_as_published_and_no_audio_is_opened(tmp_path, monkeypatch):
    librispeech(tmp_path)
    monkeypatch.setattr(audio_module, "sf", None)
    found = opened("librispeech", tmp_path, OTHER)
    assert len(found) == 20
    first = found[0]
    assert (first.id, first.text, first.speaker) == ("19-198-0000", "it was now mid july", "19")
    assert (first.split, first.subset) == ("train", "librispeech/train-clean-100")
    assert Path(first.audio).is_file()
    tested = {u.subset for u in found if u.split == "test"}
    assert tested == {"librispeech/test-clean", "librispeech/test-other"}
    # The folder itself does as well as the one that holds it.
    assert found == opened("librispeech", tmp_path / "LibriSpeech", OTHER)


def test_a_part_of_a_subset_may_be_another_split(tmp_path):
    librispeech(tmp_path)
    splits = "data.splits={train: [train-clean-100], dev: [train-clean-100/26], test: [test-other/1688/198]}"
    found = opened("librispeech", tmp_path, splits)
    assert {(u.split, u.speaker) for u in found} == {("train", "19"), ("dev", "26"), ("test", "1688")}
    assert all("-198-" in u.id for u in found if u.split == "test")
    with pytest.raises(DataError, match=r"data\.splits: .* has no recordings of train-clean-100/999"):
        opened("librispeech", tmp_path, splits.replace("100/26]", "100/26, train-clean-100/999]"))


def test_a_subset_that_is_missing_is_named_with_those_that_are_there(tmp_path):
    librispeech(tmp_path)
    with pytest.raises(DataError, match=r"no subset train-clean-360; available: dev-clean, test-clean"):
        opened("librispeech", tmp_path)
    with pytest.raises(ConfigError, match=r"'librispeach' is not one of .* Did you mean 'librispeech'"):
        opened("librispeach", tmp_path)


def test_what_has_no_partner_is_skipped_with_its_reason(tmp_path, codec):
    librispeech(tmp_path)
    chapter = tmp_path / "LibriSpeech" / "train-clean-100" / "19" / "198"
    (chapter / "19-198-0000.flac").unlink()
    noise(chapter / "19-198-0009.flac")
    (tmp_path / "LibriSpeech" / "train-clean-100" / "loop").symlink_to(tmp_path / "LibriSpeech")
    found = opened("librispeech", tmp_path, OTHER)
    assert len(found) == 21  # both are listed; the link back up adds nothing
    with pytest.raises(DataError, match=r"1 of 21 .*0009 has no text"):
        encoded(tmp_path, codec, found, TEXTS)
    with pytest.raises(DataError, match=r"1 of 20 .*0000\.flac does not exist"):
        encoded(tmp_path, codec, [u for u in found if u.text], TEXTS)


def test_a_task_takes_its_own_corpora_and_results_tell_their_parts(tmp_path, codec):
    """The paper's mixture: recognition from LibriSpeech, speech from LibriTTS, by count."""
    libritts(librispeech(tmp_path))
    cfg = load_config(None, [
        "data.corpus=librispeech+libritts", f"data.folder={tmp_path}", SPLITS,
        "data.tasks={asr: [librispeech], tts: [libritts]}", "train.tasks={asr: 1, tts: 1}",
    ])  # fmt: skip
    dataset = encoded(tmp_path, codec, open_corpus(cfg), TEXTS)
    assert dataset.info["fingerprint"]["corpus_folder"] == "librispeech+libritts"
    steps = BatchSchedule(dataset, "train", {"asr": 1.0, "tts": 1.0}, 400, 1, 0, 0.0, corpora=cfg.data.tasks)
    examples = [e for step in range(steps.epoch_length(0)) for e in steps.examples(step)]
    taken = {
        task: {dataset.splits["train"][r]["subset"] for r, t in examples if t == task}
        for task in ("asr", "tts")
    }
    assert taken == {"asr": {"librispeech/train-clean-100"}, "tts": {"libritts/train-clean-100"}}
    assert sum(task == "asr" for _, task in examples) == 8
    assert sum(task == "tts" for _, task in examples) == 2
    assert {r["subset"] for r in chosen_rows(dataset, cfg, "tts")} == {"libritts/test-clean"}
    rows = [dataset.splits["test"][i] for i in range(len(dataset.splits["test"]))]
    parts = by_column("subset", [(row, WordErrors(1, 4)) for row in rows])
    assert parts["librispeech/test-clean"] == {"wer": 0.25, "errors": 4, "words": 16, "utterances": 4}
    assert by_column("subset", [(rows[0], WordErrors(1, 4))]) == {}
    with pytest.raises(ConfigError, match=r"no utterance of split train has speech and text"):
        BatchSchedule(dataset, "train", {"asr": 1.0}, 400, 1, 0, 0.0, corpora={"asr": ["librilight"]})


def librilight(root: Path) -> Path:
    for speaker in ("12", "28", "37", "41"):
        folder = root / "small" / speaker / "book"
        noise(folder / "chapter_01.flac", 6.0)
        voiced = [[0.1, 0.9], [1.0, 1.8], [2.5, 5.5]]
        (folder / "chapter_01.json").write_text(
            json.dumps({"speaker": speaker, "voice_activity": voiced}), encoding="utf-8"
        )
    return root


def test_librilight_is_cut_into_runs_of_speech_without_cutting_a_file(tmp_path, codec):
    librilight(tmp_path)
    where = ("librilight", tmp_path, "data.max_seconds=2", "data.dev=1", "data.test=1")
    found = opened(*where)
    assert {u.split for u in found} == {"train", "dev", "test"}
    own = [(u.start, u.seconds) for u in found if u.speaker == found[0].speaker]
    assert own == [(0.1, 1.7), (2.5, 2.0), (4.5, 1.0)]  # joined, and cut where it is longer than two seconds
    assert len({u.split for u in found if u.speaker == "12"}) == 1  # whole speakers are held out
    whole, _ = sf.read(found[0].audio, dtype="float32")
    assert np.array_equal(found[0].wave(16000).numpy(), whole[1600 : 1600 + 27200])
    dataset = encoded(tmp_path, codec, found, ["a b"])
    assert all(row["text"] == "" and row["ids"] == [] and row["codes"] for row in dataset.splits["train"])
    steps = BatchSchedule(dataset, "train", {"speech": 1.0}, 400, 1, 0, 0.0)
    assert steps.batch(0, 0, {"speech": 3}).total["speech"] > 0
    assert measure_statistics(dataset).ratio == {}
    with pytest.raises(ConfigError, match="no utterance of split train has text"):
        BatchSchedule(dataset, "train", {"text": 1.0}, 400, 1, 0, 0.0)
    (tmp_path / "small" / "12" / "book" / "chapter_01.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="voice_activity"):
        opened(*where)


def test_librilight_speech_may_end_a_rounding_after_its_recording(tmp_path, codec):
    librilight(tmp_path)
    for statistics in tmp_path.rglob("*.json"):
        statistics.write_text(json.dumps({"voice_activity": [[0.1, 1.0], [4.5, 6.025]]}), encoding="utf-8")
    where = ("librilight", tmp_path, "data.dev=1", "data.test=1")
    assert encoded(tmp_path, codec, opened(*where, "data.max_seconds=2"), ["a b"]).info["skipped"] == 0
    voiced = [[2.25, 3], [0, 1], [1.5, 2], [3.5, 7.5]]  # the second and third are two seconds together
    for statistics in (tmp_path / "small").rglob("*.json"):
        statistics.write_text(json.dumps({"voice_activity": voiced}), encoding="utf-8")
    found = opened(*where, "data.max_seconds=2")
    own = [(u.start, u.seconds) for u in found if u.audio == found[0].audio]
    assert own == [(0, 2), (2.25, 0.75), (3.5, 2), (5.5, 2)]
    for wrong in ([[0.1, float("nan")]], [[2, 1]], [[-1, 1]]):
        statistics.write_text(json.dumps({"voice_activity": wrong}), encoding="utf-8")
        with pytest.raises(DataError, match="not an interval"):
            opened(*where)


def test_libritts_is_read_with_its_quotes_dashes_and_asides(tmp_path):
    libritts(tmp_path)
    said = "\"It wasn't,\" said he -- 'twas (he thought) the boys' dog; 'no'! [Then--]"
    for file in tmp_path.rglob("*.normalized.txt"):
        file.write_text(said, encoding="utf-8")
    found = opened("libritts", tmp_path, SPLITS)
    assert {u.text for u in found} == {"it wasn't said he 'twas he thought the boys' dog no then"}


def test_text_alone_is_books_held_out_whole_or_the_lines_of_the_lm_corpus(tmp_path, codec):
    for i in range(4):
        (tmp_path / f"book{i}.txt").write_text(
            f"It was book {'abcd'[i]}. Nothing else!\n\nIn 1665 it rained.", encoding="utf-8"
        )
    where = ("text", tmp_path, "data.dev=1", "data.test=1")
    found = opened(*where)
    assert len(found) == 8
    assert len({u.split for u in found if u.speaker == "book0"}) == 1
    dataset = encoded(tmp_path, codec, found, (u.text for u in found))
    assert all(row["seconds"] == 0 and row["codes"] == [] and row["ids"] for row in dataset.splits["train"])
    steps = BatchSchedule(dataset, "train", {"text": 1.0}, 100, 1, 0, 0.0)
    assert steps.batch(0, 0, {"text": 1}).total["text"] > 0
    assert measure_statistics(dataset).rates["text"] > 0
    with gzip.open(tmp_path / "librispeech-lm-norm.txt.gz", "wt", encoding="utf-8") as lines:
        lines.write("A\n" * 3 + "THE END\n\n" + "B C\n" * 6)
    found = opened(*where)
    assert len(found) == 10
    assert "the end" in {u.text for u in found}


def test_passages_are_the_words_of_a_book_in_order_and_of_the_given_length(tmp_path):
    words = [" ".join(f"{x}{y}" for y in "abcdefghij") for x in "klmnopqrstuvwx"]
    for book in "abcd":
        (tmp_path / f"{book}.txt").write_text(". ".join(words) + f". End of book {book}.", encoding="utf-8")
    found = opened("text", tmp_path, "data.dev=1", "data.test=1", "data.passages=[3, 7]")
    for book in "abcd":
        texts = [u.text.split() for u in found if u.speaker == book]
        flow = (" ".join(words) + f" end of book {book}").split()
        assert {len(text) for text in texts} == {3, 4, 5, 6, 7}
        joined = [word for text in texts for word in text]
        assert joined == flow[: len(joined)]
        assert len(flow) - len(joined) < 7
    with pytest.raises(ConfigError, match="fewest and the most"):
        opened("text", tmp_path, "data.passages=[7, 3]")


def listed(file: Path, lines: list[str]) -> list[Utterance]:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return opened("manifest", file, "data.dev=1", "data.test=1")


def test_a_manifest_of_ones_own_in_both_formats(tmp_path):
    splits = ("train", "dev", "test")
    for split in splits:
        noise(tmp_path / "audio" / f"{split}.wav")
    rows = [{"id": s, "audio": f"audio/{s}.wav", "text": "So it IS!", "split": s} for s in splits]
    tsv = listed(tmp_path / "a.tsv", ["\t".join(row) for row in (rows[0], *(r.values() for r in rows))])
    assert tsv == listed(tmp_path / "a.jsonl", [json.dumps(row) for row in rows])
    assert [(u.id, u.split, u.text) for u in tsv] == [(s, s, "so it is") for s in splits]
    assert all(len(u.wave(16000)) for u in tsv)
    # Without splits, some are held out; the same ones every time.
    lines = ["audio\ttext", *(f"audio/{i}.wav\tso it is" for i in range(9))]
    one, two = (listed(tmp_path / "b.tsv", lines) for _ in range(2))
    assert one == two
    assert sorted(u.split for u in one) == ["dev", "test", *["train"] * 7]


def test_a_piece_beyond_the_end_and_a_wrong_header_are_refused(tmp_path):
    noise(tmp_path / "a.flac", 1.0)
    beyond = Utterance("a", str(tmp_path / "a.flac"), "x", "x", "train", start=0.5, seconds=0.8)
    with pytest.raises(DataError, match=r"ends 0\.30 s before the end of the segment"):
        beyond.wave(16000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    truncated = tmp_path / "b.flac"
    truncated.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"b\.flac"):
        Utterance("b", str(truncated), "x", "x", "train").wave(16000)
    data[18:21] = b"\x00\x00\x00"  # a FLAC's sample rate, 20 bits
    (tmp_path / "c.flac").write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"c\.flac"):
        Utterance("c", str(tmp_path / "c.flac"), "x", "x", "train").wave(16000)


def test_takes_of_the_same_sentences_in_other_folders_are_another_store():
    def take(folder: str, subset: str) -> list[Utterance]:
        return [Utterance("a", f"/here/{folder}/a.wav", "x", "s", "train", subset)]

    assert listing_hash(take("clean", "manifest/train")) != listing_hash(take("noisy", "manifest/train"))
    assert listing_hash(take("spoken-1/train", "spoken/train")) == listing_hash(take("spoken-2/train", ""))


def test_holding_out_takes_whole_speakers_and_leaves_something_to_train_on():
    found = [Utterance(f"{s}-{i}", "a", "x", s, "") for s in "abcdefgh" for i in range(5)]
    split = {u.id: u.split for u in hold_out(found, 4, 6, seed=1)}
    speakers = {s: {split[f"{s}-{i}"] for i in range(5)} for s in "abcdefgh"}
    assert all(len(of) == 1 for of in speakers.values())
    assert sorted(next(iter(of)) for of in speakers.values()) == ["dev", "test", "test", *["train"] * 5]
    alone = [Utterance(str(i), "a", "x", f"speaker {i}", "") for i in range(100)]
    assert Counter(u.split for u in hold_out(alone, 5, 10, seed=1)) == {"train": 85, "dev": 5, "test": 10}
    with pytest.raises(DataError, match="all go to"):
        hold_out(found[:10], 5, 20, seed=1)


def test_no_speech_of_librilight_is_lost_where_intervals_overlap(tmp_path):
    librilight(tmp_path)
    for statistics in tmp_path.rglob("*.json"):
        voiced = [[0.0, 4.0], [1.0, 1.5], [4.5, 5.0]]
        statistics.write_text(json.dumps({"voice_activity": voiced}), encoding="utf-8")
    found = opened("librilight", tmp_path, "data.dev=1", "data.test=1", "data.max_seconds=4")
    assert {(u.start, u.seconds) for u in found} == {(0.0, 4.0), (4.5, 0.5)}
