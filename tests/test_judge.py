"""The judge and the codec's table, with a stand-in for Whisper; and speed measurements that add up."""

import json
from pathlib import Path

import pytest
import torch

from conftest import config
from zipper.bench.speed import loader, take_turns, zipper_against_towers
from zipper.data.order import Steps
from zipper.errors import ConfigError
from zipper.evaluate import codec as codec_module
from zipper.evaluate import judge as judge_module
from zipper.evaluate.codec import evaluate_codec, table
from zipper.evaluate.judge import Judge, load_judge
from zipper.evaluate.wer import word_errors
from zipper.schema import JudgeConfig, RunConfig
from zipper.train.resolve import resolve


class DeafJudge(Judge):
    """Hears the first utterance right, and nothing of the others."""

    def transcribe(self, wave):
        self.calls.append(len(wave))
        return self.texts[0] if len(self.calls) % len(self.texts) == 1 else ""

    def errors(self, reference, heard):
        return word_errors(reference, heard)


def test_the_codecs_table_adds_up_and_leaves_samples(in_tmp, utterances, codec, monkeypatch):
    test = [u for u in utterances if u.split == "test"]
    judge = DeafJudge(None, str, "deaf")
    object.__setattr__(judge, "calls", [])
    object.__setattr__(judge, "texts", [u.text for u in test])
    monkeypatch.setattr(codec_module, "load_judge", lambda cfg: judge)
    monkeypatch.setattr(codec_module, "load_codec", lambda cfg: codec)
    monkeypatch.setattr(codec_module, "open_corpus", lambda cfg: utterances)
    cfg = RunConfig(name="table", result="out.json")
    result = evaluate_codec(cfg, "x")
    assert json.loads((in_tmp / "out.json").read_text())["rows"] == result["rows"]
    assert [row["codebooks"] for row in result["rows"]] == [None, 3, 2, 1]
    words = sum(len(u.text.split()) for u in test)
    for row in result["rows"]:
        assert row["words"] == words
        assert row["errors"] == words - len(test[0].text.split())
    assert [row["bits_per_second"] for row in result["rows"][1:]] == [300.0, 200.0, 100.0]
    assert judge.calls[: len(test)] == judge.calls[len(test) : 2 * len(test)]  # a round trip keeps the length
    samples = {file.name for file in Path("build/codecs/table/samples").iterdir()}
    assert {f"{test[0].id}.png", f"{test[0].id}-original.flac", f"{test[0].id}-1-codebooks.flac"} <= samples
    assert "3 codebooks" in table(result)
    with pytest.raises(ConfigError, match="finished evaluation"):
        evaluate_codec(cfg, "x")


def test_a_judge_without_its_packages_says_what_to_install(monkeypatch):
    monkeypatch.setattr(judge_module, "find_spec", lambda module: None if "whisper" in module else object())
    with pytest.raises(ConfigError, match=r"faster-whisper, whisper-normalizer.*make setup-judge"):
        load_judge(JudgeConfig())


def test_turns_are_taken_and_the_median_counts():
    order: list[str] = []
    a, b = take_turns(lambda turn: order.append("a"), lambda turn: order.append("b"))
    assert order[:4] == ["a", "b", "a", "b"]
    assert a >= 0
    assert b >= 0


def test_speed_is_measured_on_the_configs_own_batches(store):
    cfg = resolve(config(), store)
    steps = Steps(store, "train", {"asr": 1.0}, 200, 1, 0, 0.0)
    books = {"text": 1, "speech": 3}
    batches = [steps.batch(step, 0, books) for step in range(2)]
    figures = zipper_against_towers(cfg, store, batches)
    valid = sum(int(s.valid.sum()) for batch in batches for s in batch.streams.values())
    assert figures["units_a_step"] == valid / 2
    assert 0 < figures["parameters_trained"] < figures["parameters"]
    waiting = loader(cfg, store, steps, books, figures["seconds_a_step"])
    assert 0 <= waiting["padding_share"] < 1
    assert waiting["data_wait_share"] == pytest.approx(
        waiting["seconds_a_batch"] / (waiting["seconds_a_batch"] + figures["seconds_a_step"]), abs=0.02
    )
    assert torch.is_grad_enabled()
