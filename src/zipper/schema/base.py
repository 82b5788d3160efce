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


def at_least_one(of: Any, section: str, *names: str) -> None:
    for name in names:
        if getattr(of, name) < 1:
            raise ConfigError(f"{section}.{name}={getattr(of, name)} must be at least 1.")
