"""Settings: three layers, clear errors, nothing silently accepted."""

import json
import math
import re
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reproduce import ROOT
from zipper.cli import main, parser
from zipper.config import RunConfig, TowerConfig, describe, flat, from_dict, load_config, save_config, to_dict
from zipper.errors import ConfigError

KEYS = [key.replace("NAME", "text") for key, _, _ in describe()]


def test_words_win_over_the_file_and_the_file_over_defaults(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("train: {lr: 0.5, steps: 7}\n", encoding="utf-8")
    cfg = load_config(file, ["train.steps=9"])
    assert (cfg.train.lr, cfg.train.steps, cfg.train.clip) == (0.5, 9, 1.0)


def test_a_section_file_stands_between_the_file_and_the_words(monkeypatch, tmp_path):
    (tmp_path / "configs" / "data").mkdir(parents=True)
    (tmp_path / "configs" / "data" / "small.yaml").write_text("{train: 10, dev: 2}", encoding="utf-8")
    monkeypatch.setattr("zipper.config.loading.ROOT", tmp_path)
    cfg = load_config(None, ["data=small", "data.dev=3"])
    assert (cfg.data.train, cfg.data.dev, cfg.data.test) == (10, 3, 400)
    with pytest.raises(ConfigError, match=r"data=large.*Available: small"):
        load_config(None, ["data=large"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian.steps=3"], "trian.*Did you mean: 'train'"),
        (["train.step=3"], "step.*Did you mean: 'steps'"),
        (["model.towers.speach.width=64"], r"model\.towers\.speach: no such modality.*Did you mean 'speech'"),
        (["model.modalities=[text,speech,music]"], r"names \['music'\], but model\.towers has no such tower"),
        (["model.towers.text.interval=9"], "interval=9 leaves no zip in a tower of layers=6.*1 to 6"),
        (["model.towers.text.interval=0"], "interval=0 leaves no zip"),
        (["model.towers.text.heads=5"], "heads=5 does not divide width=128"),
        (["model.towers.text.kv_heads=3"], "kv_heads=3 does not divide heads=4"),
        (["model.towers.text={width: 12, heads: 4}"], "odd"),
        (["model.zip.heads=48"], r"model\.zip\.heads=48 does not divide model\.towers\.text\.width=128"),
        (["model.zip.heads=0"], r"model\.zip\.heads=0 must be at least 1"),
        (["model.towers.text.dropout=2"], r"dropout=2\.0 must be at least 0 and less than 1"),
        (["evaluate.dev_utterances=0"], r"evaluate\.dev_utterances=0"),
        (["log.every=0"], r"log\.every=0"),
        (["train.workers=-1"], r"train\.workers=-1"),
        (["train.precision=16"], "Invalid value '16', expected one of"),
        (["train.tasks.asr=-1"], "must not be negative"),
        (["train.tasks.mt=1"], "no such modality 'mt'"),
        (["train.steps=0"], r"train\.steps=0 must be at least 1"),
        (["train.steps=700"], r"last 200 steps would be neither validated nor saved.*train\.steps=500"),
        (["train.steps=many"], "'many'"),
        (["data.train=0"], "every split needs an utterance"),
        (["data.only=5000"], r"data\.only=5000 must lie between 1 and data\.train=4000"),
        (["data.rates=[2,1]"], "the slowest and the fastest"),
        (["codec.name=opus"], "Invalid value 'opus'"),
        (["codec.name=encodec_24khz"], "bandwidth_kbps is not set"),
        (["steps"], "'steps' is not key=value"),
    ],
)
def test_settings_that_cannot_work_name_the_key_the_value_and_the_fix(words, says):
    with pytest.raises(ConfigError, match=says):
        load_config(None, words)


def test_a_missing_config_lists_those_that_exist(tmp_path):
    with pytest.raises(ConfigError, match=r"no such config.*asr"):
        load_config(tmp_path / "nothing.yaml")


def test_yaml_that_is_none_is_an_error_too(tmp_path):
    (tmp_path / "a.yaml").write_text("train: {steps: [", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a\.yaml"):
        load_config(tmp_path / "a.yaml")


def test_saved_and_loaded_configs_are_equal(tmp_path):
    cfg = load_config(ROOT / "configs" / "asr.yaml", ["train.lr=0.25", "data.rates=[1.0,1.5]"])
    save_config(cfg, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == cfg
    assert from_dict(to_dict(cfg)) == cfg


@given(
    layers=st.integers(1, 12),
    width=st.integers(1, 64),
    heads=st.integers(0, 9),
    kv=st.integers(0, 9),
    n=st.integers(0, 13),
)
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
    "0",
    "-1",
    "1",
    "3",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "x",
    "[]",
    "[1,2]",
    "{}",
    "null",
    "true",
    "''",
    "1e400",
]


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


def test_a_users_mistake_ends_with_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", str(ROOT / "configs" / "asr.yaml"), "train.stepz=3"])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: Key 'stepz'")
    assert "Traceback" not in err


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


def test_defaults_alone_are_valid():
    assert isinstance(load_config(None), RunConfig)


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
    assert (train.schedule, train.warmup, train.hide, train.codebook_weights) == ("constant", 0, 0, [])
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
