"""Word times: the best monotonic path, in order, within the recording, and moved with the sound."""

import itertools
import re
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zipper
from conftest import data_of, joined
from reproduce import ROOT
from zipper.cli import run
from zipper.errors import ConfigError
from zipper.generation.word_times import DURATION, monotonic, word_times
from zipper.models.single_decoder import SharedTower

RECORDING = ROOT / "results/samples/test-00000-original.flac"
SAID = "every wednesday at five daniel slept with the clever tiger"
# When the synthetic voice says them (its own durations, `bench-live`), in seconds.
STARTS = [0.11, 0.42, 0.90, 1.04, 1.33, 1.69, 1.96, 2.08, 2.17, 2.49]


@pytest.fixture(scope="module")
def model() -> zipper.Zipper:
    return zipper.Zipper.from_pretrained(ROOT / "assets/zipped")


@settings(deadline=None, max_examples=60)
@given(count=st.integers(1, 4), frames=st.integers(1, 8), seed=st.integers(0, 999))
def test_boundaries_are_those_of_the_best_segmentation(count, frames, seed):
    rng = np.random.default_rng(seed)
    scores, expected = rng.normal(size=(count, frames)), rng.uniform(0.5, 4, size=count)

    def total(cuts: tuple[int, ...]) -> float:
        runs = [*itertools.pairwise(cuts)]
        own = sum(scores[i, a:b].sum() for i, (a, b) in enumerate(runs))
        ratios = [np.log((b - a) / expected[i]) for i, (a, b) in enumerate(runs)]
        return own - DURATION * float(np.square(ratios).sum())

    found = monotonic(scores, expected).tolist()
    if frames <= count:
        assert found == [min(i, frames) for i in range(count + 1)]
        return
    every = [(0, *middle, frames) for middle in itertools.combinations(range(1, frames), count - 1)]
    assert total(tuple(found)) == pytest.approx(max(map(total, every)))


def test_words_are_those_of_the_transcript_in_order_and_near_where_they_are_said(model):
    words = model.transcribe_words(RECORDING)
    assert " ".join(word.text for word in words) == model.transcribe(RECORDING) == SAID
    seconds = len(model.modalities["speech"].read(RECORDING)) / model.sample_rate
    assert words[0].start >= 0
    assert words[-1].end <= seconds + 0.04
    assert all(a.start <= a.end == b.start for a, b in itertools.pairwise(words))
    assert np.median([abs(word.start - start) for word, start in zip(words, STARTS, strict=True)]) < 0.08


def test_words_move_with_the_sound_whatever_the_model_would_transcribe(model):
    wave = model.modalities["speech"].read(RECORDING)
    later = model.transcribe_words(torch.cat([torch.zeros(4800), wave]), SAID)  # 0.3 s
    moved = [b.start - a.start for a, b in zip(model.transcribe_words(wave, SAID), later, strict=True)]
    assert np.median(moved) == pytest.approx(0.3, abs=0.08)


def test_less_sound_than_words_still_has_times(model):
    words = model.transcribe_words(0.1 * torch.randn(1280), SAID)
    assert [word.text for word in words] == SAID.split()
    assert words[-1].end <= 0.08 + 0.04


def test_the_command_prints_them(model, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    run(["generate", "assets/zipped", "--audio", str(RECORDING), "--timestamps"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = [line[2] for line in lines if len(line) == 3 and line[0].replace(".", "").isdigit()]
    assert found == SAID.split()


def test_a_model_without_zips_has_none(model, monkeypatch):
    spoken, written = model.encode("speech", 0.1 * torch.randn(16_000)), model.encode("text", SAID)
    single = SharedTower.__new__(SharedTower)
    with pytest.raises(zipper.ConfigError, match="Single Decoder"):
        word_times(single, model.modalities, model.statistics, torch.zeros(16_000), spoken, written)
    long = torch.randn(int(2 * model.longest_recording * model.sample_rate)) / 10
    monkeypatch.setattr("zipper.generation.zipper.ZipperModel", SharedTower)
    for wave in (long[:16_000], long):
        with pytest.raises(zipper.ConfigError, match="Single Decoder"):
            model.transcribe_words(wave)


def test_words_stand_where_they_are_attended_to(model, monkeypatch):
    """Of a map in which each token looks at frames of its own."""
    wave = 0.1 * torch.randn(32_000, generator=torch.Generator().manual_seed(0))  # loud from end to end
    written, rate = model.encode("text", SAID), model.network.rates["speech"]
    count, frames = len(written.tokens) - 2, round(2 * rate)
    cuts = torch.linspace(0, frames, count + 1).round().long().tolist()
    spoken = model.encode("speech", wave)
    weights = torch.zeros(count + 2, len(spoken.tokens))
    for token in range(count):  # asked for by the token before it; the first key is that of BOS
        weights[token, 1 + cuts[token] : 1 + cuts[token + 1]] = 1
    monkeypatch.setattr("zipper.generation.word_times.cross_attention", lambda *_: [weights])
    monkeypatch.setattr("zipper.generation.word_times.DURATION", 0.0)
    words = model.transcribe_words(wave, SAID)
    labels = model.modalities["text"].labels(written.tokens[1:-1, 0].tolist())
    begins = [cut for label, cut in zip(labels, cuts, strict=False) if label.startswith("\u2581")]
    assert [word.start for word in words] == pytest.approx([cut / rate for cut in begins], abs=0.006)


def test_silence_after_the_last_word_is_no_part_of_it(model):
    wave = model.modalities["speech"].read(RECORDING)
    longer = torch.cat([wave, torch.zeros(9600)])  # 0.6 s
    assert model.transcribe_words(longer, SAID)[-1].end <= len(wave) / model.sample_rate + 0.04


def test_words_of_a_byte_level_tokenizer_are_words(towers, manifest):
    """As language models of the hub have them."""
    model = joined(towers)
    train(model, manifest, {"asr": 1})
    wave = 0.1 * torch.randn(model.sample_rate)
    assert any("\u0120" in piece for piece in model.modalities["text"].tokenizer.tokenizer.get_vocab())
    assert [word.text for word in model.transcribe_words(wave, SAID)] == SAID.split()


def test_a_model_that_only_speaks_has_none(towers, manifest):
    model = joined(towers)
    train(model, manifest, {"tts": 1})
    with pytest.raises(zipper.ConfigError, match="not trained to recognise speech"):
        model.transcribe_words(0.1 * torch.randn(model.sample_rate), SAID)


def train(model: zipper.Zipper, manifest: Path, tasks: dict[str, float]) -> None:
    module, data = zipper.ZipperModule, data_of(manifest, model, tasks)
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module(model, lr=1e-3, warmup=1), data)


def test_a_constant_offset_is_no_sound(model):
    wave = model.modalities["speech"].read(RECORDING)
    expected = model.transcribe_words(wave, SAID)
    for offset in (0.005, -0.005):
        found = model.transcribe_words(wave + offset, SAID)
        assert (found[0].start, found[-1].end) == (expected[0].start, expected[-1].end)


@pytest.mark.parametrize("said", ["helen's 2 wallets", "tom & jerry met \ufffd"])
def test_whatever_a_model_writes_has_times(model, monkeypatch, said):
    """Also what no prompt may hold."""
    wave = model.modalities["speech"].read(RECORDING)
    monkeypatch.setattr(type(model.modalities["text"]), "decode", lambda *_: said)
    assert [word.text for word in model.transcribe_stream(wave.split(1600))] == [
        word for word in said.split() if re.search(r"\w", word)
    ]
    assert all(0 <= word.start <= word.end for word in model.transcribe_words(wave))
    with pytest.raises(ConfigError):
        model.transcribe_words(wave, said)  # of someone else
