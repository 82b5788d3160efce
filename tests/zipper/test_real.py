"""The shipped recogniser of real speech: it takes recordings of any rate and any words, from any folder."""

import shutil
from pathlib import Path

import pytest
import soundfile as sf
import torch
import torchaudio.functional as AF

import zipper
from reproduce import ROOT
from zipper.cli import main
from zipper.errors import ConfigError, DataError
from zipper.evaluation.result_file import read_result
from zipper.modalities.audio import read_wave
from zipper.modalities.scoring import word_errors
from zipper.models.pretrained import read_tower

RECORDING = ROOT / "results" / "samples" / "8629-261139-0000.ogg"  # a dev recording, LibriSpeech, CC BY 4.0
SAID = (
    "all the witnesses who had anything to say had long ago given in their testimony and when at or near noon"
)


@pytest.fixture(scope="module")
def model() -> zipper.Zipper:
    return zipper.Zipper.from_pretrained(ROOT / "assets" / "real")


def errors(transcript: str) -> int:
    return word_errors(SAID, transcript).errors


def test_a_recording_is_recognised_at_its_own_rate_and_at_others(model, tmp_path):
    assert errors(model.transcribe(RECORDING)) <= 6  # of 21 words
    wave = read_wave(RECORDING, 16_000)
    for rate in (8_000, 44_100):
        sf.write(file := tmp_path / f"{rate}.wav", AF.resample(wave, 16_000, rate).numpy(), rate)
        assert errors(model.transcribe(file)) <= 9


@pytest.mark.slow
def test_half_a_minute_is_one_prompt_and_more_is_cut_at_pauses(model):
    wave = read_wave(RECORDING, 16_000)
    long = torch.cat([wave] * 4)[: 29 * 16_000]
    assert len(model.transcribe(long).split()) > 50
    longer = torch.cat([wave] * 8)
    assert len(model.transcribe(longer).split()) > 100
    with pytest.raises(ConfigError, match=r"59.2 s.*at most 798"):
        model.generate([{"speech": longer}], ["text"])


def test_its_text_tower_is_a_tower_of_its_own(model):
    tower, shipped = read_tower(ROOT / "assets" / "real-text-tower"), model.network.tower("text").state_dict()
    assert all(torch.equal(weight, shipped[name]) for name, weight in tower.state_dict().items())
    joined = zipper.Zipper.from_towers(
        text="assets/real-text-tower", speech="assets/speech-tower", frozen=["text"]
    )
    assert joined.modalities["text"].encode(SAID) == model.modalities["text"].encode(SAID)


CHORD = sum(0.1 * torch.sin(torch.arange(48_000) / 16_000 * 2 * torch.pi * note) for note in (220, 277, 330))
NO_SPEECH = {"near silence": 1e-3 * torch.randn(32_000), "noise": 0.1 * torch.randn(32_000), "a chord": CHORD}


@pytest.mark.parametrize("sound", NO_SPEECH.values(), ids=NO_SPEECH)
def test_what_is_no_speech_is_doubted(model, sound):
    with pytest.warns(UserWarning, match="doubtful"):
        model.transcribe(sound)


def test_it_makes_no_sound_and_says_so(model):
    with pytest.raises(ConfigError, match="not trained to generate speech"):
        model.synthesize("all the witnesses")


def test_it_is_evaluated_on_a_corpus_without_the_folders_of_its_training(in_tmp):
    Path("all.tsv").write_text(
        "id\taudio\ttext\tsplit\n"
        + "".join(f"{split}\t{RECORDING}\t{SAID}\t{split}\n" for split in ("train", "dev", "test")),
        encoding="utf-8",
    )
    main(["evaluate", str(ROOT / "assets" / "real"), "data.corpus=manifest", "data.folder=all.tsv",
          "name=mine", "evaluate.mismatched=false", "result=mine.json"])  # fmt: skip
    result = read_result(Path("mine.json"))
    assert result["words"] == 21
    assert result["errors"] <= 6
    assert result["decoding"].startswith("beam search")


def test_it_is_certified_and_another_encoder_is_refused(monkeypatch, capsys):
    main(["certify", str(ROOT / "assets" / "real")])
    assert "text as pre-trained" in capsys.readouterr().out
    monkeypatch.setattr("zipper.codecs.whisper._in_8_bits", lambda name, weight: 1.01 * weight)
    with pytest.raises(DataError, match="was trained on speech units"):
        zipper.Zipper.from_pretrained(ROOT / "assets" / "real")


def test_without_the_encoder_it_is_said_how_to_get_it(monkeypatch, tmp_path):
    shutil.copytree(ROOT / "assets" / "real", tmp_path / "mine")
    monkeypatch.setattr("zipper.codecs.whisper.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"make setup-whisper"):
        zipper.Zipper.from_pretrained(tmp_path / "mine")
