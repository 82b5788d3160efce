"""EnCodec with semantic units in front: a small random one, and units of a small random Whisper."""

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torchaudio.functional as AF
from safetensors.torch import save_file

import zipper
from conftest import units
from reproduce import ROOT
from zipper.codecs.codec import Codec, build_zipper_codec, load_zipper_codec
from zipper.codecs.load import load_codec
from zipper.codecs.prefixed import SemanticPrefix
from zipper.codecs.semantic import SemanticEncoder
from zipper.codecs.whisper import WhisperEncoder
from zipper.config import CodecConfig, RunConfig, TowerConfig, TrainCodecConfig, with_overrides
from zipper.data.dataset import open_dataset
from zipper.data.encode import prepare_dataset
from zipper.errors import ConfigError, DataError
from zipper.evaluation import codec as codec_module
from zipper.evaluation.codec import evaluate_codec
from zipper.hashes import sha256
from zipper.modalities.asr_scorer import AsrScorer
from zipper.modalities.layout import TokenLayout
from zipper.models.pretrained import save_tower
from zipper.models.tower import Tower

SMALL = TrainCodecConfig(filters=2, dimension=8, codebooks=2, codes=16, causal=True)
UNITS = 25  # a second


def encodec(sample_rate: int = 24_000, codes: int = 16) -> Codec:
    """75 frames a second at 24 kHz."""
    torch.manual_seed(0)
    shape = replace(SMALL, ratios=[4, 4, 4, 5], sample_rate=sample_rate, codes=codes)
    return Codec(with_codes(shape), 2, 1.0, "encodec_24khz")


def with_codes(shape: TrainCodecConfig):
    model = build_zipper_codec(shape)
    for layer in model.quantizer.vq.layers:
        layer._codebook.embed.normal_(0, 0.05)
    return model


def whisper() -> WhisperEncoder:
    torch.manual_seed(1)
    encoder = WhisperEncoder(1, 16)
    for weight in encoder.parameters():
        weight.data.normal_(std=0.05)
    states = encoder.states(torch.randn(16_000))
    encoder.get_buffer("centroids").copy_(states[:16])
    return encoder.eval()


@pytest.fixture
def folder(in_tmp, monkeypatch) -> Path:
    """A zipper-codec with semantic units, as it is trained."""
    monkeypatch.setattr("zipper.codecs.load.load_official", lambda kbps, weights: encodec())
    return write(in_tmp / "semantic", whisper())


def write(folder: Path, encoder: WhisperEncoder | None, without: tuple[str, ...] = ()) -> Path:
    shape = replace(SMALL, semantic="whisper", semantic_layers=1) if encoder else SMALL
    weights = with_codes(shape).state_dict()
    weights |= {f"semantic.{key}": w for key, w in encoder.state_dict().items()} if encoder else {}
    weights = {name: weight for name, weight in weights.items() if name not in without}
    folder.mkdir()
    save_file({key: w.contiguous() for key, w in weights.items()}, folder / "codec.safetensors")
    rest = {key: value for key, value in asdict(shape).items() if key != "out"}
    settings = {"shape": rest, "gain": 1.0, "sha256": sha256(folder / "codec.safetensors")}
    (folder / "codec.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def test_a_codec_of_an_older_version_keeps_its_units(folder):
    """They are clusters of states as they are."""
    older = write(folder.with_name("older"), whisper(), ("semantic.mean", "semantic.deviation"))
    wave = torch.randn(16_000)
    units = [load_codec(CodecConfig(weights=str(one))).semantic(wave) for one in (folder, older)]
    assert torch.equal(*units)


def official(semantic: Path | None) -> Codec:
    return load_codec(
        CodecConfig(
            name="encodec_24khz", bandwidth_kbps=1.5, semantic=None if semantic is None else str(semantic)
        )
    )


def test_each_unit_stands_before_the_frames_of_its_time(folder):
    codec, plain = official(folder), encodec()
    assert (codec.codebooks, codec.codes, codec.frame_rate, codec.sample_rate) == (3, 16, 75, 24_000)
    assert codec.kbps == pytest.approx(plain.kbps + UNITS * 4 / 1000)  # 4 bits a unit, said once
    wave = 0.1 * torch.randn(24_000)
    (codes,) = codec.encode([wave])
    assert torch.equal(codes[1:], plain.encode([wave])[0])
    units = codec.semantic(AF.resample(wave, 24_000, 16_000))  # what the encoder hears
    assert len(units) == UNITS
    assert codes.shape == (3, 75)
    assert torch.equal(codes[0, ::3], units)
    assert torch.equal(codes[0, ::3], codes[0, 1::3])
    assert torch.equal(codes[0, ::3], codes[0, 2::3])
    assert codes[0].unique().numel() > 1


def test_units_are_those_of_the_codec_that_they_come_from(folder):
    """A low tone, which is the same at either rate."""
    codec = official(folder)
    tones = [
        0.3 * (2 * math.pi * 300 * torch.arange(rate) / rate).sin() * torch.linspace(0, 1, rate)
        for rate in (24_000, 16_000)
    ]
    (own,) = load_codec(CodecConfig(weights=str(folder))).encode([tones[1]])
    (codes,) = codec.encode([tones[0]])
    same = codes[0, ::3] == own[0]
    assert same.float().mean() > 0.9  # the resampling filter changes samples a little


@pytest.mark.parametrize(
    "words",
    [["codec.codebooks=1"], ["codec.name=encodec_24khz", "codec.bandwidth_kbps=1.5"]],
    ids=["embedded", "encodec"],
)
def test_an_exported_model_brings_its_codec_along(folder, model_hub, monkeypatch, words):
    """The codec's own folder is gone, and the model is somewhere else: on the hub, with its card, and after a
    second export."""
    own = "weights" if len(words) == 1 else "semantic"
    words = [*words, f"codec.{own}={folder}"]
    codec = load_codec(with_overrides(RunConfig(), words).codec)
    shape = TowerConfig(
        layers=2, width=16, heads=2, kv_heads=2, hidden=32,
        vocabulary=TokenLayout.after(codec.codes, codec.codebooks).vocabulary, codebooks=codec.codebooks,
    )  # fmt: skip
    save_tower(Path("tower"), Tower(shape), {"reads": codec.fingerprint, "trained_on": None})
    model = zipper.Zipper.from_towers(text="assets/text-tower", speech="tower", overrides=words)
    wave = 0.1 * torch.randn(model.modalities["speech"].sample_rate)
    expected = model.modalities["speech"].encode([wave])
    model.push_to_hub("me/mine")
    shutil.rmtree(folder)
    assert "from_pretrained" in (model_hub / "me/mine/README.md").read_text(encoding="utf-8")
    again = zipper.Zipper.from_pretrained("me/mine")
    again.save_pretrained("elsewhere/mine")
    Path("place").mkdir()
    monkeypatch.chdir("place")
    third = zipper.Zipper.from_pretrained("../elsewhere/mine")
    for one in (again, third):
        assert torch.equal(one.modalities["speech"].encode([wave])[0], expected[0])


@pytest.mark.parametrize("samples", [1, 319, 320, 321, 640, 959, 960, 961, 23_999, 24_001])
def test_there_are_as_many_units_as_frames(folder, samples):
    codec = official(folder)
    (codes,) = codec.encode([0.1 * torch.randn(samples)])
    assert codes.shape == (3, math.ceil(samples / 320))


def test_codes_do_not_depend_on_the_batch(folder):
    codec = official(folder)
    waves = [0.1 * torch.randn(n) for n in (3000, 12_800, 7001, 640, 1)]
    for wave, codes in zip(waves, codec.encode(waves), strict=True):
        assert torch.equal(codec.encode([wave])[0], codes)
    with pytest.raises(DataError, match="Waveform 1 of the batch is empty"):
        codec.encode([waves[0], torch.zeros(0)])


def test_decoding_ignores_the_units(folder):
    codec, plain = official(folder), encodec()
    (codes,) = codec.encode([0.1 * torch.randn(7001)])
    assert torch.equal(codec.decode(codes, 7001), plain.decode(codes[1:], 7001))
    assert torch.equal(codec.decode(codes[:2]), plain.decode(codes[1:2]))
    other = codes.clone()
    other[0] = 0
    assert torch.equal(codec.decode(other), codec.decode(codes))
    with pytest.raises(DataError, match="outside 0 to 15"):
        codec.decode(codes + 16)


def test_the_codecs_table_has_no_row_of_units_alone(folder, utterances, monkeypatch):
    monkeypatch.setattr(codec_module, "load_asr_scorer", lambda cfg, semantic: deaf(semantic))
    monkeypatch.setattr(codec_module, "open_corpus", lambda cfg: utterances)
    codec = CodecConfig(name="encodec_24khz", bandwidth_kbps=1.5, semantic=str(folder))
    result = evaluate_codec(RunConfig(name="table", codec=codec), "x")
    rates = [(row["codebooks"], row["bits_per_second"]) for row in result["rows"][1:]]
    assert rates == [(3, UNITS * 4 + 2 * 300), (2, UNITS * 4 + 300)]


def deaf(semantic: SemanticEncoder) -> AsrScorer:
    """It is told which encoder made the units."""
    assert semantic.teacher.startswith("whisper tiny.en")
    return AsrScorer(lambda wave: "", str, "deaf")


def test_an_encoded_dataset_names_both(folder, utterances, subwords, in_tmp):
    codec = official(folder)
    few = [next(u for u in utterances if u.split == split) for split in ("train", "dev", "test")]
    dataset = prepare_dataset(in_tmp / "stores", few, units(codec, subwords), 30.0)
    named = dataset.info["fingerprint"]["codec"]
    assert all(one in named for one in ("whisper tiny.en, 1 of 4 layers", encodec().fingerprint))
    assert named != load_codec(CodecConfig(weights=str(folder))).fingerprint
    with pytest.raises(DataError, match="made with another codec"):
        open_dataset(dataset.folder, dataset.modalities, {"codec": official(None).fingerprint})


def test_a_codec_without_units_and_other_settings_that_do_not_fit_are_refused(folder, in_tmp):
    with pytest.raises(ConfigError, match=r"codec\.semantic=.*plain.* without semantic .*semantic=whisper"):
        official(write(in_tmp / "plain", None))
    with pytest.raises(DataError, match=r"nowhere is no codec"):
        official(in_tmp / "nowhere")
    for name in ("embedded", "mimi"):
        with pytest.raises(ConfigError, match=rf"codec\.semantic=x is for .*{name}.*Leave it out"):
            CodecConfig(name=name, bandwidth_kbps=1.1, semantic="x")
    with pytest.raises(ConfigError, match=r"16 units, but encodec_24khz has 32 .*train_codec\.codes=32"):
        SemanticPrefix(encodec(codes=32), whisper())
    with pytest.raises(ConfigError, match=r"25 units a second, which do not divide the 68\.9"):
        SemanticPrefix(encodec(sample_rate=22_050), whisper())
    weights = folder / "codec.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(DataError, match=r"semantic/codec\.safetensors.*hash differs.*Restore both"):
        official(folder)


@pytest.mark.parametrize("key", ["sha256", "shape", "gain"])
def test_a_description_of_a_codec_that_lacks_something_is_damaged(in_tmp, key):
    shutil.copytree(ROOT / "assets/codec", "codec")
    settings = json.loads(Path("codec/codec.json").read_text(encoding="utf-8"))
    del settings[key]
    Path("codec/codec.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(DataError, match=f"codec.json is damaged: it lacks {key}"):
        load_zipper_codec(Path("codec"))


def test_a_codec_of_a_newer_version_says_so(in_tmp):
    shutil.copytree(ROOT / "assets/codec", "codec")
    settings = json.loads(Path("codec/codec.json").read_text(encoding="utf-8"))
    settings["shape"]["later"] = 1
    Path("codec/codec.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(DataError, match=r"codec\.json: shape\.later is unknown: another version wrote it"):
        load_zipper_codec(Path("codec"))


def test_weights_of_encodec_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.th").write_bytes(b"no weights")
    with pytest.raises(DataError, match=f"{tmp_path}/own.th"):
        load_codec(CodecConfig(name="encodec_24khz", bandwidth_kbps=1.5, weights="~/own.th"))
