"""What all sections of the settings are made of."""

from dataclasses import field
from typing import Any

from zipper.errors import ConfigError

TASKS = {"asr": ("speech", "text"), "tts": ("text", "speech"), "speech": ("speech",), "text": ("text",)}


def setting(default: Any, meaning: str) -> Any:
    """A field with its meaning, which `--help` prints."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata={"meaning": meaning})
    return field(default=default, metadata={"meaning": meaning})


def section(of: type) -> Any:
    """A field that is a dataclass of settings itself."""
    return field(default_factory=of)


def within(of: Any, section: str, low: float, high: float, *names: str) -> None:
    """Every number of these settings, one or several."""
    for name in names:
        value = getattr(of, name)
        if not all(low <= one <= high for one in (value if isinstance(value, list | tuple) else [value])):
            key = f"{section}.{name}".lstrip(".")
            raise ConfigError(f"{key}={value} must lie within {low:g} and {high:g}.")


def at_least_one(of: Any, section: str, *names: str) -> None:
    for name in names:
        if getattr(of, name) < 1:
            raise ConfigError(f"{section}.{name}={getattr(of, name)} must be at least 1.")
