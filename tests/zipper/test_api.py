"""`import zipper`: towers joined in Python, trained by a Trainer of one's own, saved, loaded, used."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import soundfile as sf
import torch
from huggingface_hub import HfApi
from test_pretrained import SMALL, reference, saved

import zipper
from reproduce import ROOT
from zipper.config import TowerConfig
from zipper.modalities import speech as speech_module
from zipper.modalities.delay import vocabulary
from zipper.models.pretrained import save_tower
from zipper.models.tower import Tower

SENTENCE = "helen sold the blue wallet"


@pytest.fixture
def towers(in_tmp, codec, monkeypatch):
    """A language model as the hub has them, a speech tower as `pretrain` exports it, and a manifest."""
    monkeypatch.setattr(speech_module, "load_codec", lambda cfg: codec)
    torch.manual_seed(0)
    shape = TowerConfig(
        layers=3, width=24, heads=2, kv_heads=2, hidden=32, vocabulary=vocabulary(codec.codes), codebooks=3
    )
    save_tower(in_tmp / "speech", Tower(shape), {"reads": codec.fingerprint, "trained_on": None})
    return {"text": saved(in_tmp / "text", vocab_size=320), "speech": in_tmp / "speech"}


@pytest.fixture
def manifest(in_tmp, utterances):
    lines = [f"{u.id}\t{u.audio}\t{u.text}\t{u.speaker}" for u in utterances]
    file = in_tmp / "all.tsv"
    file.write_text("\n".join(["id\taudio\ttext\tspeaker", *lines]) + "\n", encoding="utf-8")
    return file


def joined(towers) -> zipper.Zipper:
    return zipper.Zipper.from_towers(
        **towers, interval={"text": 1, "speech": 1}, frozen=["text"], overrides=["model.zip.heads=2"]
    )


def fitted(towers, manifest, model=None, tasks=None, **settings) -> zipper.Zipper:
    model = model or joined(towers)
    data = zipper.ZipperData(
        "manifest",
        model,
        tasks=tasks or {"asr": 1, "tts": 1.26},
        overrides=[f"data.folder={manifest}", "data.dev=4", "data.test=4", "train.tokens=200"],
    )
    trainer = L.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **settings,
    )  # fmt: skip
    trainer.fit(zipper.ZipperModule(model, lr=1e-3, warmup=1), data)
    return model


def logits(model: zipper.Zipper, ids: torch.Tensor) -> torch.Tensor:
    tower = model.network.tower("text")
    x, rotation = tower.embed(ids[..., None]), tower.rotation(torch.arange(ids.shape[1])[None])
    for layer in tower.layers:
        x = layer(x, rotation)
    return tower.logits(tower.finish(x))[:, :, 0]


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


def test_a_model_that_learnt_one_task_learns_another_one_afterwards(towers, manifest):
    """The zips of a direction that was idle before learn now."""
    model = fitted(towers, manifest, tasks={"asr": 1})
    before = {name: w.clone() for name, w in model.network.state_dict().items()}
    trained = fitted(towers, manifest, model=model, tasks={"tts": 1})
    moved = {n for n, w in trained.network.state_dict().items() if not torch.equal(w, before[n])}
    assert any("speech_from_text" in name for name in moved)
    assert not any("text_from_speech" in name or name.startswith("towers.text.") for name in moved)


def test_another_number_of_processes_than_the_settings_say_is_refused(towers, manifest):
    model = joined(towers)
    settings = [f"data.folder={manifest}", "data.dev=4", "data.test=4", "train.tokens=200"]
    data = zipper.ZipperData("manifest", model, tasks={"asr": 1}, overrides=settings)
    data.cfg = replace(data.cfg, train=replace(data.cfg.train, devices=2))
    trainer = L.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(zipper.ConfigError, match=r"train\.devices=2 x train\.nodes=1, but Lightning runs 1"):
        trainer.fit(zipper.ZipperModule(model), data)


def test_a_model_is_pushed_with_its_card(towers, manifest, monkeypatch):
    sent = {}
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **how: None)
    monkeypatch.setattr(
        HfApi, "upload_folder", lambda self, folder_path, **_: sent.update(files=os.listdir(folder_path))
    )
    monkeypatch.setattr(
        HfApi, "upload_file", lambda self, path_or_fileobj, **_: sent.update(card=path_or_fileobj.decode())
    )
    assert joined(towers).push_to_hub("me/mine").endswith("/me/mine")
    assert {*sent["files"]} == {"zipper.safetensors", "zipper.json", "tokenizer.json"}
    assert 'from_pretrained("me/mine")' in sent["card"]


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
    held_out = [f"data.folder={manifest}", "data.dev=4", "data.test=4"]
    with pytest.raises(zipper.ConfigError, match="overrides change a tower"):
        zipper.ZipperData(
            "manifest", model, tasks={"asr": 1}, overrides=[*held_out, "model.towers.text.frozen=false"]
        )
    with pytest.raises(zipper.ConfigError, match="every share is 0"):
        zipper.ZipperData("manifest", model, overrides=held_out)
    with pytest.raises(zipper.ConfigError, match="A prompt is one segment"):
        model.generate([{"text": "a", "speech": "b"}], ["text"])
    assert SMALL["vocab_size"] == 300


def test_inference_loads_neither_lightning_nor_wandb_nor_the_reproduction(tmp_path):
    code = (
        "import sys, zipper\n"
        "model = zipper.Zipper.from_pretrained('assets/zipped')\n"
        f"print(model.transcribe({str(ROOT / 'results/samples/test-00000-original.flac')!r}))\n"
        "assert not {'lightning', 'wandb', 'reproduce', 'matplotlib'} & {*sys.modules}, 'loaded'\n"
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


def test_all_public_names_are_there_and_have_a_docstring():
    for name in zipper.__all__:
        assert getattr(zipper, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'Zippper'"):
        zipper.Zippper  # noqa: B018
    assert Path(zipper.__file__).name == "__init__.py"
