"""Declared settings: default, help text and constraint of each field, and the check of all of them."""

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, get_args

from zipper.errors import ConfigError

ALIASES = {"asr": "speech>text", "tts": "text>speech"}
CHAINS = {chain: alias for alias, chain in ALIASES.items()}
LARGEST = 3.4e38  # largest float32
LONGEST = 255  # bytes of a file name


def task_name(task: str) -> str:
    """Name of a task: its alias if it has one."""
    return CHAINS.get(task, task)


def modalities_of(task: str) -> tuple[str, ...]:
    """Modalities of a task in document order, the last one is the answer. One alone is pre-training."""
    return tuple(ALIASES.get(task, task).split(">"))


def suggestion(name: str, known: Iterable[str]) -> str:
    """Sentence that suggests the most similar known name, with a space before it; empty if none is."""
    close = difflib.get_close_matches(name, sorted(known), 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def check_modalities(setting: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises ConfigError if a setting names a modality without a tower."""
    known = sorted({*known})
    for name in names:
        if name not in known:
            there, hint = ", ".join(known), suggestion(name, known)
            raise ConfigError(f"{setting}: no such modality {name!r}; model.towers has {there}.{hint}")


@dataclass(frozen=True)
class Limits:
    """Range of a number, or of every number of a list or dict. NaN is outside of every range."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    hint: str = ""  # ends the error message

    def __contains__(self, value: float) -> bool:
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = [
            ("at least", self.at_least), ("more than", self.above), ("at most", self.at_most),
            ("less than", self.below),
        ]  # fmt: skip
        return " and ".join(f"{words} {bound}" for words, bound in bounds if bound is not None)


@dataclass(frozen=True)
class NameLimits:
    """Constraint of a name: a path component, or a name of another service."""

    forbidden: str  # characters that are not allowed
    most: int  # maximum length in bytes of UTF-8


def setting(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    hint: str = "",
    name: NameLimits | None = None,
) -> Any:
    """Dataclass field with a default, a help text and its range, which `check_settings` enforces.

    The range holds for every element of a list, tuple or dict, and not for None.
    """
    metadata = {"help": help, "limits": Limits(at_least, above, at_most, below, hint), "name": name}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(cls: type) -> Any:
    """Dataclass field that holds a config section."""
    return field(default_factory=cls)


class Section:
    """Base of the config dataclasses. A subclass adds the rules between its settings in `__post_init__`."""

    KEY: ClassVar[str] = ""  # dotted key of the section

    def __post_init__(self) -> None:
        check_settings(type(self), vars(self), self.KEY)


def check_settings(cls: Any, values: Mapping[str, Any], prefix: str = "") -> None:
    """Raises ConfigError at the first value of a section, or of one in it, that its field does not allow.

    cls: dataclass of the section. values: by the names of its fields; sections as objects or mappings.
    """
    for f in fields(cls):
        key, value = f"{prefix}.{f.name}".lstrip("."), values[f.name]
        inner: tuple[Any, ...] = get_args(f.type)
        if is_dataclass(f.type):
            check_settings(f.type, _values(value), key)
        elif inner and is_dataclass(inner[-1]):  # dict of sections
            for name, one in value.items():
                check_settings(inner[-1], _values(one), f"{key}.{name}")
        else:
            _check_setting(key, value, f.metadata["limits"], f.metadata["name"], f.default is None)


def _values(section: Any) -> Mapping[str, Any]:
    return vars(section) if is_dataclass(section) else section


def _check_setting(key: str, value: Any, limits: Limits, name: NameLimits | None, optional: bool) -> None:
    if isinstance(value, dict):
        for inner, one in value.items():
            _check_setting(f"{key}.{inner}", one, limits, name, optional)
        return
    several = isinstance(value, list | tuple)
    shown = list(value) if several else value
    for one in shown if several else [value]:
        if isinstance(one, str):
            _check_name(key, one, name) if name else _check_path(key, one)
        elif isinstance(one, float) and not abs(one) <= LARGEST:
            raise ConfigError(f"{key}={shown} is not a finite number in float32. Give one.")
        elif one is not None and one not in limits:
            must = ": each must be" if several else " must be"
            none = ", or none" if optional else ""
            raise ConfigError(f"{key}={shown}{must} {limits}{none}{limits.hint and f'; {limits.hint}'}.")


def _check_path(key: str, value: str) -> None:
    if "\0" in value or len(os.fsencode(max(value.split("/"), key=len))) > LONGEST:
        raise ConfigError(f"{key}={value[:60]!r} is not a path: a name in it is too long, or contains a NUL.")


def _check_name(key: str, value: str, limits: NameLimits) -> None:
    bad = [one for one in value if one in limits.forbidden or ord(one) < 32 or "\ud800" <= one <= "\udfff"]
    if not value.strip():
        why = "is empty"
    elif bad:
        why = f"contains {bad[0]!r}"
    elif value[0] in ".-" or value != value.strip():
        why = "begins with a dot or a dash, or begins or ends with a space"
    elif (size := len(value.encode())) > limits.most:
        why = f"has {size} bytes, more than {limits.most}"
    else:
        return
    shown = value if len(value) < 60 else f"{value[:60]}..."
    raise ConfigError(f"{key}={shown!r} {why}. Use letters, digits, '-', '_' or '.', at most {limits.most}.")
