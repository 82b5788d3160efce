"""Manifests and batches of prompts: a cell keeps its type, and no column is dropped in silence."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from zipper.corpora.lists import read_list
from zipper.corpora.table import MISNOMERS, read_table
from zipper.corpora.utterance import Utterance
from zipper.data.skipped import check_raw
from zipper.disk import file_name
from zipper.errors import ConfigError, DataError
from zipper.evaluation import codec as evaluate_codec
from zipper.evaluation import samples
from zipper.generation.batch_file import read_batch
from zipper.generation.generate import GenerationOutput
from zipper.generation.zipper import Zipper
from zipper.modalities.asr_scorer import SCORER_RATE
from zipper.modalities.speech_scorer import recording
from zipper.modalities.text import Text

RATE = 16_000


def jsonl(file: Path, *rows: object) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def listed(file: Path, **cells: object) -> list[Utterance]:
    """A manifest of three lines, one a split, of which the second has these cells."""
    rows: list[dict[str, object]] = [
        {"id": one, "audio": "a.wav", "text": "so it is", "split": one} for one in ("train", "dev", "test")
    ]
    rows[1] |= cells
    return read_list(jsonl(file, *rows), 1, 1, 0)


@pytest.mark.parametrize("column", ["text", "audio", "id", "speaker", "split", "subset"])
@pytest.mark.parametrize("cell", [["so", "it"], {"en": "so"}, True, False, 1.5, float("inf")])
def test_a_cell_of_another_type_is_refused_with_its_line(tmp_path, column, cell):
    with pytest.raises(DataError, match=rf"m\.jsonl, line 2: {column}=.* is not a string"):
        listed(tmp_path / "m.jsonl", **{column: cell})


def test_whole_numbers_are_ids_and_no_text(tmp_path):
    assert listed(tmp_path / "m.jsonl", id=7, speaker=2**70)[1].id == "7"
    with pytest.raises(DataError, match="line 2: text=7 is not a string"):
        listed(tmp_path / "m.jsonl", text=7)


@pytest.mark.parametrize("nothing", [None, float("nan"), ""])
def test_null_and_nan_are_missing(tmp_path, nothing):
    found = listed(tmp_path / "m.jsonl", text=nothing, id=nothing, start=nothing, speaker=nothing)
    assert (found[1].text, found[1].id, found[1].start) == ("", "a", 0.0)
    with pytest.raises(DataError, match="has no text"):
        check_raw(found[1], Text(None))
    with pytest.raises(ConfigError, match=r"b\.jsonl, line 1: needs a unique id"):
        read_batch(jsonl(tmp_path / "b.jsonl", {"id": nothing, "text": "so it is"}))


@pytest.mark.parametrize(
    "name", [*MISNOMERS, "Audio", "TEXT", " text", "texts", "start_time", "end_ms", "length"]
)
def test_a_column_by_another_name_is_refused_and_its_own_is_named(tmp_path, name):
    for other in ("audio", "text"):
        if MISNOMERS.get(name, name.strip().lower().rstrip("s")) == other:
            continue
        (tmp_path / "m.tsv").write_text(f"{other}\t{name}\nso\tso\n", encoding="utf-8")
        for file in (tmp_path / "m.tsv", jsonl(tmp_path / "m.jsonl", {other: "so", name: "so"})):
            with pytest.raises(DataError, match=r"line 1: the column .* is unknown\. Did you mean "):
                read_table(file)


@pytest.mark.parametrize("audio", [".", "..", "/", "./", "a/..", "a\tb.wav", "a\nb.wav"])
def test_an_audio_path_that_can_name_no_file_or_no_line_is_refused(tmp_path, audio):
    with pytest.raises(DataError, match=r"m\.jsonl, line 2: audio=.* is not a file name\. Name a file"):
        listed(tmp_path / "m.jsonl", audio=audio)
    with pytest.raises(ConfigError, match=r"b\.jsonl, line 1: audio=.* is not a file name\. Name a file"):
        read_batch(jsonl(tmp_path / "b.jsonl", {"id": "x", "audio": audio}))


@pytest.mark.parametrize("name", ["idx", "ids", "uid", "tex", "edit", "index"])
def test_a_column_that_is_merely_like_another_is_passed_over(tmp_path, name):
    (line,) = read_table(jsonl(tmp_path / "m.jsonl", {name: 0, "audio": "a.wav", "text": "so"}))
    assert line.text("audio") == "a.wav"
    with pytest.raises(DataError, match="Did you mean speaker"):
        read_table(jsonl(tmp_path / "m.jsonl", {"speakr": "s", "audio": "a.wav"}))


def test_other_columns_are_said_to_be_unread(tmp_path, capsys):
    file = jsonl(tmp_path / "m.jsonl", {"audio": "a.wav", "text": "so", "gender": "f", "path": "b.wav"})
    assert len(read_table(file)) == 1
    assert capsys.readouterr().out == f"{file}: columns not used: gender, path\n"
    (tmp_path / "n.tsv").write_text("audio\ttext\ttext\na\tb\tc\n", encoding="utf-8")
    (tmp_path / "n.jsonl").write_text('{"audio": "a", "text": "b", "text": "c"}\n', encoding="utf-8")
    for name in ("n.tsv", "n.jsonl"):
        with pytest.raises(DataError, match="the column 'text' occurs twice"):
            read_table(tmp_path / name)


PIECES = [
    ({"start": 0.5, "end": 0.75}, 0.5, 0.25), ({"offset": 0.5, "duration": 0.25}, 0.5, 0.25),
    ({"start": "0.5", "duration": 0.25}, 0.5, 0.25), ({"offset": 0.5}, 0.5, None), ({"end": 0.25}, 0.0, 0.25),
    ({"duration": 1}, 0.0, 1.0), ({"offset": None, "duration": 0.25}, 0.0, 0.25), ({}, 0.0, None),
]  # fmt: skip


@pytest.mark.parametrize(("times", "start", "seconds"), PIECES, ids=[str(p[0]) for p in PIECES])
def test_pieces_of_recordings_are_taken_in_corpora_and_batches(tmp_path, times, start, seconds):
    wave = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    sf.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    found = listed(tmp_path / "m.jsonl", **times)[1]
    stop = None if seconds is None else round((start + seconds) * RATE)
    assert (found.start, found.seconds) == (start, seconds)
    assert np.array_equal(found.wave(RATE).numpy(), wave[round(start * RATE) : stop])
    row = {"id": "x", "audio": found.audio, "start": start, "seconds": len(found.wave(RATE)) / RATE}
    assert np.array_equal(recording(row).numpy(), found.wave(SCORER_RATE).numpy())
    (asked,) = read_batch(jsonl(tmp_path / "b.jsonl", {"id": "x", "audio": "a.wav", **times}))
    assert (asked.modality, asked.raw) == ("speech", str(tmp_path / "a.wav"))  # beside the file
    assert asked.piece == (start, seconds)


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        ({"start": 1, "offset": 1}, "offset=1 and start=1 define the same value"),
        ({"end": 1, "duration": 1}, "duration=1 and end=1 define the same value"),
        ({"start": 1, "end": 1}, "is empty"),
        ({"start": 2, "end": 1}, "is empty"),
        ({"duration": 0}, "is empty"),
        ({"start": -1}, "start=-1 is not a number of seconds"),
        ({"start": "one"}, "start=.one. is not a number of seconds"),
        ({"duration": True}, "duration=true is not a number of seconds"),
        ({"duration": [1]}, "is not a number of seconds"),
        ({"start": 1e307}, "start=1e.307 is not a number of seconds from 0 to 1e.09"),
        ({"end": float("inf")}, "end=Infinity is not a number of seconds"),
    ],
)
def test_times_that_give_no_piece_are_refused_with_their_line(tmp_path, times, reason):
    with pytest.raises(DataError, match=f"line 2: .*{reason}"):
        listed(tmp_path / "m.jsonl", **times)
    with pytest.raises(ConfigError, match=f"line 1: .*{reason}"):
        read_batch(jsonl(tmp_path / "b.jsonl", {"id": "x", "audio": "a.wav", **times}))


def test_pieces_of_one_recording_have_ids_of_their_own_and_one_speaker(tmp_path):
    rows = [{"audio": "a.wav", "text": "so", "start": i, "end": i + 1} for i in range(3)]
    found = read_list(
        jsonl(tmp_path / "m.jsonl", *rows, *({"audio": f"{i}.wav", "text": "so"} for i in "bcd")), 1, 1, 0
    )
    assert len({u.id for u in found}) == 6
    assert len({u.speaker for u in found if u.audio and u.audio.endswith("a.wav")}) == 1
    whole = read_list(
        jsonl(tmp_path / "m.jsonl", *({"audio": f"{i}.wav", "duration": 1} for i in "abc")), 1, 1, 0
    )
    assert [u.id for u in whole] == ["a", "b", "c"]  # of recordings whose length is listed
    rows = [{"audio": "a.wav", "text": "so", "end": end} for end in (1, 2, None)]  # overlapping
    names = [u.id for u in read_list(jsonl(tmp_path / "m.jsonl", *rows), 1, 1, 0)]
    assert names == ["a-0000000-0000100", "a-0000000-0000200", "a"]
    # A whole recording and a piece of it, with ids and without speakers, are never in two splits.
    rows = [
        {"id": f"{kind}{i}", "audio": f"{i}.wav", "text": "so", "end": end}
        for i in range(10) for kind, end in (("piece", 2), ("whole", None))
    ]  # fmt: skip
    found = read_list(jsonl(tmp_path / "m.jsonl", *rows), 4, 4, 0)
    splits = {u.audio: {one.split for one in found if one.audio == u.audio} for u in found}
    assert len(splits) == 10
    assert all(len(several) == 1 for several in splits.values())


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl"])
def test_a_batch_is_read_as_a_manifest_is(tmp_path, suffix):
    """A byte-order mark, what does not end a line, fields too long for the csv module, empty lines."""
    texts = ["so\u2028it\u0085is\x0bso", "so " * 50_000, 'she said "so']
    file = tmp_path / f"b{suffix}"
    if suffix == ".tsv":
        lines = ["id\ttext", *(f"{i}\t{text}" for i, text in enumerate(texts))]
    else:
        lines = [json.dumps({"id": str(i), "text": text}, ensure_ascii=False) for i, text in enumerate(texts)]
    file.write_text("\ufeff" + "\r\n".join(lines) + "\r\n\r\n", encoding="utf-8", newline="")
    assert [(one.id, one.modality, one.raw) for one in read_batch(file)] == [
        (str(i), "text", text) for i, text in enumerate(texts)
    ]
    assert [line.text("text") for line in read_table(file)] == texts


def test_a_table_that_names_neither_audio_nor_text_lists_nothing(tmp_path):
    with pytest.raises(DataError, match="no line has audio or text"):
        read_list(jsonl(tmp_path / "m.jsonl", {"id": "a"}, {"id": "b"}), 1, 1, 0)


NAMES = [
    "/etc/passwd", "../../x", "..", ".", "", ".hidden", "a/b", "a\\b", "a\0b", "a\nb", "a:b", "a ", "x" * 999,
    "é" * 99,
]  # fmt: skip


def test_every_id_makes_a_name_that_stays_in_its_folder_and_is_its_own(tmp_path):
    made = {file_name(name) for name in [*NAMES, *(f"{'x' * 300}{i}" for i in range(9))]}
    assert len(made) == len(NAMES) + 9
    for name in made:
        (tmp_path / f"{name}-target.wav").touch()
        assert (tmp_path / f"{name}-target.wav").resolve().parent == tmp_path.resolve()
    for name in ("train-00001", "19-198-0000", "a b", "é", "a.2"):
        assert file_name(name) == name


@pytest.mark.parametrize("name", [n for n in NAMES if n] + ["a.b"])
def test_an_id_of_a_batch_that_is_no_safe_name_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=r"line 1: (needs a unique id|id=)"):
        read_batch(jsonl(tmp_path / "b.jsonl", {"id": name, "text": "so"}))


@pytest.mark.parametrize("text", ["a <PERIOD>", "AT&T", "½ cup", "привет", "five %"])
def test_generate_refuses_the_texts_that_corpora_refuse(trained, text):
    model = Zipper.from_pretrained(trained.run_dir)
    with pytest.raises(ConfigError, match=r"has (a tag|the sign|digits|the letter)"):
        model.encode("text", text)


def test_samples_of_any_id_stay_in_their_folder(listening, dataset, codec, monkeypatch, in_tmp):
    drawn = []
    for module in (samples, evaluate_codec):
        monkeypatch.setattr(module, "spectrograms", lambda *given: drawn.append(Path(given[-1])))
    codes = dataset.modalities["speech"].content(dataset.splits["test"][0])
    segment = GenerationOutput("speech", codes.T, codes, "stop")
    for name in ("/a", str(in_tmp / "clips" / "x"), "../../x", "a/b"):
        entry = {"id": name, "reference": "so", "hypothesis": "so"}
        rows = [dataset.splits["test"][0]]
        samples.write_samples(Path("run/samples"), 8, dataset.modalities["speech"], rows, [entry], [segment])
        said = [Utterance(name, "a.wav", "so", "s", "test")]
        evaluate_codec.write_samples(Path("run/codec"), codec, said, [codec.decode(codes)], [codes])
    made = [file for file in in_tmp.rglob("*") if file.is_file()]
    assert {file.parent for file in [*made, *(file.absolute() for file in drawn)]} == {
        in_tmp / "run/samples", in_tmp / "run/codec",
    }  # fmt: skip
    assert len(made) == 4 * (2 + 1 + codec.codebooks)
