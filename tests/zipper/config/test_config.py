"""Settings: three layers, clear errors, nothing silently accepted."""

import json
import math
import re
import subprocess
from dataclasses import fields, is_dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reproduce import ROOT
from zipper.cli import parser
from zipper.config import (
    RunConfig,
    SamplingConfig,
    TowerConfig,
    ZipConfig,
    describe,
    flat,
    from_dict,
    load_config,
    to_dict,
)  # fmt: skip
from zipper.errors import ConfigError

KEYS = [key.replace("NAME", "text") for key, _, _ in describe()]


def test_settings_are_read_by_their_older_names(tmp_path):
    file = tmp_path / "old.yaml"
    file.write_text(
        "train: {hide: 0.28, recompute: true}\nmodel: {switch: true}\njudge: {kind: wav2vec2}\n",
        encoding="utf-8",
    )
    words = ["train.hide_span=4", "judge.model=base", "evaluate.shuffled=false"]
    old, new = load_config(file, words), load_config(None, [
        "asr_scorer={kind: wav2vec2, model: base}", "evaluate.mismatched=false",
        "train.history_mask=0.28", "train.activation_checkpointing=true", "model.next_modality_head=true",
        "train.history_mask_span=4",
    ])  # fmt: skip
    assert old == new
    values = to_dict(new)
    values["train"]["hide"] = values["train"].pop("history_mask")
    values["judge"] = values.pop("asr_scorer")
    assert from_dict(values) == new
    inline = ["model={switch: true}", "train={hide: 0.28, hide_span: 4, recompute: true}"]
    inline += ["judge={kind: wav2vec2, model: base}", "evaluate={shuffled: false}"]
    assert load_config(None, inline) == new


def test_a_stored_config_without_a_default_tower_stays_without_it():
    values = to_dict(load_config(None, ["train.tasks={text: 1}"]))
    del values["model"]["towers"]["speech"]
    values["model"]["modalities"] = ["text"]
    values["decode"] = {"text": values["decode"]["text"]}
    again = from_dict(values)
    assert {*again.model.towers} == {"text"}
    assert to_dict(again)["model"] == values["model"]


def test_words_win_over_the_file_and_the_file_over_defaults(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("train: {lr: 0.5, steps: 7}\n", encoding="utf-8")
    cfg = load_config(file, ["train.steps=9"])
    assert (cfg.train.lr, cfg.train.steps, cfg.train.clip) == (0.5, 9, 1.0)


def test_a_section_file_stands_between_the_file_and_the_words(monkeypatch, tmp_path):
    (tmp_path / "configs" / "data").mkdir(parents=True)
    (tmp_path / "configs" / "data" / "small.yaml").write_text("{train: 10, dev: 2}", encoding="utf-8")
    monkeypatch.setattr("zipper.config.loading.ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    cfg = load_config(None, ["data=small", "data.dev=3"])
    assert (cfg.data.train, cfg.data.dev, cfg.data.test) == (10, 3, 400)
    with pytest.raises(ConfigError, match=r"data=large.*Available: small"):
        load_config(None, ["data=large"])
    mine = tmp_path / "mine"
    (mine / "configs" / "data").mkdir(parents=True)
    (mine / "configs" / "data" / "own.yaml").write_text("{train: 5}", encoding="utf-8")
    monkeypatch.chdir(mine)  # a project beside an installed package
    assert load_config(None, ["data=own"]).data.train == 5
    assert load_config(None, ["data=small"]).data.train == 10
    with pytest.raises(ConfigError, match=r"data=large.*Available: own, small"):
        load_config(None, ["data=large"])


@given(st.integers(1, 12), st.integers(1, 64), st.integers(0, 9), st.integers(0, 9), st.integers(0, 13))
@settings(max_examples=300)
def test_any_tower_is_valid_or_a_config_error(layers, width, heads, kv, n):
    good = heads >= 1 and kv >= 1 and width % heads == 0 and (width // heads) % 2 == 0
    good = good and heads % kv == 0 and 1 <= n <= layers
    try:
        TowerConfig(layers=layers, width=width, heads=heads, kv_heads=kv, interval=n)
    except ConfigError:
        assert not good
    else:
        assert good


NASTY = [
    "0", "-1", "1", "3", "1.5", "nan", "inf", "-inf", "x", "[]", "[1,2]", "{}", "null", "true", "''", "1e400",
]  # fmt: skip


@example([("data.rates", "{}")])  # a dict for a tuple is a TypeError of the merge, not an OmegaConf error
@given(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(NASTY)), min_size=1, max_size=4))
@settings(max_examples=150)
def test_any_words_make_a_config_that_saves_or_a_config_error(words):
    try:
        cfg = load_config(None, [f"{key}={value}" for key, value in words])
    except ConfigError:
        return
    assert from_dict(json.loads(json.dumps(to_dict(cfg)))) == cfg
    for one in flat(to_dict(cfg)).values():
        for number in one if isinstance(one, list) else [one]:
            assert not (isinstance(number, float) and not math.isfinite(number)), words


def test_help_shows_every_setting_with_its_meaning_and_default():
    rows = list(describe())
    assert len(rows) > 70
    assert all(meaning for _, _, meaning in rows)
    text = parser().format_help()
    for key, default, meaning in rows:
        assert f"  {key} " in text
        assert f"{meaning} (default: {default})" in text


def test_commands_of_the_makefile_exist():
    """Every `python -m zipper X FILE` is a command with a file that is there."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"\$\(RUN\) ([a-z-]+) (\S+)", makefile)
    assert len(named) > 4
    known = parser().format_help()
    for command, file in named:
        assert re.search(rf"^    {command}\s", known, re.M), command
        made_later = file.startswith(("build/", "$(VENV)/"))
        assert made_later or [*ROOT.glob(re.sub(r"\$(\([^)]*\)|[*1])", "*", file))], file


def test_make_help_lists_all_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    listed = subprocess.run(
        ["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8"
    ).stdout
    for target in re.findall(r"^\.PHONY: (.*)", makefile, re.M)[0].split():
        assert f"  {target} " in listed


def test_the_papers_settings_stay_the_papers():
    """Section 3.1 and 4.1: a change of our defaults must not reach them."""
    cfg = load_config(ROOT / "configs" / "paper.yaml")
    zips, towers = cfg.model.zip, cfg.model.towers
    assert (zips.projection_depth, zips.gate_init, zips.position, zips.diagonal) == (3, 0, "none", 0)
    assert not zips.whiten
    assert {tower.input_projection for tower in towers.values()} == {"paper"}
    assert (towers["text"].frozen, towers["speech"].frozen) == (True, False)
    train = cfg.train
    assert (train.optimiser, train.betas, train.weight_decay, train.gate_lr) == ("adamw", (0.9, 0.99), 0, 1)
    assert (train.schedule, train.warmup, train.history_mask, train.codebook_weights) == (
        "constant",
        0,
        0,
        [],
    )
    assert train.tasks == {"asr": 1.0, "tts": 1.26}


def test_numbers_that_no_model_can_hold_are_refused():
    """Before they divide, or are raised to a power."""
    for word in (
        "seed=-1", "seed=4294967296", "data.subwords=0", "codec.batch_seconds=0", "codec.codebooks=0",
        "model.towers.text.width=0", "model.towers.text.hidden=-1", "model.towers.text.head_size=-2",
        "model.towers.text.rope_base=0", "model.towers.text.rope_base=1e-320",
        "model.towers.text.norm_eps=-1",
        "model.towers.text.rope_scaling=[1e-45]", "model.zip.gate_init=1e30", "model.zip.diagonal=1e30",
        "train.gate_lr=-1", "train.weight_decay=-1", "train.lr=1e300", "train_codec.ratios=[0,4]",
        "train_codec.seconds=1e-9",
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=word.partition("=")[0].split(".")[-1]):
            print(load_config(None, [word]))


SECTIONS = [
    TowerConfig, *(type(getattr(RunConfig(), f.name)) for f in fields(RunConfig) if is_dataclass(f.type)),
    SamplingConfig, ZipConfig,
]  # fmt: skip


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_declared_range_is_enforced_and_excludes_nan(section):
    for f in fields(section):
        limits = f.metadata.get("limits")
        if not limits or not str(limits):
            continue
        default = f.default_factory() if callable(f.default_factory) else f.default
        outside = [math.nan, limits.above, limits.below]
        outside += [limits.at_least - 1] if limits.at_least is not None else []
        outside += [limits.at_most + 1] if limits.at_most is not None and limits.at_most < 1e20 else []
        for bad in outside:
            value = {"a": bad} if isinstance(default, dict) else [bad] if isinstance(default, list) else bad
            value = (1.0, bad) if isinstance(default, tuple) else value
            if bad is not None:
                with pytest.raises(ConfigError, match=rf"{section.KEY}\.{f.name}"):
                    section(**{f.name: value})


@pytest.mark.parametrize(
    ("words", "reason", "instead"),
    [
        (["data.speeds=[1,1.0]"], "each once", "data.speeds=[0.9,1]"),
        (["data.corpus=text+text"], "names a corpus twice", "data.corpus=text+librispeech"),
        (["data.corpus=manifest+text"], "file of a manifest", "data.corpus=manifest+spoken"),
        (["codec={name: mimi, bandwidth_kbps: 1.1, codebooks: 2}"], "follow", "codec.codebooks=null"),
        (["codec.semantic=x"], "is for codec.name", "codec.semantic=null"),
        (["train.guide=0.1"], "needs the alignment", "train.ctc=0.3"),
        (["train.ctc=1", "train.guide=1", "train.compile=true"], "do not hand out", "train.guide=0"),
        (["train.mask=0.1", "train.prompt_weight=1"], "loss weight below 1", "train.prompt_weight=0.5"),
        (["train.quantise=true"], "half precision", "export_bits=4"),
        (["export_bits=5"], "give 16, 8 or 4", "export_bits=8"),
        (["train.precision=bf16-products", "train.compile=true"], "not work together", "train.compile=false"),
        (["train.optimiser=adafactor", "train.strategy=fsdp2"], "whole matrices", "train.strategy=ddp"),
        (["train.tasks={speech>text>speech: 1}"], "modality twice", "train.tasks={speech>text>speech: 0}"),
        (["train.tasks={asr: 1, tts: 0}", "evaluate.tasks=[tts]"], "is not trained", "train.tasks.tts=0.1"),
        (
            ["train.tasks={asr: 1, tts: 0}", "decode.text={temperature: 1, candidates: 2}"],
            "finds the speech again",
            "train.tasks.tts=0.1",
        ),
        (["train_codec.codes=1000"], "not a power of 2", "train_codec.codes=512"),
        (["train_codec.decoder_only=true"], "whose codes stay", "train_codec.init=x"),
        (["train_codec={semantic: whisper, seconds: 0.81}"], "Give 0.8, for", "train_codec.seconds=0.84"),
        (["train_codec.semantic_ctc=5"], "needs an encoder", "train_codec.semantic=whisper"),
        (["train_codec={semantic: whisper, semantic_layers: 5}"], "1 to 4", "train_codec.semantic=hubert"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused_and_others_are_not(words, reason, instead):
    with pytest.raises(ConfigError, match=re.escape(reason)):
        load_config(None, words)
    load_config(None, [*words, instead])


def test_what_is_written_may_be_named_from_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.yaml").write_text("build: ~/b\nexport: ~/e\ntrain_codec: {out: ~/c}\n", encoding="utf-8")
    cfg = load_config(tmp_path / "own.yaml", ["result=~/r.json"])
    home = [cfg.build, cfg.export, cfg.train_codec.out, cfg.result]
    assert home == [str(tmp_path / name) for name in ("b", "e", "c", "r.json")]
