"""A trained model in the hands of its users: threads, long and soft recordings, damaged folders."""

import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

import zipper
from reproduce import ROOT
from zipper.cli import main
from zipper.errors import ConfigError, DataError
from zipper.modalities.audio import write_audio

RECORDING = ROOT / "results/samples/test-00000-original.flac"
SENTENCE = "every wednesday at five daniel slept with the clever tiger"


@pytest.fixture(scope="module")
def model() -> zipper.Zipper:
    return zipper.Zipper.from_pretrained(ROOT / "assets/zipped")


@pytest.fixture(scope="module")
def wave(model) -> torch.Tensor:
    return model.modalities["speech"].read(RECORDING)


def test_words_are_timed_in_several_threads_at_once(model, wave):
    waves = [wave, model.synthesize("the cat"), torch.cat([torch.zeros(3200), wave])]
    alone = [model.transcribe_words(one) for one in waves]
    with ThreadPoolExecutor(3) as pool:
        together = [pool.map(model.transcribe_words, waves) for _ in range(4)]
        assert [[*several] for several in together] == [alone] * 4


def test_a_model_in_training_is_so_again_after_calls_that_overlap(wave):
    model = zipper.Zipper.from_pretrained(ROOT / "assets/zipped").train()
    model.network.tower("text").eval()
    modes = [module.training for module in model.modules()]
    first, second = model.stream("the cat"), model.stream("so it is")
    next(first)
    next(second)
    assert not any(module.training for module in model.network.modules())
    first.close()
    assert not any(module.training for module in model.network.modules())
    second.close()
    assert [module.training for module in model.modules()] == modes
    with ThreadPoolExecutor(3) as pool:
        assert {*pool.map(model.transcribe, [wave] * 6)} == {SENTENCE}
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("frames", [201, 203, 402, 403, 407])  # of 25 Hz, inexact in seconds
def test_a_recording_of_any_limit_may_be_exceeded(model, wave, frames, monkeypatch):
    longest = {**model.statistics.longest, "speech": math.ceil(frames / 1.5)}
    monkeypatch.setattr(model, "statistics", replace(model.statistics, longest=longest))
    samples = round(model.longest_recording * model.sample_rate)
    assert not model.is_long(torch.zeros(samples))
    assert model.is_long(torch.zeros(samples + 1))
    live = model.live_transcript(model.longest_recording / 2)
    assert samples <= live.longest <= samples + 1


def test_a_long_recording_keeps_its_sentences_if_all_of_it_is_soft(model, wave):
    """Which words this model hears in soft sound is another matter."""
    long = torch.cat([wave, torch.zeros(8000)]).repeat(4) * 0.01
    assert model.is_long(long)
    words = model.transcribe_words(long)
    starts = torch.arange(4) * (len(wave) + 8000) / model.sample_rate
    assert all(any(start < word.start < start + 1 for word in words) for start in starts.tolist())


def test_a_bad_piece_of_sound_is_left_out_and_what_follows_is_heard(model, wave):
    live, bad = model.live_transcript(), torch.full((1600,), math.nan)
    for piece in (bad, torch.full((1600,), math.inf), torch.full((1600,), 300.0)):
        with pytest.raises(DataError, match="NaN, infinite or badly scaled samples, and is left out"):
            live.feed(piece)
    words = [*live.feed(wave), *live.finish()]
    assert " ".join(word.text for word in words) == SENTENCE


def test_a_model_is_not_written_over_a_part_of_itself(model, in_tmp, capsys):
    shutil.copytree(ROOT / "assets/zipped", "base")
    shutil.copytree(ROOT / "assets/three-towers", "three")
    info = json.loads(Path("three/zipper.json").read_text(encoding="utf-8"))
    info["config"]["model"]["init"] = str(in_tmp / "base")
    Path("three/zipper.json").write_text(json.dumps(info), encoding="utf-8")
    before = {file: file.read_bytes() for file in Path("base").iterdir()}
    three = zipper.Zipper.from_pretrained("three")
    with pytest.raises(ConfigError, match=r"base holds the model of model.init=.* Name another folder"):
        three.save_pretrained("base")
    with pytest.raises(SystemExit):
        main(["export", "three", "base"])
    assert "of which this one needs the weights" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in Path("base").iterdir()} == before
    info["config"]["model"]["init"] = str(in_tmp / "three")
    Path("three/zipper.json").write_text(json.dumps(info), encoding="utf-8")
    with pytest.raises(DataError, match="three leads back to itself"):
        zipper.Zipper.from_pretrained("three")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda info: info["config"]["decode"].update(text={"beams": "five"}), "five"),
        (lambda info: info["config"]["decode"].update(text={"beem": 5}), "beem"),
        (lambda info: info.pop("config"), "KeyError: 'config'"),
        (lambda info: info.pop("statistics"), "KeyError"),
        (lambda info: info["statistics"].pop("longest"), "longest"),
        (lambda info: info.update(directions=[["a"]]), "ValueError"),
        (lambda info: info.update(config=[]), "AttributeError|TypeError"),
    ],
)
def test_a_damaged_description_of_a_model_is_named(in_tmp, change, why):
    shutil.copytree(ROOT / "assets/zipped", "mine")
    info = json.loads(Path("mine/zipper.json").read_text(encoding="utf-8"))
    change(info)
    Path("mine/zipper.json").write_text(json.dumps(info), encoding="utf-8")
    with pytest.raises(DataError, match=rf"mine/zipper.json is damaged.*({why})"):
        zipper.Zipper.from_pretrained("mine")


def test_what_an_export_cannot_have_is_refused_before_anything_is_written(model, in_tmp, capsys):
    Path("f.txt").touch()
    for words, why in (
        (["out", "decode.text.ctc=0.3"], "no head of CTC for text"),
        (["f.txt/out"], "f.txt is a file"),
    ):
        with pytest.raises(SystemExit):
            main(["export", str(ROOT / "assets/zipped"), *words])
        assert why in capsys.readouterr().err
    for bits in (8.0, 5, "8"):
        with pytest.raises(ConfigError, match=r"must be 16 \(half precision\), 8 or 4"):
            model.save_pretrained("out", bits=bits)
    assert {path.name for path in in_tmp.iterdir()} == {"f.txt"}


def test_towers_are_named_and_frozen_by_any_iterable():
    with pytest.raises(ConfigError, match="speech='' names no tower"):
        zipper.Zipper.from_towers(text="assets/text-tower", speech="")
    model = zipper.Zipper.from_towers(text="assets/text-tower", frozen=(name for name in ["text"]))
    assert model.config.model.towers["text"].frozen


def test_a_name_that_begins_with_a_tilde_is_that_of_a_file(model, in_tmp):
    shutil.copy(RECORDING, "~a.flac")
    assert model.transcribe("~a.flac") == SENTENCE
    with pytest.raises(DataError, match=r"~b\.flac does not exist"):
        model.transcribe("~b.flac")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("dir.wav", "is a folder"), ("x" * 240 + ".wav", "may have 200 bytes"), ("a\0.wav", "no NUL"),
        ("a.sd2", "names no audio format"), ("none/a.wav", "the folder none does not exist"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_written_is_refused_before_speaking(model, in_tmp, monkeypatch, name, why):
    Path("dir.wav").mkdir()
    monkeypatch.setattr(model, "generate", None)
    with pytest.raises(ConfigError, match=why):
        model.synthesize("the cat", name)


def test_streams_refuse_what_generation_refuses(model, wave):
    for seed in (-1, 0.5, True):
        for run in (
            lambda seed: next(model.stream("the cat", seed=seed)),
            lambda seed: model.generate([{"text": "the cat"}], ["speech"], seed=seed),
        ):
            with pytest.raises(ConfigError, match="must be a whole number of at least 0"):
                run(seed)
    assert len(torch.cat([*model.stream("the cat", seconds=1e308)])) > 1600
    for prompts, order, why in (
        (["a"], ["text"], "A prompt is one segment"),
        ([{"text": "the cat"}], [["speech"]], "holds .'speech'."),
        ([{"text": "the cat"}], [], "give a list of modalities"),
        ([{"text": "the cat"}], None, "give a list of modalities"),
    ):
        with pytest.raises(ConfigError, match=why):
            model.generate(prompts, order)
    for run in (model.stream, lambda text, **how: model.generate([{"text": text}], ["speech"], **how)):
        with pytest.raises(ConfigError, match=r"such as \['speech\.temperature=0\.7'\]"):
            next(iter(run("the cat", overrides="speech.temperature=0.7")))
    with pytest.raises(ConfigError, match=r"such as \['seed=1'\]"):
        zipper.Zipper.from_towers(text="assets/text-tower", overrides="seed=1")
    with pytest.raises(ConfigError, match="seconds='1' must be a positive number"):
        next(model.stream("the cat", seconds="1"))
    with pytest.raises(ConfigError, match="must be the transcript"):
        model.transcribe_words(wave, 5)
    with pytest.raises(ConfigError, match="begins at 0 or later"):
        model.encode("speech", RECORDING, 0.1, seconds=-1.0)
    with pytest.raises(ConfigError, match="start and seconds are of a file"):
        model.encode("speech", wave, 1.0, 0.5)


def test_a_recording_that_is_cut_is_sampled_by_the_seed_too(model, monkeypatch):
    seeds = []
    heard = model.generate
    monkeypatch.setattr(
        model, "generate", lambda *given, seed, **how: seeds.append(seed) or heard(*given, **how)
    )
    wave = 0.1 * torch.randn(round(2.5 * model.longest_recording * model.sample_rate))
    model.transcribe_long(wave, times=False, seed=3)
    assert len(seeds) > 1
    assert {*seeds} == {3}


def test_a_seed_of_numpy_is_a_seed(model):
    drawn = [
        model.generate([{"text": "the cat"}], ["speech"], seed=seed, overrides=["speech.temperature=0.7"])
        for seed in (3, np.int64(3))
    ]
    assert torch.equal(*(one[0][0].value for one in drawn))


def test_generation_within_autocast_is_that_without(model, wave):
    """Of Lightning's mixed precision, for example."""
    expected = model.transcribe(wave), model.synthesize("the cat")
    with torch.autocast("cpu", torch.bfloat16):
        found = model.transcribe(wave), model.synthesize("the cat")
        assert torch.is_autocast_enabled("cpu")
    assert found[0] == expected[0]
    torch.testing.assert_close(found[1], expected[1])


def test_a_text_that_no_prompt_can_hold_is_refused_before_it_is_read(model, monkeypatch):
    monkeypatch.setattr("zipper.modalities.text.unreadable", None)
    with pytest.raises(ConfigError, match=r"'word word .* has 800000 letters, but .* Cut it into sentences"):
        model.synthesize("word " * 200_000)


@pytest.mark.parametrize("name", ["a.flac", "a.mp3", "a.wav", "a.ogg"])
def test_speech_of_no_frame_is_a_file_that_players_open(in_tmp, name):
    write_audio(Path(name), torch.zeros(0), 16_000)
    assert len(sf.read(name)[0]) <= 1200


@pytest.mark.parametrize(
    ("reason", "doubt"), [("length", "greatest length"), ("repetition", "repeats itself")]
)
def test_a_transcript_that_is_cut_off_is_doubtful(model, wave, monkeypatch, reason, doubt):
    [[text]] = model.generate([{"speech": wave}], ["text"])
    cut = text._replace(finish_reason=reason)
    monkeypatch.setattr(model, "generate", lambda *_, **how: [[cut]])
    with pytest.warns(UserWarning, match=f"doubtful: .*{doubt}"):
        assert model.transcribe(wave) == SENTENCE


class Elsewhere(torch.Tensor):
    """A tensor of another device, which `torch.equal` does not compare with one of the CPU."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.equal and len({isinstance(one, cls) for one in args}) > 1:
            raise RuntimeError("Expected all tensors to be on the same device")
        out = super().__torch_function__(function, types, args, kwargs or {})
        return out.as_subclass(torch.Tensor) if function is torch.Tensor.cpu else out


def test_a_model_on_another_device_is_exported_as_from_the_cpu(in_tmp):
    model = zipper.Zipper.from_pretrained(ROOT / "assets/zipped")
    model.save_pretrained("here", bits=8)
    state = model.network.state_dict
    model.network.state_dict = lambda **how: {n: w.as_subclass(Elsewhere) for n, w in state(**how).items()}
    with pytest.raises(RuntimeError, match="same device"):
        torch.equal(model.network.state_dict()["towers.text.embedding.weight"], torch.zeros(1))
    model.save_pretrained("there", bits=8)
    assert Path("here/zipper.safetensors").read_bytes() == Path("there/zipper.safetensors").read_bytes()
