"""Codebooks that follow their vectors, and codec trainings that stop before a codec is spoilt."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import torch
from encodec.quantization import ResidualVectorQuantizer

from zipper.codecs.codec import SemanticUnits
from zipper.config import RunConfig, TrainCodecConfig
from zipper.corpora.utterance import Utterance
from zipper.errors import ConfigError, TrainingError
from zipper.evaluation.codec import evaluate_codec
from zipper.training.codebooks import CodebookLearner
from zipper.training.codec import CodecModule, check_codec_training
from zipper.training.crops import Crops


def learner(units: bool = False) -> CodebookLearner:
    torch.manual_seed(0)
    found = CodebookLearner(ResidualVectorQuantizer(dimension=4, n_q=1, bins=16), 0.9)
    found.initialise(torch.randn(64, 4), torch.arange(64) % 16 if units else None)
    return found.train()


def test_a_unit_that_is_seen_no_more_keeps_its_vector():
    one = learner(units=True)
    (book,) = one.books
    before = book.embed[3].clone()
    units = torch.arange(40).reshape(2, 20) % 3
    for _ in range(1500):  # until both sums are below what a float can hold
        one(torch.randn(2, 4, 20), 1, units)
    assert float(book.cluster_size[3]) < 1e-30
    torch.testing.assert_close(book.embed[3], before, rtol=1e-3, atol=1e-3)


def test_a_dead_code_is_revived_at_a_latent():
    one = learner()
    (book,) = one.books
    book.embed[4:] += 1000
    book.cluster_size[4:] = 1e-6
    book.embed_avg.copy_(book.embed * book.cluster_size[:, None])
    latents = torch.randn(8, 4, 20)
    one(latents, 1)
    rows = latents.transpose(1, 2).reshape(-1, 4)
    assert float(torch.cdist(book.embed[4:], rows).min(1).values.max()) < 0.01


def test_a_wave_beyond_full_scale_is_cut_as_a_file_would_be(tmp_path):
    """Resampling overshoots where a recording was clipped."""
    loud = np.sign(np.sin(np.arange(88_200) / 12)) * 0.99
    sf.write(tmp_path / "loud.wav", loud, 44_100)
    one = Utterance("loud", str(tmp_path / "loud.wav"), "", "a", "test")
    cfg = TrainCodecConfig(seconds=0.2)
    wave = one.wave(cfg.sample_rate)
    assert float(wave.abs().max()) > 1.05
    (kept,) = Crops([one], cfg, 0, None).waves
    assert float((kept / 32767 - wave.clamp(-1, 1)).abs().max()) < 1e-3


def test_a_loss_that_is_not_finite_stops_a_codecs_training():
    cfg = TrainCodecConfig(filters=2, dimension=8, codebooks=2, codes=16, steps=8, batch=2, seconds=0.2)
    module = CodecModule(cfg, SimpleNamespace())
    with pytest.raises(TrainingError, match=r"step 1: the loss is nan.*below 0\.\d+ \(train_codec\.lr\)"):
        module.training_step((torch.full((2, 3200), torch.nan), None), 0)


def test_units_alone_are_neither_trained_further_nor_listened_to(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    units = object.__new__(SemanticUnits)
    monkeypatch.setattr("zipper.training.codec.load_zipper_codec", lambda folder: units)
    monkeypatch.setattr("zipper.evaluation.codec.load_codec", lambda cfg: units)
    cfg = RunConfig(train_codec=TrainCodecConfig(init="units", out="new"))
    Path("units").mkdir()
    with pytest.raises(ConfigError, match=r"train_codec\.init=units has semantic units alone"):
        check_codec_training(cfg)
    with pytest.raises(ConfigError, match="no decoder whose sound could be scored"):
        evaluate_codec(RunConfig(name="x"), "x")


def test_a_crop_has_whole_frames_whatever_its_seconds_are_in_binary(tmp_path):
    """8.04 s at 16 kHz are 128,640 samples; the product of floating-point numbers is one less."""
    sf.write(tmp_path / "noise.wav", 0.1 * np.random.default_rng(0).standard_normal(17 * 16_000), 16_000)
    one = Utterance("noise", str(tmp_path / "noise.wav"), "", "a", "train")
    for seconds in (8.04, 8.12, 16.08):
        assert Crops([one], TrainCodecConfig(seconds=seconds), 0).length == round(seconds * 100) * 160
