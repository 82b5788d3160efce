"""Text settings take the characters as they stand, wherever they are read."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reproduce import ROOT
from reproduce.sweep_file import read_sweep
from zipper.config import DataConfig, RunConfig, describe, load_config, save_config, with_overrides
from zipper.config.yaml_types import read_override, type_at
from zipper.errors import ConfigError

# What YAML 1.1 takes for numbers, times, or truth.
OTHERWISE = ["007", "010", "1_000", "1.10", "no", "on", "y", "7541e27", "1:30", "0x1F", "2026-11-26", "1."]


def test_a_name_is_what_was_written(tmp_path):
    for text in ("007", "7541e27", "no", "1:30", "run #2", "a: b", "[a", "null", "~"):
        cfg = load_config(None, [f"name={text}"])
        assert cfg.name == with_overrides(cfg, [f"name={text}"]).name == text
        save_config(cfg, tmp_path / "config.yaml")
        assert load_config(tmp_path / "config.yaml") == cfg


@pytest.mark.parametrize("text", ["007", "7541e27", "no"])
def test_text_stands_in_files_lists_and_sections_as_well(text, tmp_path, monkeypatch):
    """Without quotes, as a user writes it."""
    data, towers = f"{{folder: {text}, splits: {{train: [{text}, b]}}}}", f"{{text: {{init: {text}}}}}"
    (tmp_path / "configs" / "data").mkdir(parents=True)
    (tmp_path / "configs" / "data" / "mine.yaml").write_text(data, encoding="utf-8")
    file = tmp_path / "a.yaml"
    file.write_text(f"name: {text}\ndata: {data}\nmodel: {{towers: {towers}}}", encoding="utf-8")
    monkeypatch.setattr("zipper.config.loading.ROOT", tmp_path)
    for cfg in (
        load_config(file),
        load_config(None, [f"name={text}", f"data={data}", f"model.towers.text.init={text}"]),
        load_config(None, [f"name={text}", "data=mine", f"model.towers={towers}"]),
    ):
        found = (cfg.name, cfg.data.folder, *cfg.data.splits["train"], cfg.model.towers["text"].init)
        assert found == (text, text, text, "b", text)


def test_every_setting_of_text_takes_the_characters():
    """Those of a few known values among them: what is refused is what was written."""
    keys = [key.replace("NAME", "text") for key, _, _ in describe()]
    of = {key: type_at(RunConfig, key.split(".")) for key in keys}
    wanted = [
        key
        for key in keys
        if ("str" in str(of[key]) or "Literal" in str(of[key])) and not re.search("list|dict", str(of[key]))
    ]
    assert len(wanted) > 25
    for text in OTHERWISE:
        assert [key for key in wanted if read_override(of[key], text) != text] == []


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1))
@example("'a' and 'b'")
@example("null ")
def test_any_text_comes_through(text):
    if text != "null" and text[0] not in "'\"":
        assert read_override(type_at(DataConfig, ["folder"]), text) == text


@pytest.mark.parametrize(
    ("word", "value"), [("'7'", "7"), ('"a b"', "a b"), ("''", ""), ("null", None), ("", None)]
)
def test_quotes_and_null_keep_their_meaning(word, value):
    assert read_override(type_at(DataConfig, ["folder"]), word) == value


def test_what_is_no_text_is_read_as_before():
    cfg = load_config(None, ["train.lr=1e-3", "data.only=null", "model.zip.whiten=yes", "data.rates=[1,1.5]"])
    found = (cfg.train.lr, cfg.data.only, cfg.model.zip.whiten, cfg.data.rates)
    assert found == (0.001, None, True, (1.0, 1.5))


def test_nothing_is_put_in_the_place_of_a_dollar_sign(tmp_path):
    (tmp_path / "a.yaml").write_text("name: ${oc.env:HOME}", encoding="utf-8")
    for file, words in ((None, ["name=${seed}"]), (tmp_path / "a.yaml", [])):
        with pytest.raises(ConfigError, match=r"name=\$\{.*is not supported"):
            load_config(file, words)


@pytest.mark.parametrize("text", ["007", "7541e27", "no"])
def test_a_sweep_takes_text_as_it_stands(text, tmp_path):
    lines = [f"title: {text}", "config: configs/asr.yaml", "grid:", f"  data.folder: [{text}]"]
    lines.append(f"  what: {{{text}: {{model.towers.text.init: {text}}}, b: {{data.only: 3}}}}")
    lines.append(f"overrides: {{log.project: {text}, train.lr: 1.0e-3}}")
    (tmp_path / "mine.yaml").write_text("\n".join(lines), encoding="utf-8")
    found = read_sweep(tmp_path / "mine.yaml")
    assert found.title == text
    point = found.runs()[0]
    assert point.labels == {"data.folder": text, "what": text}
    cfg = load_config(ROOT / point.config, point.overrides)
    assert (cfg.log.project, cfg.data.folder, cfg.model.towers["text"].init) == (text, text, text)
    assert (cfg.train.lr, found.grid["what"]["b"]) == (0.001, {"data.only": 3})
