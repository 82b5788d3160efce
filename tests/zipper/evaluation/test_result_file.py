"""A result is written as two files, and read back from them, or from one of before."""

import json
import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_compare import result

from zipper.errors import DataError
from zipper.evaluation.result import error_rate, finish_reasons
from zipper.evaluation.result_archive import ARCHIVE, pack, result_files
from zipper.evaluation.result_file import read_result, utterances_file, write_result
from zipper.modalities.scoring import WordErrors

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
UTTERANCES = st.fixed_dictionaries(
    {"id": st.text(), "errors": st.integers(), "words": st.integers(), "reference": st.text()},
    optional={"hypothesis": st.text(), "seconds": st.floats(allow_nan=False)},
)
RESULTS = st.builds(
    lambda rest, rows: {**rest, "utterances": len(rows), "per_utterance": rows},
    st.dictionaries(st.text(), VALUES, max_size=5),
    st.lists(UTTERANCES, min_size=1, max_size=5),
)


@given(RESULTS)
def test_what_is_written_is_read_again_as_it_is_from_a_file_of_before(tmp_path_factory, one):
    folder = tmp_path_factory.mktemp("results")
    new, copy, old = (folder / name for name in ("new.json", "copy/x.y", "old.json"))
    write_result(one, new, copy)
    old.write_text(json.dumps(one, indent=1) + "\n", encoding="utf-8")
    rest = {key: value for key, value in one.items() if key != "per_utterance"}
    for file in (new, copy, old):
        assert read_result(file) == one
        assert read_result(file, utterances=False) == rest
    made = {file.name for file in folder.iterdir()}
    assert made == {"new.json", "new.utterances.jsonl.xz", "copy", "old.json"}
    assert new.read_text(encoding="utf-8").count("\n") == len(rest) + 2  # a key a line


@pytest.mark.parametrize("rows", [[5], {"id": "x"}, "x"], ids=str)
def test_utterances_that_are_none_are_refused(tmp_path, rows):
    (tmp_path / "x.json").write_text(json.dumps({"name": "x", "per_utterance": rows}), encoding="utf-8")
    with pytest.raises(DataError, match=r"x\.json: its per_utterance is no list of utterances"):
        read_result(tmp_path / "x.json")


def test_finish_reasons_are_read_by_their_older_names(tmp_path):
    rows = [
        {**row, "stopped": reason}
        for row, reason in zip(result([1] * 3, [4] * 3)["per_utterance"], ("end", "cap", "loop"), strict=True)
    ]
    write_result(
        {**result([1] * 3, [4] * 3), "stopped": {"end": 1, "cap": 1, "loop": 1}, "per_utterance": rows},
        tmp_path / "a.json",
    )
    read = read_result(tmp_path / "a.json")
    assert read["stopped"] == {"stop": 1, "length": 1, "repetition": 1}
    assert [row["stopped"] for row in read["per_utterance"]] == ["stop", "length", "repetition"]


def test_keys_are_read_by_their_older_names(tmp_path):
    old = {"task": "tts", "judge": "w", "oracle_wer": 0.1, "seen": {"a": {"shuffled_exact": 0.5}}}
    write_result({**old, "config": {"judge": {"model": "base"}}}, tmp_path / "a.json")
    assert read_result(tmp_path / "a.json", utterances=False) == {
        "task": "tts", "asr_scorer": "w", "resynthesis_wer": 0.1, "seen": {"a": {"mismatched_exact": 0.5}},
        "config": {"asr_scorer": {"model": "base"}},
    }  # fmt: skip


def test_a_result_without_utterances_removes_those_of_another(tmp_path):
    file = tmp_path / "a.json"
    write_result(result([1], [4]), file)
    write_result({"task": "bench"}, file)
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]
    assert read_result(file, utterances=False) == {"task": "bench"}


def test_what_is_packed_is_read_as_before_and_what_is_written_later_wins(tmp_path):
    results = {tmp_path / f"{name}.json": result([at, 0, 2], [4, 3, 5]) for at, name in enumerate("abc")}
    for file, one in results.items():
        write_result(one, file)
    pack(tmp_path.glob("*.utterances.jsonl.xz"))
    assert {file.name for file in tmp_path.iterdir()} == {"a.json", "b.json", "c.json", ARCHIVE}
    assert {file: read_result(file) for file in result_files(tmp_path)} == results
    pack(tmp_path.glob("[ab].json"))
    assert {file.name for file in tmp_path.iterdir()} == {"c.json", ARCHIVE}
    assert {file: read_result(file) for file in result_files(tmp_path)} == results
    later = result([3, 3], [4, 4])
    write_result(later, first := tmp_path / "a.json")
    for _ in range(2):
        assert {file: read_result(file) for file in result_files(tmp_path)} == {**results, first: later}
        pack([first, utterances_file(first)] if first.exists() else [])
    assert not first.exists()
    with pytest.raises(DataError, match=r"d\.json does not exist"):
        read_result(tmp_path / "d.json")


def test_a_damaged_archive_is_told_and_is_not_packed_over(tmp_path):
    write_result(result([1, 0, 2], [4, 3, 5]), file := tmp_path / "a.json")
    pack([utterances_file(file)])
    archive = tmp_path / ARCHIVE
    archive.write_bytes(archive.read_bytes()[:-60])
    with pytest.raises(DataError, match="damaged"):
        read_result(file)
    write_result(result([0], [1]), tmp_path / "b.json")
    with pytest.raises(DataError, match="damaged"):
        pack([tmp_path / "b.json"])
    assert (tmp_path / "b.json").is_file()


HARMS = {
    "missing": (lambda _: None, "does not exist"),
    "cut": (lambda whole: whole[:-9], "is damaged"),
    "changed": (lambda whole: whole[:90] + bytes([whole[90] ^ 1]) + whole[91:], "is damaged"),
    "empty": (lambda _: b"", "is damaged"),
    "no json": (lambda _: lzma.compress(b'{"id": \n'), "is damaged"),
    "shorter": (
        lambda whole: lzma.compress(lzma.decompress(whole).rpartition(b"{")[0]),
        "holds 2 utterances, but .* has 3",
    ),
}


@pytest.mark.parametrize(("harm", "says"), HARMS.values(), ids=HARMS)
def test_utterances_that_are_missing_or_damaged_are_told_with_both_files(tmp_path, harm, says):
    written = tmp_path / "a.json"
    write_result(result([1, 0, 2], [4, 3, 5]), written)
    beside = utterances_file(written)
    left = harm(beside.read_bytes())
    beside.unlink()
    if left is not None:
        beside.write_bytes(left)
    with pytest.raises(DataError, match=says) as told:
        read_result(written)
    assert str(written) in str(told.value)
    assert str(beside) in str(told.value)
    assert read_result(written, utterances=False)["task"] == "asr"


def test_wer_is_the_share_of_all_words_and_what_was_cut_is_a_share_of_utterances():
    """One word of one is wrong and none of nine: a tenth, not a half."""
    rate = error_rate([WordErrors(1, 1), WordErrors(0, 9)])
    assert rate == {"wer": 0.1, "errors": 1, "words": 10, "utterances": 2}
    found = finish_reasons(["stop", "length", "length", "repetition"])
    assert (found["share_at_limit"], found["share_repeated"]) == (0.5, 0.25)
