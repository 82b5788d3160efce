"""Field helpers and checks shared by all config sections."""

import difflib
from collections.abc import Iterable
from dataclasses import field
from typing import Any

from zipper.errors import ConfigError

ALIASES = {"asr": "speech>text", "tts": "text>speech"}
CHAINS = {chain: alias for alias, chain in ALIASES.items()}


def task_name(task: str) -> str:
    """Name of a task: its alias if it has one."""
    return CHAINS.get(task, task)


def modalities_of(task: str) -> tuple[str, ...]:
    """Modalities of a task in document order, the last one is the answer. One alone is pre-training."""
    return tuple(ALIASES.get(task, task).split(">"))


def check_modalities(setting: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises ConfigError if a setting names a modality without a tower."""
    known = sorted({*known})
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"{setting}: no such modality {name!r}; model.towers has {', '.join(known)}.{hint}"
            )


def setting(default: Any, help: str) -> Any:
    """Dataclass field with a default and a help text."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def section(cls: type) -> Any:
    """Dataclass field that holds a config section."""
    return field(default_factory=cls)


def check_name(setting: str, value: str, forbidden: str, most: int) -> None:
    """Raises ConfigError if a name is not a valid path component or service name.

    forbidden: characters that are not allowed; most: maximum length in bytes of UTF-8.
    """
    bad = [one for one in value if one in forbidden or ord(one) < 32 or "\ud800" <= one <= "\udfff"]
    if not value.strip():
        why = "is empty"
    elif bad:
        why = f"contains {bad[0]!r}"
    elif value[0] in ".-" or value != value.strip():
        why = "begins with a dot or a dash, or begins or ends with a space"
    elif len(value.encode()) > most:
        why = f"has {len(value.encode())} bytes, more than {most}"
    else:
        return
    shown = value if len(value) < 60 else f"{value[:60]}..."
    raise ConfigError(f"{setting}={shown!r} {why}. Use letters, digits, '-', '_' or '.', at most {most}.")


def check_range(cfg: Any, section: str, low: float, high: float, *names: str) -> None:
    """Raises ConfigError if a number of these settings, or of these lists, is outside [low, high]."""
    for name in names:
        value = getattr(cfg, name)
        if not all(low <= one <= high for one in (value if isinstance(value, list | tuple) else [value])):
            key = f"{section}.{name}".lstrip(".")
            raise ConfigError(f"{key}={value} must lie between {low:g} and {high:g}.")


def check_positive(cfg: Any, section: str, *names: str) -> None:
    """Raises ConfigError if one of these settings is below 1."""
    for name in names:
        if getattr(cfg, name) < 1:
            raise ConfigError(f"{section}.{name}={getattr(cfg, name)} must be at least 1.")
