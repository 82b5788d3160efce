"""Config from three layers: defaults in the dataclasses < YAML file < `key=value` overrides.

An override that names a whole section, such as `data=NAME`, loads configs/data/NAME.yaml on top of the YAML
file and below the other overrides. No DictConfig leaves this module.
"""

import copy
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zipper.config.fields import check_settings
from zipper.config.schema import RunConfig
from zipper.config.yaml_types import load_typed, read_override, type_at
from zipper.errors import ConfigError, DataError

# Names of sections and settings in older configs, results and checkpoints.
RENAMED = {
    "judge": "asr_scorer", "evaluate.shuffled": "evaluate.mismatched",
    "evaluate.listened": "evaluate.audio_samples",
    "train.hide": "train.history_mask", "train.hide_span": "train.history_mask_span",
    "train.recompute": "train.activation_checkpointing", "model.switch": "model.next_modality_head",
}  # fmt: skip
ROOT = Path(__file__).resolve().parents[1]  # package folder, with the shipped models and default configs


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Config of a YAML file (None: defaults) with overrides. path: also that of a shipped config.

    Raises ConfigError that names the key, with a suggestion if a known key is similar.
    """
    if path is not None and not (path := asset(path)).is_file():
        raise ConfigError(
            f"{path}: no such config. Available: {_names(Path('configs'))} (configs/NAME.yaml)."
        )
    base = {} if path is None else _read(path)
    return _merged(base, overrides, f"{path or 'the defaults'}{', ' if overrides else ''}")


def with_overrides(cfg: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Copy of a config with overrides. Raises ConfigError as `load_config`."""
    found = _merged(to_dict(cfg), overrides)
    known = {*cfg.model.towers, *found.model.modalities}  # the defaults have text and speech
    towers = {name: tower for name, tower in found.model.towers.items() if name in known}
    return replace(found, model=replace(found.model, towers=towers))


def _merged(base: Any, overrides: Sequence[str], source: str = "") -> RunConfig:
    """Checked config of the defaults, `base` and overrides. source: where `base` is from, for errors."""
    try:
        merged = OmegaConf.merge(_defaults(), base, *_layers(overrides))
        values = OmegaConf.to_container(merged, throw_on_missing=True)
        check_settings(RunConfig, cast(dict[str, Any], values))  # knows the names of the towers
        return _written_at(cast(RunConfig, OmegaConf.to_object(merged)))
    except (OmegaConfBaseException, yaml.YAMLError, TypeError) as error:  # TypeError: a dict for a tuple
        raise ConfigError(f"{str(error).splitlines()[0]} (in {source}{' '.join(overrides)})") from error


def _written_at(cfg: RunConfig) -> RunConfig:
    """Config whose paths to write have no leading ~. Those to read are expanded where they are read."""
    home = {one: one and str(expanded(one)) for one in (cfg.result, cfg.export)}
    build, codec = str(expanded(cfg.build)), replace(cfg.train_codec, out=str(expanded(cfg.train_codec.out)))
    return replace(cfg, build=build, result=home[cfg.result], export=home[cfg.export], train_codec=codec)


@cache
def _defaults() -> DictConfig:
    return cast(DictConfig, OmegaConf.structured(RunConfig))


def check_list(overrides: Sequence[str]) -> None:
    """Raises ConfigError if overrides are a string, whose letters would each be one."""
    if isinstance(overrides, str):
        raise ConfigError(f"overrides={overrides!r}: give a list of settings, such as [{overrides!r}].")


def _layers(overrides: Sequence[str]) -> list[Any]:
    """Config layers of overrides: section files (`data=NAME`) first, then `key=value`, read by its type."""
    check_list(overrides)
    sections = {f.name: f.type for f in fields(RunConfig) if is_dataclass(f.type)}
    layers, plain = [], OmegaConf.create()
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"{override!r} is not key=value. See `python -m zipper --help` for the keys.")
        for old, new in RENAMED.items():
            if f"{key}.".startswith(f"{old}."):
                key = new + key.removeprefix(old)
        if key in sections and value and value[0] not in "{[":
            layers.append(OmegaConf.create({key: _read(_section_file(key, value), sections[key])}))
            continue
        read = read_override(setting_type(key), value)
        _reject_interpolation({key: read})
        OmegaConf.update(plain, key, read)
    # An inline dict, model={switch: true}, may hold older names, too.
    return [*layers, OmegaConf.create(_renamed(cast(dict[str, Any], OmegaConf.to_container(plain))))]


def overridden_keys(overrides: Sequence[str]) -> set[str]:
    """Dotted keys that overrides set, including those of section files."""
    return {*flat(OmegaConf.to_container(OmegaConf.merge(*_layers(overrides))))}


def _reject_interpolation(values: dict[str, Any]) -> None:
    """Raises ConfigError on `${...}`, for which OmegaConf would insert another setting or the environment."""
    for key, value in flat(values).items():
        if "${" in str(value):
            raise ConfigError(f"{key}={value}: ${{...}} is not supported. Write the value.")


def setting_type(key: str) -> Any:
    """Type of the setting with a dotted key; None if it does not exist."""
    return type_at(RunConfig, re.findall(r"[^.\[\]]+", key))


def _read(path: Path, cls: Any = RunConfig) -> Any:
    try:
        read = load_typed(path.read_text(encoding="utf-8"), cls) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"{path}{where} is not valid YAML ({problem}). Write keys with values.") from error
    if not isinstance(read, dict):
        known = ", ".join(f.name for f in fields(RunConfig))
        raise ConfigError(f"{path} holds a list or a string instead of keys with values. Keys: {known}.")
    _reject_interpolation(read)
    return OmegaConf.create(_renamed(read))


def from_dict(values: dict[str, Any]) -> RunConfig:
    """Config from a dict; inverse of `to_dict`. Accepts those of older checkpoints and exports."""
    return copy.deepcopy(_from_json(json.dumps(values)))


@lru_cache(maxsize=64)  # reading a model reads its config several times, and merging takes up to 0.08 s
def _from_json(text: str) -> RunConfig:
    values = upgraded(json.loads(text))
    merged = OmegaConf.merge(_defaults(), values)
    if towers := values.get("model", {}).get("towers"):
        for name in {*merged.model.towers} - {*towers}:
            del merged.model.towers[name]  # a default, which the config is without
    return cast(RunConfig, OmegaConf.to_object(merged))


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Copy of a config dict with the settings that older versions stored in another form."""
    values = _renamed(copy.deepcopy(values))
    for name, tower in values.get("model", {}).get("towers", {}).items():
        if name == "speech" and len(tower.get("specials", [])) == 2 and tower.get("vocabulary"):
            tower["specials"] = [tower["vocabulary"] - back for back in (3, 2, 1)]  # were not stored
    if tasks := values.get("train", {}).get("tasks"):
        values["train"]["tasks"] = {task: share for task, share in tasks.items() if share}
    return values


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
    """The nested dict itself, with the present names of its settings."""
    for old, new in RENAMED.items():
        *section, key = old.split(".")
        part = values.get(section[0]) if section else values
        if isinstance(part, dict) and key in part:
            part[new.split(".")[-1]] = part.pop(key)
    if values.pop("export_int8", False):
        values["export_bits"] = 8
    return values


def to_dict(cfg: RunConfig) -> dict[str, Any]:
    """Config as plain dicts, lists, tuples and numbers, which torch.load(weights_only=True) accepts."""
    return asdict(cfg)


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts to dotted keys."""
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        k: v for key, value in values.items() for k, v in flat(value, f"{prefix}.{key}".lstrip(".")).items()
    }


def save_config(cfg: RunConfig, path: Path) -> None:
    """Writes all keys of a resolved config to a YAML file, atomically."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        aside.write_text(yaml.safe_dump(to_dict(cfg), sort_keys=False), encoding="utf-8")
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)


def describe(cls: Any = RunConfig, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yields (key, default, help text with the range) of every setting."""
    for f in fields(cls):
        default = f.default_factory() if callable(f.default_factory) else f.default
        if is_dataclass(default):
            yield from describe(default, f"{prefix}{f.name}.")
        elif f.name in ("towers", "decode", "zips"):
            yield from describe(get_args(f.type)[-1], f"{prefix}{f.name}.NAME.")
        else:
            shown = list(default) if isinstance(default, tuple) else default
            limits = f"{f.metadata['limits']}"
            text = "; ".join(filter(None, [f.metadata["help"], limits]))
            yield f"{prefix}{f.name}", "none" if shown is None else str(shown), text


def expanded(path: str | os.PathLike[str]) -> Path:
    """Path with a leading ~ or ~user as that home folder, if there is one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # a file may be named so
        return Path(path)


def asset(path: str | os.PathLike[str]) -> Path:
    """Path of a file or folder: as given, or relative to the package folder if only that exists (`configs/`,
    `assets/`)."""
    given = expanded(path)
    return given if given.exists() or not (ROOT / given).exists() else ROOT / given


def is_section_file(key: str, value: str) -> bool:
    """Whether configs/KEY/VALUE.yaml exists, here or in the package."""
    return asset(Path("configs", key, f"{value}.yaml")).is_file()


def _section_file(key: str, value: str) -> Path:
    if not is_section_file(key, value):
        known = _names(Path("configs", key))
        raise ConfigError(f"{key}={value}: configs/{key}/{value}.yaml does not exist. Available: {known}.")
    return asset(Path("configs", key, f"{value}.yaml"))


def _names(folder: Path) -> str:
    """Names of the configs in a folder, here and in the package."""
    return ", ".join(sorted({f.stem for at in (folder, ROOT / folder) for f in at.glob("*.yaml")})) or "none"


def read_json(file: Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    """JSON description of an asset or an encoded dataset. needed: its keys. Raises DataError if it is
    damaged."""
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # includes UnicodeDecodeError
        raise DataError(f"{file} is damaged ({error}). Restore it, or create its folder again.") from error
    if not isinstance(info, dict):
        raise DataError(
            f"{file} is damaged: it holds no JSON object. Restore it, or create its folder again."
        )
    if lacking := [key for key in needed if key not in info]:
        raise DataError(f"{file} is damaged: it lacks {', '.join(lacking)}. Restore it.")
    return info
