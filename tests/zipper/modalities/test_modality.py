"""A modality that the library does not know, through the public API: one class and a tower."""

from typing import Self

import lightning as L
import pytest
import torch
from torch import Tensor

import zipper
from conftest import data_of
from zipper.cli import main
from zipper.config import TowerConfig, load_config
from zipper.data.documents import eligible
from zipper.errors import ConfigError, DataError
from zipper.generation.prompts import prompt_segment
from zipper.modalities.base import load_modalities, modality_class
from zipper.modalities.text import Text
from zipper.models.pretrained import save_tower
from zipper.models.tower import Tower
from zipper.training import run as run_module

NOTES, TASKS = 8, {"tune>text": 1, "text>tune": 1, "asr": 1}


class Tune(zipper.Modality):
    """Notes 0 to 7, as in "3 1 4"; the second codebook holds whether a note is higher than the one before."""

    name = "tune"
    rate = 5.0
    layout = zipper.TokenLayout.after(NOTES, 2)
    fingerprint = "tune 8"

    @classmethod
    def load(cls, cfg, folder=None) -> Self:
        return cls()

    def check(self, raw: str) -> None:
        if not all(one.isdigit() and int(one) < NOTES for one in raw.split()):
            raise DataError(f"its tune {raw!r} has other notes than 0 to {NOTES - 1}. Correct it.")

    def encode(self, values: list[str]) -> list[Tensor]:
        notes = [torch.tensor([int(one) for one in value.split()]) for value in values]
        return [torch.stack([one, (one.diff(prepend=one[:1]) > 0).long()]) for one in notes]

    def decode(self, content: Tensor) -> str:
        return " ".join(str(note) for note in content[0].tolist())


@pytest.fixture
def three(towers):
    shape = TowerConfig(
        layers=2, width=16, heads=2, kv_heads=2, hidden=16, vocabulary=Tune.layout.vocabulary, codebooks=2
    )
    save_tower(towers["speech"].parent / "tune", Tower(shape), {"reads": "tune 8", "trained_on": None})
    return {**towers, "tune": towers["speech"].parent / "tune"}


@pytest.fixture
def listed(manifest):
    """The manifest with a column for tunes."""
    head, *rows = manifest.read_text(encoding="utf-8").splitlines()
    rows = [f"{row}\t{i % NOTES} {i // 2 % NOTES} 7" for i, row in enumerate(rows)]
    manifest.write_text("\n".join([f"{head}\ttune", *rows]) + "\n", encoding="utf-8")
    return manifest


def test_three_towers_train_generate_and_are_evaluated(three, listed, in_tmp):
    every_zip = dict.fromkeys(three, 1)
    model = zipper.Zipper.from_towers(**three, interval=every_zip, overrides=["model.zip.heads=2"])
    data = data_of(listed, model, TASKS)
    row = data.dataset.splits["train"][0]
    tune = model.modalities["tune"]
    assert tune.decode(tune.content(row)) == row["tune"]
    assert {*data.dataset.info["fingerprint"]} > {"codec", "tokenizer", "tune"}
    before = [parameter.clone() for parameter in model.network.tower("tune").parameters()]
    trainer = L.Trainer(max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(zipper.ZipperModule(model, lr=1e-2, warmup=1), data)
    after = model.network.tower("tune").parameters()
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    [[text]] = model.generate([{"tune": "3 1 4"}], ["text"])
    assert isinstance(text.value, str)
    [[made]] = model.generate([{"text": "the cat"}], ["tune"])
    assert all(int(note) < NOTES for note in made.value.split())
    with pytest.raises(zipper.ConfigError, match="not trained to generate speech after tune"):
        model.generate([{"tune": "3 1 4"}], ["speech"])
    with pytest.raises(zipper.ConfigError, match=r"has 60 tokens; .* was trained on at most 3"):
        model.generate([{"tune": "1 " * 60}], ["text"])
    model.save_pretrained("mine")
    again = zipper.Zipper.from_pretrained("mine")
    assert again.generate([{"text": "the cat"}], ["tune"])[0][0].value == made.value


def test_a_row_is_used_by_the_tasks_whose_modalities_it_has(three, listed, in_tmp, capsys):
    head, *rows = [line.split("\t") for line in listed.read_text(encoding="utf-8").splitlines()]
    audio, text, tune = (head.index(name) for name in ("audio", "text", "tune"))
    for at, row in enumerate(rows):
        if at % 3 < 2:
            row[(audio, tune)[at % 3]] = ""
    listed.write_text("\n".join("\t".join(row) for row in [head, *rows]) + "\n", encoding="utf-8")
    model = zipper.Zipper.from_towers(**three, overrides=["model.zip.heads=2"])
    data = data_of(listed, model, TASKS)
    said = capsys.readouterr().out
    for column in ("audio", "tune"):
        assert f"{len(rows) // 3} of {len(rows)} utterances have no {column}: tasks that need it" in said
    found = sum(len(split) for split in data.dataset.splits.values())
    assert found == len(rows)
    train = data.dataset.splits["train"]
    for task, column in (("asr", "frames"), ("tune>text", "tune_length")):
        assert 0 < len(eligible(data.dataset, train, task)) == sum(n > 0 for n in train[column]) < len(train)
    trainer = L.Trainer(max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(zipper.ZipperModule(model, lr=1e-2, warmup=1), data)
    for row in rows[1:]:
        row[text] = ""  # which every task needs
    listed.write_text("\n".join("\t".join(row) for row in [head, *rows]) + "\n", encoding="utf-8")
    with pytest.raises(zipper.DataError, match=r"35 of 36 utterances cannot be used.*has no "):
        data_of(listed, model, TASKS)


def test_a_run_of_it_is_trained_evaluated_and_drawn(three, listed, in_tmp, capsys):
    small = "{layers: 2, width: 16, heads: 2, kv_heads: 2, hidden: 16, interval: 1}"
    words = [f"model.towers.{name}={small}" for name in ("text", "speech", "tune")]
    words += ["model.modalities=[text,speech,tune]", "model.zip.heads=2"]
    words += ["data={corpus: manifest, dev: 4, test: 4, subwords: 64}", f"data.folder={listed}"]
    words += ["train={steps: 2, validate_every: 2, tokens: 200, accelerator: cpu}"]
    words += ["train.tasks={tune>text: 1, text>tune: 1}", "name=tunes", "log.wandb=disabled"]
    cfg = load_config(None, words)
    results = run_module.train(cfg, "x")
    assert {*results} == {"tune-text", "text-tune"}
    assert results["text-tune"]["words"] == 3 * results["text-tune"]["utterances"] == 12
    assert "TEXT>TUNE WER" in capsys.readouterr().out
    drawn = {file.stem for file in (cfg.run_dir / "figures").iterdir()}
    assert {"learning-curve", "attention-text-tune", "attention-tune-text"} <= drawn


def test_bad_input_of_it_is_refused_by_its_own_words(three, listed, in_tmp):
    text = listed.read_text(encoding="utf-8").replace("\t0 0 7\n", "\t0 0 9\n")
    listed.write_text(text, encoding="utf-8")
    model = zipper.Zipper.from_towers(**three, overrides=["model.zip.heads=2"])
    with pytest.raises(zipper.DataError, match=r"its tune '0 0 9' has other notes than 0 to 7"):
        data_of(listed, model, TASKS)


def test_a_second_class_of_one_name_is_refused():
    with pytest.raises(
        zipper.ConfigError, match=r"Other: 'tune' is already the modality .*Tune\. Give it another"
    ):
        type("Other", (Tune,), {"name": "tune"})
    assert type("Tune", (Tune,), {"__module__": Tune.__module__, "__qualname__": "Tune"}).name == "tune"


def test_a_subclass_has_columns_of_its_own_and_shares_none(towers):
    class Bass(Tune):
        name = "bass"

    assert [Bass.column, Bass.tokens_column, Bass.length_column, Bass.units_key] == [
        "bass", "bass_tokens", "bass_length", "bass",
    ]  # fmt: skip

    class Phonemes(Text):
        name = "phonemes"

    with pytest.raises(ConfigError, match="text and phonemes have the same tokens_column='ids'"):
        load_modalities(load_config(None, ["model.modalities=[phonemes]", "model.towers.phonemes={}"]))


@pytest.mark.parametrize("wrong", ["keys", "type", "a.b", "a_from_b", "1", ""])
def test_a_name_that_names_no_tower_is_refused(wrong):
    with pytest.raises(ConfigError, match="cannot name a tower"):
        type("Own", (Tune,), {"name": wrong})


def test_an_unknown_modality_is_told_all_that_there_are():
    with pytest.raises(ConfigError, match=r"no modality 'tunes', only .*image, .*speech, text, tune"):
        modality_class("tunes")


def test_a_prompt_that_is_none_names_the_modality():
    with pytest.raises(DataError, match="'a b' cannot be encoded as tune"):
        prompt_segment(Tune(), "a b", 9)
    with pytest.raises(DataError, match="'1 99' as tune: Codes 0 to 99 are not all within"):
        prompt_segment(Tune(), "1 99", 9)


def test_the_command_prints_values_that_are_arrays(three, listed, monkeypatch, capsys):
    """Without `write` a value is printed, or stands in the list of a batch."""
    model = zipper.Zipper.from_towers(**three, interval=dict.fromkeys(three, 1))
    data = data_of(listed, model, {"text>tune": 1})
    L.Trainer(max_steps=1, logger=False, enable_checkpointing=False).fit(zipper.ZipperModule(model), data)
    model.save_pretrained("mine")
    monkeypatch.setattr(Tune, "decode", lambda self, content: content)
    main(["generate", "mine", "--text", "so it is", "--then", "tune"])
    assert "tune    [[" in capsys.readouterr().out


@pytest.mark.parametrize("setting", ["model.init=assets/zipped", "train.init=assets/zipped"])
def test_towers_are_joined_by_new_zips(towers, setting):
    with pytest.raises(ConfigError, match="are settings of `zipper train`"):
        zipper.Zipper.from_towers(**towers, overrides=[setting])
