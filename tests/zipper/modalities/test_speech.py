"""Speech out with a perfect ASR scorer: scoring, results, samples, and the facts that cap it."""

import json
import math
import sys
from copy import copy
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import JOINT, config
from zipper.cli import run as command
from zipper.config import AsrScorerConfig, load_config
from zipper.data.statistics import DatasetStatistics, measure_statistics
from zipper.disk import write_atomic
from zipper.errors import ConfigError, DataError
from zipper.evaluation.result import by_length
from zipper.evaluation.result_file import read_result
from zipper.evaluation.run import evaluate_exported, evaluate_run
from zipper.generation.exported import load_trained, save_exported
from zipper.generation.generate import GenerationOutput
from zipper.modalities.asr_scorer import AsrScorer, load_asr_scorer
from zipper.modalities.delay import to_timesteps
from zipper.modalities.scoring import Score, WordErrors, capped_rate, total_errors, word_errors
from zipper.modalities.speech import PERIODS, Speech, longest_repeats
from zipper.modalities.speech_scorer import SpeechScore, SpeechScorer, recording
from zipper.models.resolve import resolve
from zipper.training import run as run_module


def gold(dataset, rows) -> list[GenerationOutput]:
    speech = dataset.modalities["speech"]
    contents = [speech.content(row) for row in rows]
    return [
        GenerationOutput("speech", to_timesteps(one, speech.layout.codes), one, "stop") for one in contents
    ]


def test_gold_units_score_no_error_and_planted_ones_are_counted(listening, prepared):
    rows = [prepared.splits["test"][i] for i in range(6)]
    recorded = listening.recordings(rows, prepared.fingerprint)
    assert [one.original for one in recorded] == [one.target for one in recorded] == [r["text"] for r in rows]
    found = listening.score(rows, gold(prepared, rows), prepared.fingerprint)
    assert total_errors(found) == WordErrors(0, sum(len(row["text"].split()) for row in rows))
    assert all(one.target_errors == 0 and one.seconds > 0 for one in found)
    # The second sentence is spoken in the place of the first, and the third is silent.
    written = gold(prepared, rows)
    written[0] = written[1]
    written[2] = replace(written[2], content=torch.zeros(3, 0, dtype=torch.int64))
    found = listening.score(rows, written, prepared.fingerprint)
    expected = word_errors(rows[0]["text"], rows[1]["text"]).errors + len(rows[2]["text"].split())
    assert total_errors(found).errors == sum(one.target_errors for one in found) == expected
    assert (found[2].hypothesis, found[2].seconds) == ("", 0)


def test_recordings_are_heard_once_and_a_lost_one_is_named(listening, prepared):
    rows = [prepared.splits["test"][i] for i in range(4)]
    first = listening.recordings(rows[:2], prepared.fingerprint)
    deaf = replace(listening.asr_scorer, transcribe=lambda wave: "something else")
    again = SpeechScorer(listening.speech, deaf, "build").recordings(rows, prepared.fingerprint)
    assert again[:2] == first
    assert {one.original for one in again[2:]} == {"something else"}
    codec = copy(listening.speech.codec)
    codec.decoder = "trained further"
    other = SpeechScorer(Speech(codec), deaf, "build").recordings(rows[:2], prepared.fingerprint)
    assert {one.target for one in other} == {"something else"}
    for scorer, data in ((replace(deaf, name="another"), prepared.fingerprint), (deaf, "another dataset")):
        other = SpeechScorer(listening.speech, scorer, "build").recordings(rows[:2], data)
        assert {one.original for one in other} == {"something else"}
    lost = [{**rows[0], "id": "lost", "audio": "nowhere.flac"}]
    with pytest.raises(DataError, match=r"Utterance lost: nowhere\.flac does not exist"):
        listening.recordings(lost, prepared.fingerprint)


def test_recordings_and_their_resynthesis_are_told_apart(dataset, in_tmp):
    """A scorer that knows the recordings alone."""
    rows = [dataset.splits["test"][i] for i in range(4)]
    texts = {float(recording(row).square().sum()): row["text"] for row in rows}
    scorer = AsrScorer(lambda wave: texts.get(float(wave.square().sum()), ""), str, "knows recordings")
    found = SpeechScorer(dataset.modalities["speech"], scorer, "build").describe(
        rows, [], dataset.fingerprint
    )
    assert (found["original_wer"], found["resynthesis_wer"]) == (0, 1)


def test_of_two_that_hear_at_once_nothing_is_lost(listening, prepared, monkeypatch):
    """The second one writes while the first is between reading and writing: it waits."""
    rows, generate, others = [prepared.splits["test"][i] for i in range(4)], write_atomic, []
    reached = Event()
    monkeypatch.setattr("builtins.print", lambda *_, **__: reached.set())  # "waiting for it"

    def transcribe_wave(some, asr_scorer=listening.asr_scorer):
        found = SpeechScorer(listening.speech, asr_scorer, "build").recordings(some, prepared.fingerprint)
        reached.set()
        return found

    def at_once(file, content):
        if not others:
            others.append(Thread(target=transcribe_wave, args=(rows[2:],)))
            others[0].start()
            assert reached.wait(60)
        generate(file, content)

    monkeypatch.setattr("zipper.modalities.speech_scorer.write_atomic", at_once)
    transcribe_wave(rows[:2])
    others[0].join()
    deaf = replace(listening.asr_scorer, transcribe=lambda wave: "something else")
    assert [one.original for one in transcribe_wave(rows, deaf)] == [row["text"] for row in rows]


@pytest.mark.rendered
def test_a_joint_run_leaves_both_results_and_samples(listening, prepared, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", "")
    words = [*JOINT, "result=results/joint.json", "export=shipped", "decode.speech.temperature=1.0"]
    cfg = config(*words, "evaluate.samplings=2", "evaluate.audio_samples=2", "log.wandb=offline")
    results = run_module.train(cfg, "x")
    assert set(results) == {"asr", "tts"}
    tts = results["tts"]
    for task in ("asr", "tts"):
        saved = read_result(Path(f"results/joint-{task}.json"))
        assert saved == json.loads(json.dumps(results[task]))
    assert tts["resynthesis_wer"] == tts["original_wer"] == 0.0
    assert tts["utterances"] == len(tts["per_utterance"]) == 6
    assert sum(tts["stopped"].values()) == 6
    assert len(tts["samplings"]["wer"]) == 2
    assert tts["samplings"]["best_of_wer"] <= min(tts["samplings"]["wer"])
    assert tts["asr_scorer"] == "perfect"
    names = {file.name for file in (cfg.run_dir / "samples").iterdir()}
    assert {"test-0.wav", "test-0.png", "test-1-target.wav", "dev-1.png"} <= names
    assert "test-2.wav" not in names
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert lines[-2].startswith("ASR WER")
    for part in ("vs reference", "vs resynthesis", "recordings 0.0 %", "codec resynthesis 0.0 %"):
        assert part in lines[-1]
    header = (cfg.run_dir / "metrics.csv").read_text(encoding="utf-8").splitlines()[0]
    for metric in ("train/loss_next_modality", "dev/asr_wer", "dev/tts_wer", "dev/wer", "train/loss_speech"):
        assert metric in header
    monkeypatch.setattr("wandb.login", lambda **_: False)
    command(["dashboard"])  # all of its panels draw what such a run logs
    told = capsys.readouterr().out
    assert "Zips and gates  6 panels" in told
    assert "those stay empty" not in told
    assert "no W&B key" in told
    (mirror,) = (cfg.run_dir / "wandb").glob("offline-run-*")
    drawn = mirror.glob("files/media/table/*/*.json")
    tables = {f"{path.parent.name}/{path.name.split('_')[0]}" for path in drawn}
    assert [*mirror.glob("*.wandb")]
    assert {path.parent.name for path in mirror.glob("files/media/images/**/*.png")} >= {"figures"}
    assert tables == {f"{split}/{what}" for split in ("dev", "test") for what in ("recognised", "spoken")}
    staged = [path for path in (cfg.run_dir / "wandb" / "artifacts").rglob("*") if path.is_file()]
    kinds = {path.read_bytes()[:4] for path in staged}
    assert {b"RIFF", b"\x89PNG"} <= kinds  # speech to be played, spectrograms to be seen
    for figure in (
        "attention-speech-text",
        "attention-text-speech",
        "wer-by-length-asr",
        "wer-by-length-tts",
    ):
        assert (cfg.run_dir / "figures" / f"{figure}.png").is_file()
    evaluate_run(load_config(cfg.run_dir / "config.yaml"), "y")
    again = read_result(cfg.run_dir / "tts-test.json")
    assert again["per_utterance"] == tts["per_utterance"]
    # The caller may choose a decoder that was trained further, since the codes are the same.
    codec, further = listening.speech.codec, copy(listening.speech.codec)
    further.decoder = "trained further"
    mine = {"mine": {**prepared.modalities, "speech": Speech(further)}}
    known = {"load_codec": lambda codec_cfg: further if codec_cfg.weights == "mine" else codec,
             "load_modalities": lambda cfg, _: mine.get(cfg.codec.weights, prepared.modalities)}  # fmt: skip
    for name, load in known.items():
        monkeypatch.setattr(f"zipper.evaluation.run.{name}", load)

    def evaluate_with(word: str) -> None:
        evaluate_run(load_config(cfg.run_dir / "config.yaml", [word]), "z", overrides=[word])

    evaluate_with("codec.weights=mine")
    other = read_result(cfg.run_dir / "tts-test-2.json")
    assert other["codec"] == f"{again['codec']}, decoder trained further"
    # Neither other codes nor another pattern of them, which an export refuses, too.
    with pytest.raises(ConfigError, match=r"codec\.pattern=parallel: this codec gives other codes than"):
        evaluate_with("codec.pattern=parallel")
    further.fingerprint = "of other codes"
    with pytest.raises(ConfigError, match=r"codec\.weights=mine: this codec gives other codes than"):
        evaluate_with("codec.weights=mine")
    save_exported(Path("out"), load_trained(cfg.run_dir / "checkpoints/best.ckpt"), prepared.modalities, {})
    with pytest.raises(ConfigError, match=r"codec\.pattern=parallel, but out was trained with delay"):
        evaluate_exported(Path("out"), ["codec.pattern=parallel"], "x")


def test_errors_by_length_add_up():
    def spoken(characters: int, errors: int) -> SpeechScore:
        return SpeechScore("x", errors, 4, 1.0, "a" * characters, "", "stop", 0, 0, "")

    found = [spoken(8, 1), spoken(10, 0), spoken(11, 2), spoken(35, 4)]
    assert by_length(found) == [
        {"characters": 10, "utterances": 2, "wer": 0.125, "wer_up_to": 0.125},
        {"characters": 20, "utterances": 1, "wer": 0.5, "wer_up_to": 0.25},
        {"characters": 40, "utterances": 1, "wer": 1.0, "wer_up_to": 0.4375},
    ]
    assert len(by_length([spoken(n, 0) for n in range(1, 480, 7)])) <= 12
    found = [{**by_length([*found, spoken(0, 3)])[0]}, *by_length([spoken(0, 3)])]  # nothing was said
    assert [(one["characters"], one["utterances"], one["wer"]) for one in found] == [
        (10, 3, 0.333333),
        (10, 1, 0.75),
    ]


def test_the_longest_repeat_is_found_within_rows_alone():
    rows = [[1, 1, 1, 2], [2, 2, 3, 2, 3, 2, 3]]
    found = [longest_repeats(torch.tensor(row).numpy()) for row in rows]
    assert [max(of_one) for of_one in zip(*found, strict=True)][:4] == [2, 4, 1, 2]
    none = torch.tensor([]).numpy()
    assert longest_repeats(none) == longest_repeats(torch.tensor([7]).numpy()) == [0] * PERIODS


def test_facts_are_those_of_the_training_split_and_cap_what_is_written(prepared):
    statistics = measure_statistics(prepared)
    rows = list(prepared.splits["train"])
    frames = [len(row["codes"]) // 3 for row in rows]
    ratio = max(f / len(row["ids"]) for f, row in zip(frames, rows, strict=True))
    assert statistics.cap("speech", "text", 4) == math.ceil(1.5 * ratio * 4) + 1
    longest = math.ceil(1.5 * max(frames))
    assert statistics.cap("speech", None, 0) == statistics.cap("speech", "speech", 9) == longest
    assert DatasetStatistics(**json.loads(json.dumps(statistics.to_dict()))) == statistics
    seconds = statistics.seconds["text"]
    assert len(seconds) == prepared.modalities["text"].tokenizer.vocabulary
    said = [sum(seconds[i] for i in (0, *row["ids"], 1)) for row in rows]
    assert sum(said) == pytest.approx(sum(row["seconds"] for row in rows), rel=1e-3)


def test_a_run_on_a_share_of_the_data_knows_nothing_of_the_rest(prepared):
    """Durations, rates, and caps that were fitted on more would leak into the ablation of aligned data."""
    train = prepared.splits["train"]
    few = replace(prepared, splits={**prepared.splits, "train": train.select(range(5))})
    assert measure_statistics(prepared, 5) == measure_statistics(few)
    assert measure_statistics(prepared, 5).seconds != measure_statistics(prepared).seconds
    module = run_module.ZipperModule.of(resolve(config(), prepared), measure_statistics(prepared, 5))
    seconds = measure_statistics(few).seconds["text"]
    assert module.model.get_buffer("seconds_text").tolist() == pytest.approx(seconds)


def test_wav2vec2_is_loaded_from_a_file_and_missing_weights_are_told(in_tmp, monkeypatch):
    monkeypatch.setattr("zipper.modalities.asr_scorer.find_spec", lambda module: object())
    (in_tmp / "bad.pth").write_bytes(b"no weights")
    normaliser = SimpleNamespace(EnglishTextNormalizer=lambda: str)
    monkeypatch.setitem(sys.modules, "whisper_normalizer", SimpleNamespace(english=normaliser))
    monkeypatch.setitem(sys.modules, "whisper_normalizer.english", normaliser)
    with pytest.raises(DataError, match=r"wav2vec2 cannot be loaded.*asr_scorer\.model=FILE"):
        load_asr_scorer(AsrScorerConfig(kind="wav2vec2", model=str(in_tmp / "nowhere.pth")))


def test_a_sentence_of_repetition_costs_no_more_than_its_words():
    found = [Score("a", 40, 4, 1.0, "", "", "length"), Score("b", 1, 6, 1.0, "", "", "stop")]
    assert capped_rate(found) == (4 + 1) / 10


def test_the_silence_around_a_sentence_is_that_of_its_begin_and_end(dataset):
    text = dataset.modalities["text"]
    columns = {
        "letters": np.array([10, 25, 40, 0]),
        "seconds": np.array([0.9, 1.65, 2.4, 3.0]),
    }  # 0.05 a letter, 0.4
    seconds = text.token_seconds(columns.__getitem__)
    tokens = text.tokenizer
    assert seconds[tokens.bos] == seconds[tokens.eos] == pytest.approx(0.2, abs=1e-4)
    for token in range(tokens.eos + 1, tokens.vocabulary):
        assert seconds[token] == pytest.approx(0.05 * text.letters[token], abs=1e-4)
