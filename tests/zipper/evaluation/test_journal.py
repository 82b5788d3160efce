"""An evaluation that was cut off goes on where it was, and gives the same files."""

from pathlib import Path

import pytest

from broken_runs import Killed
from conftest import JOINT, config
from zipper.errors import ConfigError
from zipper.evaluation.journal import Journal, read_pieces
from zipper.evaluation.result_file import read_result
from zipper.evaluation.run import evaluate_run
from zipper.generation import rows as generation_rows
from zipper.modalities.asr_scorer import AsrScorer
from zipper.training import run as run_module

pytestmark = pytest.mark.slow


def dies_at(monkeypatch, owner, name: str, times: int) -> list[int]:
    """The `times`-th call of a function is the last one. Returns the calls so far."""
    real, calls = getattr(owner, name), [0]

    def counted(*args, **kwargs):
        calls[0] += 1
        if calls[0] == times:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls


WORDS = [
    *JOINT, "evaluate.batch=2", "evaluate.dev_utterances=2", "evaluate.dev_spoken=1", "train.steps=3",
    "evaluate.samplings=2", "decode.speech.temperature=0.8", "evaluate.audio_samples=1",
]  # fmt: skip


def without_seconds(file: Path) -> dict:
    return {k: v for k, v in read_result(file).items() if "seconds" not in k and k != "command"}


def test_evaluations_cut_off_anywhere_give_the_same_files(listening, monkeypatch):
    """In the decoding of a batch (3 of recognition, 3 of its control, 6 of speech), or in the judging of a
    sentence."""
    cfg = config(*WORDS)
    run_module.train(cfg, "x")
    with monkeypatch.context() as watch:
        batches = dies_at(watch, generation_rows, "generate", 10**9)
        evaluate_run(cfg, "x")
        assert batches == [3 + 3 + 2 * 3]
    for turn, (owner, name, times) in enumerate(
        [*((generation_rows, "generate", times) for times in (1, 5, 12)),
         (AsrScorer, "transcribe_wave", 3), (AsrScorer, "transcribe_wave", 10)],
        start=2,
    ):  # fmt: skip
        with monkeypatch.context() as killing:
            dies_at(killing, owner, name, times)
            with pytest.raises(Killed):
                evaluate_run(cfg, "x")
        assert not list(cfg.run_dir.glob(f"*-test-{turn}.json"))
        with monkeypatch.context() as watch:
            batches = dies_at(watch, generation_rows, "generate", 10**9)
            evaluate_run(cfg, "x")
        left = 12 - (times - 1) if name == "generate" else {3: 3, 10: 0}[times]
        assert batches == [left], (name, times)
        for task in ("asr", "tts"):
            again, first = (cfg.run_dir / f"{task}-test{of}.json" for of in (f"-{turn}", ""))
            assert without_seconds(again) == without_seconds(first)
            assert again.with_suffix(".tsv").read_bytes() == first.with_suffix(".tsv").read_bytes()
    assert not list(cfg.run_dir.glob(".evaluating*"))


def test_a_training_cut_off_in_its_evaluation_does_not_decode_again(listening, monkeypatch):
    with monkeypatch.context() as killing:
        # Of the first sampling, after 3 of dev and 12 recordings.
        dies_at(killing, AsrScorer, "transcribe_wave", 18)
        with pytest.raises(Killed):
            run_module.train(config(*WORDS), "x")
    with monkeypatch.context() as watch:
        batches = dies_at(watch, generation_rows, "generate", 10**9)
        run_module.train(config(*WORDS), "x")
    assert batches == [3]  # of the second sampling


def test_another_decoding_does_not_take_up_what_was_left(listening, monkeypatch):
    cfg = config(*WORDS)
    run_module.train(cfg, "x")
    with monkeypatch.context() as killing:
        dies_at(killing, generation_rows, "generate", 5)
        with pytest.raises(Killed):
            evaluate_run(cfg, "x")
    evaluate_run(config(*WORDS, "decode.text.beams=2"), "x")
    assert not (cfg.run_dir / "asr-test.json").exists()
    assert (cfg.run_dir / "asr-test-2.json").exists()
    evaluate_run(cfg, "x")
    assert (cfg.run_dir / "asr-test.json").exists()


def test_a_journal_cut_at_any_byte_holds_the_pieces_before(tmp_path):
    work = {"what": "ünïcode", "seed": 0}
    journal = Journal(tmp_path / "whole", work)
    for i in range(5):
        journal.add(f"piece {i}", [i, "ß" * i])
    journal.lines.close()
    content = (tmp_path / "whole").read_bytes()
    for length in range(len(content) + 1):
        file = tmp_path / "cut"
        file.write_bytes(content[:length])
        journal = Journal(file, work)
        whole = max(content[:length].count(b"\n") - 1, 0)
        assert journal.pieces == {f"piece {i}": [i, "ß" * i] for i in range(whole)}
        for i in range(whole, 5):
            journal.add(f"piece {i}", [i, "ß" * i])
        journal.lines.close()
        assert file.read_bytes() == content
    journal = Journal(file, {**work, "seed": 1})
    assert journal.pieces == {}
    with pytest.raises(ConfigError, match=r"cut: another process runs the same evaluation"):
        Journal(file, work)
    journal.done()
    assert read_pieces(file) == ([], 0)
