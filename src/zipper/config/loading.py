"""Settings from three layers: defaults in the dataclasses of `schema` < YAML file < key=value words.

`data=NAME`, with the name of a whole section, puts configs/data/NAME.yaml between the file and the words.
No DictConfig leaves this file.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zipper.config.model import TowerConfig
from zipper.config.schema import RunConfig
from zipper.config.yaml_types import load_typed, read_override, type_at
from zipper.errors import ConfigError, DataError

LARGEST = 3.4e38  # of float32
LONGEST = 255  # bytes of a file's name
ROOT = Path(__file__).resolve().parents[1]  # of the package, where the shipped models and default configs are


def load_config(path: Path | None, words: Sequence[str] = ()) -> RunConfig:
    """defaults in the dataclasses < the YAML file < a section's file (`data=NAME`) < key=value words.

    Raises ConfigError that names the key, with a suggestion where it is close to a known one.
    """
    layers: list[Any] = [OmegaConf.structured(RunConfig)]
    try:
        if path is not None:
            if not path.is_file():
                raise ConfigError(f"{path}: no such config. There are: {_names(ROOT / 'configs')}.")
            layers.append(_read(path))
        merged = OmegaConf.merge(*layers, *_layers(words))
        cfg = cast(RunConfig, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, yaml.YAMLError, TypeError) as error:  # TypeError: a dict for a tuple
        raise ConfigError(str(error).splitlines()[0] + _where(path, words)) from error
    _check_values(cfg)
    return cfg


def _layers(words: Sequence[str]) -> list[Any]:
    """The files of the sections that words name (`data=NAME`), and on top the key=value words."""
    sections = {f.name: f.type for f in fields(RunConfig) if is_dataclass(f.type)}
    layers, plain = [], []
    for word in words:
        key, _, value = word.partition("=")
        if key in sections and value and value[0] not in "{[":
            layers.append(OmegaConf.create({key: _read(_section_file(key, value), sections[key])}))
        else:
            plain.append(word)
    return [*layers, _from_words(plain)]


def overridden_keys(words: Sequence[str]) -> set[str]:
    """The dotted keys that words set, those of a section's file included."""
    return {*flat(OmegaConf.to_container(OmegaConf.merge(*_layers(words))))}


def _from_words(words: Sequence[str]) -> Any:
    """key=value words, each by the type of its setting."""
    out = OmegaConf.create()
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word!r} is not key=value. See `python -m zipper --help` for the keys.")
        read = read_override(setting_type(key), value)
        _refuse_interpolation({key: read})
        OmegaConf.update(out, key, read)
    return out


def _refuse_interpolation(values: dict[str, Any]) -> None:
    """OmegaConf would put another setting's value, or one of the environment, in the place of ${...}."""
    for key, value in flat(values).items():
        if "${" in str(value):
            raise ConfigError(f"{key}={value}: ${{...}} is not filled in here. Write what is meant.")


def setting_type(key: str) -> Any:
    """The type of the setting that a dotted key names; None where there is none."""
    return type_at(RunConfig, re.findall(r"[^.\[\]]+", key))


def _read(path: Path, of: Any = RunConfig) -> Any:
    try:
        read = load_typed(path.read_text(encoding="utf-8"), of) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"{path}{where} is no YAML ({problem}). Mend it: keys with values.") from error
    if not isinstance(read, dict):
        raise ConfigError(f"{path} holds no keys with values, but a list or a word. There are: {_known()}.")
    _refuse_interpolation(read)
    return OmegaConf.create(read)


def _known() -> str:
    return ", ".join(f.name for f in fields(RunConfig))


def from_dict(values: dict[str, Any]) -> RunConfig:
    """The inverse of `to_dict`."""
    return cast(RunConfig, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), values)))


def with_overrides(cfg: RunConfig, words: Sequence[str]) -> RunConfig:
    """A config with sections' files and key=value words on top. Raises ConfigError as `load_config`."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), to_dict(cfg), *_layers(words))
        cfg = cast(RunConfig, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, yaml.YAMLError, TypeError) as error:
        raise ConfigError(str(error).splitlines()[0] + f" (in {' '.join(words)})") from error
    _check_values(cfg)
    return cfg


def to_dict(cfg: RunConfig) -> dict[str, Any]:
    """Plain dicts, lists and numbers: what checkpoints may hold (weights_only)."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(cfg)))


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as dotted keys."""
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        k: v for key, value in values.items() for k, v in flat(value, f"{prefix}.{key}".lstrip(".")).items()
    }


def save_config(cfg: RunConfig, path: Path) -> None:
    """The resolved config, every key of it."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        aside.write_text(yaml.safe_dump(to_dict(cfg), sort_keys=False), encoding="utf-8")
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)


def describe(of: Any = RunConfig, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, default, meaning) of every setting."""
    for f in fields(of):
        default = f.default_factory() if callable(f.default_factory) else f.default
        if is_dataclass(default):
            yield from describe(default, f"{prefix}{f.name}.")
        elif f.name == "towers":
            yield from describe(TowerConfig, f"{prefix}towers.NAME.")
        else:
            shown = list(default) if isinstance(default, tuple) else default
            yield f"{prefix}{f.name}", "none" if shown is None else str(shown), f.metadata["meaning"]


def asset(path: str | os.PathLike[str]) -> Path:
    """A shipped file: as overridden_keys, or else beside the package's configs."""
    return Path(path) if Path(path).exists() or Path(path).is_absolute() else ROOT / path


def _check_values(cfg: RunConfig) -> None:
    for key, value in flat(to_dict(cfg)).items():
        if isinstance(value, str):
            longest = max(value.split("/"), key=len)
            if "\0" in value or len(os.fsencode(longest)) > LONGEST:
                raise ConfigError(
                    f"{key}={value[:60]!r} is no path: a name in it is too long, or has a NUL in it."
                )
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not abs(number) <= LARGEST:
                raise ConfigError(f"{key}={value} is not a finite number that float32 holds. Give one.")


def _section_file(key: str, value: str) -> Path:
    file = ROOT / "configs" / key / f"{value}.yaml"
    if not file.is_file():
        raise ConfigError(
            f"{key}={value}: no such file as configs/{key}/{value}.yaml. There are: {_names(file.parent)}."
        )
    return file


def _names(folder: Path) -> str:
    return ", ".join(sorted(f.stem for f in folder.glob("*.yaml"))) or "none"


def _where(path: Path | None, words: Sequence[str]) -> str:
    return f" (in {path or 'the defaults'}{', ' + ' '.join(words) if words else ''})"


def read_json(file: Path) -> dict[str, Any]:
    """The JSON that describes an asset or a store. Raises DataError where it is damaged."""
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # a UnicodeDecodeError is one too
        raise DataError(f"{file} is damaged ({error}). Restore it, or make its folder again.") from error
    if not isinstance(info, dict):
        raise DataError(f"{file} is damaged: it holds no JSON object. Restore it, or make its folder again.")
    return info
