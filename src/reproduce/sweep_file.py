"""Sweep files: runs at the points of a grid of settings, with several seeds.

A sweep file (configs/sweeps/NAME.yaml, configs/ablations/NAME.yaml) has these keys:

title, paper   title of the sweep, and the figure of the paper that it reproduces
config         base config of all runs
overrides      of all runs
grid           axes: a setting with its values, or a name with labelled overrides (also of `config`)
extra          further points outside the grid: labelled overrides (also of `config`)
seeds          seeds of every point; []: one run a point, with the seed of its config
needs          pre-trainings of towers: LABEL with `config` and overrides makes build/towers/LABEL
result         result file of a point (default: results/ablations/NAME/{point}.json)
x              axis of the plot's abscissa, other axes are lines; without it, every point is a bar
points         WER of the paper in %: label: [ASR, TTS], or with x line: {x: ASR}
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import GenericAlias
from typing import Any

import yaml
from omegaconf import OmegaConf

from reproduce import ROOT
from zipper.config import RunConfig, asset, load_config, setting_type, to_dict, upgraded
from zipper.config.yaml_types import Scalar, bare_scalar_loader, typed
from zipper.errors import ConfigError

SECTIONS = ("data", "codec", "model", "train", "decode", "evaluate", "asr_scorer")  # sections of a recipe
# Tower settings that still apply if a pre-trained tower sets the shape.
WITH_INIT = {"init", "frozen", "lora", "interval", "input_projection", "dropout"}
DERIVED = {"vocabulary", "codebooks", "specials", "pattern"}  # tower settings derived from the data
# Types of keys that are no text.
KINDS: dict[str, tuple[type, str]] = dict.fromkeys(
    ("overrides", "grid", "extra", "needs", "points"), (dict, "a mapping")
)
KINDS["seeds"] = (list, "a list of seeds")


@dataclass(frozen=True)
class Point:
    """Run of a sweep. labels: label of each axis."""

    name: str
    labels: dict[str, str]
    config: str
    overrides: list[str]


@dataclass(frozen=True)
class Sweep:
    """Content of a sweep file."""

    name: str
    file: str  # relative to the checkout
    title: str
    config: str
    grid: dict[str, Any]
    paper: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    needs: dict[str, Any] = field(default_factory=dict)
    result: str = ""
    x: str = ""
    points: dict[str, Any] = field(default_factory=dict)

    def runs(self) -> list[Point]:
        """All points with all seeds, ordered by seed, so that an interrupted sweep has comparable points."""
        axes = [[*_values(axis, of)] for axis, of in self.grid.items()]
        places = [dict(zip(self.grid, chosen, strict=True)) for chosen in itertools.product(*axes)]
        places += [{"extra": one} for one in _values("extra", self.extra)]
        seeds: list[int | None] = [*self.seeds] or [None]
        out = []
        for seed, place in itertools.product(seeds, places):
            labels = {axis: label for axis, (label, _) in place.items()}
            config, overrides = self._settings(settings for _, settings in place.values())
            parts = [*map(slug, labels.values()), *([] if seed is None else [f"seed{seed}"])]
            overrides += [] if seed is None else [f"seed={seed}"]
            out.append(Point("-".join(parts), labels, config, overrides))
        return out

    def pretrainings(self) -> list[Point]:
        """Pre-trainings of `needs`."""
        out = []
        for label, settings in self.needs.items():
            overrides = [f"{key}={_yaml(value)}" for key, value in settings.items() if key != "config"]
            name = f"pretrain-{label}"
            places = [f"name={name}", f"export=build/towers/{label}"]
            out.append(Point(name, {}, settings["config"], [*places, *overrides]))
        return out

    def result_file(self, point: Point) -> Path:
        """Result file of a point, before `zipper train` adds the task."""
        template = self.result or f"results/ablations/{self.name}/{{point}}.json"
        return Path(template.replace("{point}", point.name))

    def paper_at(self, labels: Sequence[str]) -> Any:
        """Figures of the paper for a point, or for a line of points; None if it has none."""
        return self.points.get(labels[0]) if labels else None

    def _settings(self, chosen: Iterable[dict[str, Any]]) -> tuple[str, list[str]]:
        """Config and overrides of a point; later settings replace earlier ones, of a mapping its entries."""
        merged: dict[str, Any] = {"config": self.config}
        for key, value in (item for settings in (self.overrides, *chosen) for item in settings.items()):
            earlier = merged.pop(key, None)  # the last of `train.lr` and `train: {lr: ...}` counts
            nested = isinstance(earlier, dict) and isinstance(value, dict)
            merged[key] = OmegaConf.to_container(OmegaConf.merge(earlier, value)) if nested else value
        config = merged.pop("config")
        return config, [f"{key}={_yaml(value)}" for key, value in merged.items()]


def _values(axis: str, of: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (label, overrides) of an axis."""
    if isinstance(of, dict):
        yield from ((str(label), settings or {}) for label, settings in of.items())
    else:
        yield from ((str(value), {axis: value}) for value in of)


def slug(label: str) -> str:
    """Label as part of a file name."""
    return re.sub(r"([^\w.]|_)+", "-", label.lower()).strip("-")


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()


def read_sweep(file: Path) -> Sweep:
    """Reads a sweep file. Raises ConfigError if it is invalid, or if two points have the same name."""
    if not (file := asset(file)).is_file():
        folders = (ROOT / "configs" / "sweeps", ROOT / "configs" / "ablations")
        known = ", ".join(sorted(one.stem for folder in folders for one in folder.rglob("*.yaml")))
        raise ConfigError(f"{file}: no such sweep. Available: {known}.")
    try:
        read = yaml.load(file.read_text(encoding="utf-8"), bare_scalar_loader(yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML ({str(error).splitlines()[0]}). Correct it.") from error
    if isinstance(read, dict):  # null: the default
        read = {key: one for key, one in read.items() if not (isinstance(one, Scalar) and one.value is None)}
    values = _by_type(read)
    keys = {f.name for f in fields(Sweep)} - {"name", "file"}
    if not isinstance(values, dict) or {"title", "config", "grid"} - {*values} or {*values} - keys:
        raise ConfigError(
            f"{file} is not a sweep file: it needs title, config and grid, and may have "
            f"{', '.join(sorted(keys - {'title', 'config', 'grid'}))}; it has {list(values or [])}."
        )
    for key, one in values.items():
        kind, name = KINDS.get(key, (str, "text"))
        if not isinstance(one, kind):
            raise ConfigError(f"{file}: {key}={one} must be {name}.")
    inside = file.resolve().is_relative_to(ROOT)
    where = str(file.resolve().relative_to(ROOT) if inside else file)
    sweep = Sweep(file.stem, where, **values)
    _check(file, sweep)
    return sweep


def _check(file: Path, sweep: Sweep) -> None:
    grid = sweep.grid
    if not all(isinstance(of, dict | list) and of for of in grid.values()):
        raise ConfigError(
            f"{file}: grid={grid} must hold axes, each with a list of values or labelled overrides."
        )
    for key, labelled in (("needs", sweep.needs), ("extra", sweep.extra)):
        if not all(isinstance(one, dict) for one in labelled.values()):
            raise ConfigError(f"{file}: {key}={labelled} must hold labels, each with overrides.")
    for label, settings in sweep.needs.items():
        if "config" not in settings:
            raise ConfigError(f"{file}: needs.{label} has no config. Name that of its pre-training.")
    if "{point}" not in (sweep.result or "{point}"):
        raise ConfigError(f"{file}: result={sweep.result} lacks {{point}}, so all runs would write one file.")
    if sweep.x and sweep.x not in grid:
        raise ConfigError(f"{file}: x={sweep.x} is not an axis of grid. Name one of {', '.join(grid)}.")
    for label, _ in _values(sweep.x, grid[sweep.x]) if sweep.x else ():
        try:
            float(label)
        except ValueError as error:
            raise ConfigError(
                f"{file}: x={sweep.x} holds {label!r}, which is not a number. Leave x out."
            ) from error
    names = [point.name for point in sweep.runs()]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{file}: two points are named {twice[0]}. Give them different labels.")


def _by_type(read: Any) -> Any:
    """Parses overrides and axes by the types of their settings; labels stay strings."""
    values = typed(Sweep, read)
    if isinstance(values, dict):
        parsers = {"overrides": _settings, "grid": _axes, "needs": _labelled, "extra": _labelled}
        values |= {key: of(read[key]) for key, of in parsers.items() if key in values}
    return values


def _settings(read: Any) -> Any:
    if not isinstance(read, dict):
        return typed(None, read)
    keys = typed(dict[str, Any], read)
    return {key: typed(setting_type(key), value) for key, value in zip(keys, read.values(), strict=True)}


def _labelled(read: Any) -> Any:
    if not isinstance(read, dict):
        return typed(None, read)
    labels = typed(dict[str, Any], read)
    return {label: _settings(one) for label, one in zip(labels, read.values(), strict=True)}


def _axes(read: Any) -> Any:
    if not isinstance(read, dict):
        return typed(None, read)
    axes = zip(typed(dict[str, Any], read), read.values(), strict=True)
    return {
        axis: _labelled(of) if isinstance(of, dict) else typed(GenericAlias(list, setting_type(axis)), of)
        for axis, of in axes
    }


def read_checked_sweep(file: Path, settings: Sequence[str] = ()) -> Sweep:
    """Reads a sweep file and loads the config of every run. settings: overrides for all runs.

    Raises ConfigError if a config is invalid, or a setting would replace what tells the runs apart.
    """
    sweep = read_sweep(file)
    own = {"name", "result", *sweep.grid, *(["seed"] if sweep.seeds else [])}
    for one in settings:
        if (key := one.partition("=")[0]) in own:
            raise ConfigError(
                f"{one}: {sweep.file} gives each run its own {key}. Leave it out; --only chooses runs."
            )
    for point in (*sweep.pretrainings(), *sweep.runs()):
        try:
            load_config(asset(point.config), point.overrides)
        except ConfigError as error:
            raise ConfigError(f"{file}, {point.name}: {error}") from error
    return sweep


def differences(saved: dict[str, Any], cfg: RunConfig) -> list[str]:
    """Differences between the recipe of a saved config and another config, as "key=saved, not other".

    Ignores settings that the saved config lacks, and those that a run derives from its data.
    """
    old, new = (_recipe(upgraded(one), cfg) for one in (saved, json.loads(json.dumps(to_dict(cfg)))))
    return [f"{key}={old[key]}, not {new[key]}" for key in new if key in old and old[key] != new[key]]


def _recipe(config: dict[str, Any], cfg: RunConfig) -> dict[str, Any]:
    """Settings of a recipe by dotted key, without derived ones. cfg: tells which towers have init."""
    out: dict[str, Any] = {"seed": config["seed"]}
    for section in SECTIONS:
        out |= {f"{section}.{key}": value for key, value in config.get(section, {}).items()}
    for name in [name for name in out if name.startswith("decode.")]:
        out |= {f"{name}.{key}": value for key, value in out.pop(name).items()}
    zips, towers = out.pop("model.zip", {}), out.pop("model.towers", {})
    names = cfg.model.modalities
    if cfg.model.kind == "zipper":
        out |= {f"model.zip.{key}": value for key, value in zips.items()}
    if cfg.model.kind == "single_decoder":  # it uses the layers of the first tower
        names = names[:1]
    for name in names:
        tower = towers.get(name, {})
        own = WITH_INIT if cfg.model.towers[name].init else {*tower} - DERIVED
        out |= {f"model.towers.{name}.{key}": value for key, value in tower.items() if key in own}
    return out
