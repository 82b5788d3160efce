"""`import zipper`: towers joined in Python, trained by a Trainer of one's own, saved, loaded, used."""

import json
import os
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import soundfile as sf
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

import zipper
from conftest import data_of, joined
from language_models import reference
from reproduce import ROOT
from zipper.cli import main
from zipper.config import read_json
from zipper.hub import push

SENTENCE = "helen sold the blue wallet"


def fitted(towers, manifest, model=None, tasks=None, **settings) -> zipper.Zipper:
    model = model or joined(towers)
    data = data_of(manifest, model, tasks or {"asr": 1, "tts": 1.26})
    trainer = L.Trainer(max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, **settings)
    trainer.fit(zipper.ZipperModule(model, lr=1e-3, warmup=1), data)
    return model


def logits(model: zipper.Zipper, ids: torch.Tensor) -> torch.Tensor:
    tower = model.network.tower("text")
    return tower.logits(tower(ids[..., None]))[:, :, 0]


def test_a_language_model_is_zipped_trained_saved_and_its_text_stays_as_it_was(towers, manifest):
    ids = torch.arange(2, 30)[None]
    before = logits(joined(towers), ids)
    expected = reference("smollm2", bos_token_id=0, eos_token_id=0, vocab_size=320)(ids).logits
    torch.testing.assert_close(before, expected, atol=1e-5, rtol=1e-5)
    model = fitted(towers, manifest, accumulate_grad_batches=2)
    assert torch.equal(logits(model, ids), before)
    fresh = joined(towers).network.state_dict()
    moved = {n for n, w in model.network.state_dict().items() if not torch.equal(w, fresh[n])}
    assert moved
    assert not any(name.startswith("towers.text.") for name in moved)
    model.save_pretrained("mine", author="me")
    again, third = (zipper.Zipper.from_pretrained("mine") for _ in range(2))
    assert again.statistics == model.statistics
    for name, weight in again.network.state_dict().items():
        assert torch.equal(weight, model.network.state_dict()[name].half().float()), name
    assert torch.equal(again.synthesize(SENTENCE), third.synthesize(SENTENCE))


def test_a_checkpoint_of_a_users_own_training_is_loaded_into_a_new_model(towers, manifest, in_tmp):
    model = joined(towers)
    data = data_of(manifest, model, {"asr": 1}, "train.ctc=0.3")
    saves = ModelCheckpoint("kept", every_n_train_steps=2, save_top_k=-1)
    trainer = L.Trainer(max_steps=4, accelerator="cpu", logger=False, callbacks=[saves])
    trainer.fit(zipper.ZipperModule(model, lr=1e-3, warmup=1), data)
    early, late = sorted(Path("kept").iterdir())
    found = joined(towers)
    zipper.ZipperModule.load_from_checkpoint(late, model=found)
    assert found.statistics == model.statistics
    for name, weight in found.network.state_dict().items():
        assert torch.equal(weight, model.network.state_dict()[name]), name
    assert found.network.ctc is not None
    wave = torch.randn(16_000) / 10
    assert found.transcribe(wave) == model.transcribe(wave)
    zipper.ZipperModule.load_from_checkpoint(early, model=found)
    other = zipper.Zipper.from_towers(**towers, interval={"text": 1, "speech": 1}, frozen=["text"])
    with pytest.raises(zipper.ConfigError, match=r"of another model: model\.zip\.heads=2, not 4"):
        zipper.ZipperModule.load_from_checkpoint(late, model=other)
    last = model.network.state_dict()
    assert any(not torch.equal(weight, last[name]) for name, weight in found.network.state_dict().items())


def test_data_made_again_before_the_training_replaces_the_first(towers, manifest):
    """A notebook runs its cells twice. Random numbers that were drawn before do not count."""
    settings = ["train.tokens=300", "model.zip={heads: 2, whiten: true, rescale: true}"]
    found = []
    for before in ([], [], [{"tts": 1}, {"asr": 1}]):
        torch.manual_seed(len(found))
        model = zipper.Zipper.from_towers(**towers, interval={"text": 1, "speech": 1}, overrides=settings)
        for tasks in (*before, {"asr": 1}):
            only = f"data.only={5 if 'tts' in tasks else 20}"
            overrides = [f"data.folder={manifest}", "data.dev=4", "data.test=4", only]
            data = zipper.ZipperData("manifest", model, tasks=tasks, overrides=overrides)
        used = {n: w for n, w in model.network.state_dict().items() if "text_from_speech" in n}
        found.append((data.cfg, model.statistics, used))
    first, once, twice = found
    assert all(torch.equal(weight, once[2][name]) for name, weight in first[2].items())
    assert once[:2] == twice[:2]
    assert once[0].train.tokens == 300
    torch.testing.assert_close(once[2], twice[2], rtol=0.05, atol=0.01)  # a rescaled zip moves the next


def test_a_model_that_learnt_one_task_learns_another_one_afterwards(towers, manifest):
    """The zips of a direction that was idle before learn now."""
    model = fitted(towers, manifest, tasks={"asr": 1})
    before = {name: w.clone() for name, w in model.network.state_dict().items()}
    trained = fitted(towers, manifest, model=model, tasks={"tts": 1})
    moved = {n for n, w in trained.network.state_dict().items() if not torch.equal(w, before[n])}
    assert any("speech_from_text" in name for name in moved)
    assert not any("text_from_speech" in name or name.startswith("towers.text.") for name in moved)


def test_transcribing_in_a_training_leaves_every_module_in_its_mode(towers, manifest):
    """The dropout of trained towers goes on, and frozen ones stay in eval mode."""
    modes = []

    class Listens(L.Callback):
        def on_train_batch_end(self, trainer, module, *rest):
            modes.append([one.training for one in model.network.modules()])
            model.transcribe(torch.randn(16_000) / 10)
            model.generate([{"text": SENTENCE}], ["speech"])

    model = joined(towers)
    data = data_of(manifest, model, {"asr": 1, "tts": 1})
    trainer = L.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[Listens()],
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(zipper.ZipperModule(model, lr=1e-3, warmup=1), data)
    assert modes == [modes[0]] * 3
    assert {*modes[0]} == {False, True}


def test_a_module_that_is_made_too_early_is_refused(towers, manifest):
    model = joined(towers)
    early = zipper.ZipperModule(model)
    data = data_of(manifest, model, {"asr": 1})
    trainer = L.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(zipper.ConfigError, match="make it after ZipperData"):
        trainer.fit(early, data)


def test_a_model_is_pushed_with_its_card(towers, model_hub):
    assert joined(towers).push_to_hub("me/mine").endswith("/me/mine")
    sent = {file.name: file for file in (model_hub / "me/mine").iterdir()}
    assert {*sent} == {"zipper.safetensors", "zipper.json", "tokenizer.json", "README.md"}
    assert 'from_pretrained("me/mine")' in sent["README.md"].read_text(encoding="utf-8")


def test_a_loaded_model_is_pushed_with_its_bits_and_figures_until_it_is_trained(towers, manifest, model_hub):
    joined(towers).save_pretrained("mine", bits=4, wer=0.25, command="make it")
    model = zipper.Zipper.from_pretrained("mine")
    model.push_to_hub("me/mine")
    info, again = (read_json(folder / "zipper.json") for folder in (Path("mine"), model_hub / "me/mine"))
    assert again == info
    card = (model_hub / "me/mine/README.md").read_text(encoding="utf-8")
    for part in ("| wer | 25.0 % |", "`make it`", "none, it is not trained yet"):
        assert part in card
    assert "license:" not in card  # that of the towers is not known
    data_of(manifest, model, {"asr": 1})
    assert model.figures is None


def test_what_is_no_figure_is_refused_and_a_home_folder_is_found(towers, monkeypatch):
    model = joined(towers)
    for name, value in (("config", "x"), ("wer", float("nan"))):
        with pytest.raises(zipper.ConfigError, match=rf"^{name}="):
            model.save_pretrained("mine", **{name: value})
    monkeypatch.setenv("HOME", str(Path.cwd()))
    model.save_pretrained("~/mine")
    assert Path("mine/zipper.json").is_file()


def test_the_card_is_of_the_model_whatever_a_modality_saves_beside_it(towers, model_hub, capsys):
    model = joined(towers)
    model.save_pretrained("mine")
    Path("mine/melody.json").write_text("[1]", encoding="utf-8")
    Path("mine/melody.npz").write_bytes(b"x")
    push(Path("mine"), "me/mine", private=True)
    card = (model_hub / "me/mine/README.md").read_text(encoding="utf-8")
    assert 'from_pretrained("me/mine")' in card
    assert "not uploaded, since others could not load it: melody.npz" in capsys.readouterr().out


def test_what_is_written_together_is_what_is_written_alone(towers, manifest):
    model = fitted(towers, manifest)
    prompts = [{"text": text} for text in (SENTENCE, "a house", "the singer waited at nine")]
    together = model.generate(prompts, ["speech", "text"])
    for one, found in zip(prompts, together, strict=True):
        [alone] = model.generate([one], ["speech", "text"])
        assert [segment.modality for segment in found] == ["speech", "text"]
        assert torch.equal(alone[0].value, found[0].value)
        assert alone[1:] == found[1:]
    wave = model.synthesize(SENTENCE, "spoken.wav")
    assert torch.equal(wave, together[0][0].value)
    read, rate = sf.read("spoken.wav", dtype="float32")
    assert (len(read), rate) == (len(wave), model.sample_rate)
    heard = torch.randn(model.sample_rate // 2) * 0.1
    sf.write("heard.flac", heard.numpy(), model.sample_rate, subtype="PCM_24")
    assert model.transcribe("heard.flac") == model.transcribe(heard)


@pytest.fixture(scope="module")
def shipped() -> zipper.Zipper:
    return zipper.Zipper.from_pretrained(ROOT / "assets/zipped")


def test_a_loaded_model_stays_in_eval_mode():
    model = zipper.Zipper.from_pretrained(ROOT / "assets/zipped")
    model.synthesize("the cat")
    assert not any(module.training for module in model.modules())


def test_what_cannot_be_is_refused_with_the_reason(towers, manifest):
    model = joined(towers)
    with pytest.raises(zipper.ConfigError, match="has not been trained: its zips are random"):
        model.synthesize(SENTENCE)
    with pytest.raises(zipper.ConfigError, match="'sound' has no tower: towers are given for text, speech"):
        zipper.Zipper.from_towers(**towers, frozen=["sound"])
    with pytest.raises(zipper.ConfigError, match="There is no modality 'sound'"):
        zipper.Zipper.from_towers(**towers, sound=towers["speech"])
    with pytest.raises(zipper.ConfigError, match="Key 'rate' not in 'TrainConfig'"):
        zipper.ZipperModule(model, rate=1e-3)
    with pytest.raises(zipper.ConfigError, match="overrides change the model"):
        data_of(manifest, model, {"asr": 1}, "model.towers.text.frozen=false")
    with pytest.raises(zipper.ConfigError, match=r"train\.ctc=0\.5 needs the letters.*zipper\.ZipperData"):
        L.Trainer(accelerator="cpu", logger=False).fit(zipper.ZipperModule(model, ctc=0.5), [])
    with pytest.raises(zipper.ConfigError, match="every share is 0"):
        data_of(manifest, model, {})
    with pytest.raises(zipper.ConfigError, match="A prompt is one segment"):
        model.generate([{"text": "a", "speech": "b"}], ["text"])


@pytest.mark.parametrize(
    ("wave", "why"),
    [
        (torch.full((16000,), torch.nan), "holds NaN or infinite samples"),
        (torch.zeros(16000), "is silent"),
        (torch.zeros(0), "holds no samples"),
        (torch.randn(320) / 10, "the speech is 0.02 s long, but no word is shorter than 0.05 s"),
        (1000 * torch.randn(16000), "must lie in -1 to 1"),
        (torch.ones(16000, dtype=torch.int16), "holds torch.int16, but must hold floating-point"),
        (torch.randn(2, 16000), r"has the shape \[2, 16000\], but must have \[n\]"),
        (np.zeros((1, 16000), np.float32), r"has the shape \[1, 16000\]"),
        (None, "None is no recording"),
        (ROOT, "is a folder"),
    ],
)
def test_waveforms_that_cannot_be_used_are_refused_as_files_are(shipped, wave, why):
    with pytest.raises(zipper.DataError, match=why):
        shipped.transcribe(wave)


def test_a_recording_of_any_length_is_transcribed_sentence_by_sentence(shipped, in_tmp, capsys):
    said = [
        "why did helen give the blue wallet to the quiet singer",
        "every wednesday at five daniel slept with the clever tiger",
    ]
    said.append(said[0])
    pause = torch.zeros(int(0.6 * shipped.sample_rate))
    wave = torch.cat([part for text in said for part in (shipped.synthesize(text), pause)])
    assert len(wave) > shipped.longest_recording * shipped.sample_rate
    assert shipped.transcribe(wave) == " ".join(said)
    words = shipped.transcribe_words(wave)
    assert [word.text for word in words] == " ".join(said).split()
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert words[-1].end == pytest.approx((len(wave) - len(pause)) / shipped.sample_rate, abs=0.3)
    sf.write("long.wav", wave.numpy(), shipped.sample_rate, subtype="FLOAT")
    main(["generate", "assets/zipped", "--audio", "long.wav", "--timestamps"])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"text    {' '.join(said)}"
    assert [line.split()[2] for line in shown[1:-1]] == " ".join(said).split()
    with pytest.raises(zipper.ConfigError, match="accepts at most"):
        shipped.generate([{"speech": wave}], ["text"])


def test_a_copy_writes_what_the_model_writes_and_changing_it_leaves_the_model_alone(shipped):
    before = shipped.synthesize(SENTENCE)
    copy = deepcopy(shipped)
    assert torch.equal(copy.synthesize(SENTENCE), before)
    with torch.no_grad():
        for weight in copy.parameters():
            weight.zero_()
    assert torch.equal(shipped.synthesize(SENTENCE), before)


def test_averaged_weights_of_lightnings_callback_are_those_of_the_model_afterwards(towers, manifest):
    last, averaged = (
        fitted(towers, manifest),
        fitted(towers, manifest, callbacks=[EMAWeightAveraging(decay=0.5)]),
    )
    name = "towers.speech.norm.weight"
    assert not torch.equal(averaged.network.state_dict()[name], last.network.state_dict()[name])


def test_a_waveform_may_be_of_numpy_and_of_any_float(shipped):
    wave = shipped.modalities["speech"].read(ROOT / "results/samples/test-00000-original.flac")
    expected = shipped.transcribe(wave)
    backwards = wave.flip(0).numpy()[::-1]  # a negative stride
    for same in (wave.double(), wave.numpy(), wave.double().numpy(), backwards, wave.numpy().astype(">f4")):
        assert shipped.transcribe(same) == expected


def test_arguments_of_another_type_are_refused_with_the_reason(shipped, towers, in_tmp):
    for call, why in (
        (lambda: shipped.synthesize(None), "None is no text"),
        (lambda: shipped.synthesize("so it is", "o"), "no suffix names no audio format"),
        (lambda: shipped.synthesize("so it is", "o.xyz"), ".xyz names no audio format"),
        (lambda: shipped.synthesize("so it is", "gone/o.wav"), "the folder gone does not exist"),
        (
            lambda: shipped.generate([{"text": "so"}], "speech"),
            r"give a list of modalities, such as \['speech'\]",
        ),
        (lambda: shipped.generate([{"text": "so"}], ["speech"], seed=-1), "seed=-1 must be a whole number"),
        (
            lambda: shipped.generate([{"text": "so"}], ["speech"], overrides=["speech.beams=3"]),
            "needs one codebook",
        ),
        (
            lambda: shipped.generate([{"text": "so"}], ["speech"], overrides=["speech.top_k=5"]),
            "is greedy. Give a temp",
        ),
        (
            lambda: [*shipped.transcribe_stream([torch.randn(999)], every=0)],
            "must be a positive number of seconds",
        ),
        (lambda: shipped.save_pretrained(Path("file")), "file is a file. Name a folder"),
        (lambda: shipped.save_pretrained("mine", wer=torch.ones(1)), "it is a Tensor. Give finite numbers"),
        (lambda: [*shipped.stream("so it is", seconds=float("nan"))], "seconds=nan must be a positive"),
        (lambda: [*shipped.stream("so it is", seconds=-1)], "seconds=-1 must be a positive"),
        (zipper.Zipper.from_towers, "give at least one tower"),
        (lambda: zipper.Zipper.from_towers(**towers, frozen="text"), "a list of modalities for frozen"),
        (lambda: zipper.Zipper.from_towers(**towers, interval=2), "a dict for interval"),
        (lambda: zipper.ZipperData("manifest", shipped, tasks=["asr"]), "give a dict of shares"),
    ):
        Path("file").touch()
        with pytest.raises(zipper.ConfigError, match=why):
            call()
    assert not Path("mine").exists()


def test_a_muted_microphone_with_an_offset_is_no_error(shipped):
    assert list(shipped.transcribe_stream([torch.full((32000,), 0.01)])) == []


def test_inference_loads_no_package_of_training(tmp_path):
    code = (
        "import sys, zipper\n"
        "model = zipper.Zipper.from_pretrained('assets/zipped')\n"
        f"print(model.transcribe({str(ROOT / 'results/samples/test-00000-original.flac')!r}))\n"
        "training = {'lightning', 'wandb', 'reproduce', 'matplotlib', 'datasets', 'pandas'}\n"
        "assert not training & {*sys.modules}, 'loaded'\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    assert out.stdout.strip() == "every wednesday at five daniel slept with the clever tiger"


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_threads_that_wait_leave_their_core_to_other_programs_unless_told_otherwise(given, spins):
    """Set before PyTorch is loaded, whose OpenMP reads it once."""
    code = "import os, sys, zipper.cli; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    clean = {
        key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    out = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **given}, capture_output=True, text=True,
        encoding="utf-8", check=True,
    )  # fmt: skip
    assert out.stdout.split() == [spins, "False"]


def test_all_public_names_are_there_and_have_a_docstring():
    for name in zipper.__all__:
        assert getattr(zipper, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'Zippper'"):
        zipper.Zippper  # noqa: B018
    assert Path(zipper.__file__).name == "__init__.py"


def test_an_untrained_model_that_was_saved_is_started_as_one_that_was_not(towers, manifest):
    """Whitened, when it meets its first data."""
    settings = ["model.zip={heads: 2, whiten: true, rescale: true}"]
    model = zipper.Zipper.from_towers(**towers, interval={"text": 1, "speech": 1}, overrides=settings)
    model.save_pretrained("untrained")
    found = []
    for one in (model, zipper.Zipper.from_pretrained("untrained")):
        before = {name: weight.clone() for name, weight in one.network.state_dict().items()}
        data_of(manifest, one, {"asr": 1})
        found.append({n for n, w in one.network.state_dict().items() if not torch.equal(w, before[n])})
    assert found[0] == found[1] != set()


def test_a_part_of_a_model_whose_rest_nobody_has_is_not_pushed(model_hub, in_tmp):
    shutil.copytree(ROOT / "assets/three-towers", "three")
    info = read_json(Path("three/zipper.json"))
    for init in ("two", "~/two", "/elsewhere/two"):  # there or not
        info["config"]["model"]["init"] = init
        Path("three/zipper.json").write_text(json.dumps(info), encoding="utf-8")
        with pytest.raises(zipper.ConfigError, match="a part of its model alone"):
            push(Path("three"), "me/three", private=True)
