"""A grid over any settings, seeds included: runs as points of axes.

A grid file (configs/ablations/NAME.yaml) has these keys:

title, paper   what is asked, and which figure of the paper asks it
config, words  the config that all runs start from, and settings of all of them
grid           axes: a setting with its values, or any name with named settings (`config` among them)
seeds          of every point
x              the axis that is drawn to the right, others are lines; none: a bar for every point
points         what the paper found, % of WER: label: [recognition, speech], or with x line: {x: recognition}
"""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import GenericAlias
from typing import Any

import yaml

from reproduce import ROOT
from zipper.config import RunConfig, asset, load_config, setting_type, to_dict
from zipper.config.yaml_types import bare_scalar_loader, typed
from zipper.errors import ConfigError

SECTIONS = ("data", "codec", "model", "train", "decode", "evaluate", "judge")  # of a recipe, with the seed
# Of a pre-trained tower, which gives its own shape.
GIVEN = {"init", "frozen", "lora", "interval", "input_projection", "dropout"}
FOUND = {"vocabulary", "codebooks", "specials", "pattern"}  # of any tower, by the run itself


@dataclass(frozen=True)
class Point:
    """One run. labels: by axis, as they are shown."""

    name: str
    labels: dict[str, str]
    config: str
    overrides: list[str]
    seed: int


@dataclass(frozen=True)
class Ablation:
    """A grid file."""

    name: str
    file: str  # below the project's root
    title: str
    config: str
    grid: dict[str, Any]
    paper: str = ""
    words: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    x: str = ""
    points: dict[str, Any] = field(default_factory=dict)

    def runs(self) -> list[Point]:
        """Every point of the grid with every seed: the first seed of all, then the next, so that a grid that
        was cut off can be compared."""
        out = []
        for seed, chosen in itertools.product(
            self.seeds, [*itertools.product(*(_values(axis, of) for axis, of in self.grid.items()))]
        ):
            labels = {axis: label for axis, (label, _) in zip(self.grid, chosen, strict=True)}
            config, merged = self.config, dict(self.words)
            for _, settings in chosen:
                merged.update({key: value for key, value in settings.items() if key != "config"})
                config = settings.get("config", config)
            slug = "-".join(_slug(label) for label in labels.values())
            overrides = [f"{key}={_yaml(value)}" for key, value in merged.items()]
            out.append(Point(f"{slug}-seed{seed}", labels, config, [*overrides, f"seed={seed}"], seed))
        return out


def _values(axis: str, of: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(label, settings) of an axis."""
    if isinstance(of, dict):
        yield from ((str(label), settings or {}) for label, settings in of.items())
    else:
        yield from ((str(value), {axis: value}) for value in of)


def _number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def _slug(label: str) -> str:
    """As a part of a file's name."""
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-")


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()


def read_ablation(file: Path) -> Ablation:
    """Raises ConfigError where it is no grid file, or two points have one name."""
    if not file.is_file():
        there = ", ".join(sorted(one.stem for one in (ROOT / "configs" / "ablations").rglob("*.yaml")))
        raise ConfigError(f"{file}: no such grid. There are: {there}.")
    try:
        values = _by_type(yaml.load(file.read_text(encoding="utf-8"), bare_scalar_loader(yaml.SafeLoader)))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no YAML ({str(error).splitlines()[0]}). Mend it.") from error
    known = {f.name for f in fields(Ablation)} - {"name", "file"}
    if not isinstance(values, dict) or {"title", "config", "grid"} - {*values} or {*values} - known:
        raise ConfigError(
            f"{file} is no grid: it needs title, config and grid, and may have "
            f"{', '.join(sorted(known - {'title', 'config', 'grid'}))}; it has {list(values or [])}."
        )
    inside = file.resolve().is_relative_to(ROOT)
    where = str(file.resolve().relative_to(ROOT) if inside else file)
    ablation = Ablation(file.stem, where, **values)
    grid = ablation.grid
    if not isinstance(grid, dict) or not all(isinstance(of, dict | list) and of for of in grid.values()):
        raise ConfigError(
            f"{file}: grid={grid} is to hold axes, each with a list of values or named settings."
        )
    if ablation.x and ablation.x not in grid:
        raise ConfigError(f"{file}: x={ablation.x} is no axis of the grid. Name one of {', '.join(grid)}.")
    for label, _ in _values(ablation.x, grid[ablation.x]) if ablation.x else ():
        if not _number(label):
            raise ConfigError(f"{file}: x={ablation.x} holds {label!r}, which is no number. Leave x out.")
    names: set[str] = set()
    for point in ablation.runs():
        if point.name in names:
            raise ConfigError(f"{file}: two points are named {point.name}. Give them labels that differ.")
        names.add(point.name)
    return ablation


def _by_type(read: Any) -> Any:
    """Words and axes by the settings that they set, labels as they stand."""
    values = typed(Ablation, read)
    if isinstance(values, dict):
        values |= {key: of(read[key]) for key, of in (("words", _settings), ("grid", _axes)) if key in values}
    return values


def _settings(read: Any) -> Any:
    if not isinstance(read, dict):
        return typed(None, read)
    keys = typed(dict[str, Any], read)
    return {key: typed(setting_type(key), value) for key, value in zip(keys, read.values(), strict=True)}


def _axes(read: Any) -> Any:
    if not isinstance(read, dict):
        return typed(None, read)
    axes = zip(typed(dict[str, Any], read), read.values(), strict=True)
    return {
        axis: {
            label: _settings(one) for label, one in zip(typed(dict[str, Any], of), of.values(), strict=True)
        }
        if isinstance(of, dict)
        else typed(GenericAlias(list, setting_type(axis)), of)
        for axis, of in axes
    }


def read_checked_ablation(file: Path) -> Ablation:
    """A grid whose every run could start. Raises ConfigError where a point of it is no config."""
    ablation = read_ablation(file)
    for point in ablation.runs():
        try:
            load_config(asset(point.config), point.overrides)
        except ConfigError as error:
            raise ConfigError(f"{file}, {point.name}: {error}") from error
    return ablation


def differences(saved: dict[str, Any], cfg: RunConfig) -> list[str]:
    """In which settings of its recipe a run's saved config differs from another one: "key=saved, not other".
    What has been added to the settings since is left out, and what a run finds out by itself."""
    old, new = _recipe(saved, cfg), _recipe(json.loads(json.dumps(to_dict(cfg))), cfg)
    return [f"{key}={old[key]}, not {new[key]}" for key in new if key in old and old[key] != new[key]]


def _recipe(config: dict[str, Any], cfg: RunConfig) -> dict[str, Any]:
    """Settings as SECTION.key, those of zip and towers a level deeper, without what a run settles. cfg: which
    of the towers are pre-trained, and so give their own shape."""
    out = {"seed": config["seed"]}
    for section in SECTIONS:
        for key, value in config.get(section, {}).items():
            if section == "model" and key == "zip":
                if cfg.model.kind == "zipper":  # a single decoder has none
                    out |= {f"model.zip.{name}": one for name, one in value.items()}
            elif section == "model" and key == "towers":
                for name in cfg.model.modalities:
                    out |= _tower(f"model.towers.{name}", value.get(name, {}), cfg, name)
            elif (section, key) != ("data", "tokenizer"):
                out[f"{section}.{key}"] = value
    return out


def _tower(prefix: str, tower: dict[str, Any], cfg: RunConfig, name: str) -> dict[str, Any]:
    if cfg.model.kind == "single_decoder" and name != cfg.model.modalities[0]:
        return {}  # it has the layers of the first
    own = GIVEN if cfg.model.towers[name].init else {*tower} - FOUND
    return {f"{prefix}.{key}": value for key, value in tower.items() if key in own}
