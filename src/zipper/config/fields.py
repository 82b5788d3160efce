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


def check_name(setting: str, value: str, forbidden: str, most: int) -> None:
    """Raises ConfigError where a name cannot be one part of a path, or another service would refuse it.

    forbidden: characters; most: bytes in UTF-8.
    """
    bad = [one for one in value if one in forbidden or ord(one) < 32 or "\ud800" <= one <= "\udfff"]
    if not value.strip():
        why = "is empty"
    elif bad:
        why = f"has {bad[0]!r} in it"
    elif value[0] in ".-" or value != value.strip():
        why = "begins with a dot or a dash, or begins or ends with a space"
    elif len(value.encode()) > most:
        why = f"has {len(value.encode())} bytes, more than {most}"
    else:
        return
    shown = value if len(value) < 60 else f"{value[:60]}..."
    raise ConfigError(f"{setting}={shown!r} {why}. Give letters, digits, '-', '_' or '.', at most {most}.")


def check_range(of: Any, section: str, low: float, high: float, *names: str) -> None:
    """Every number of these settings, one or several."""
    for name in names:
        value = getattr(of, name)
        if not all(low <= one <= high for one in (value if isinstance(value, list | tuple) else [value])):
            key = f"{section}.{name}".lstrip(".")
            raise ConfigError(f"{key}={value} must lie within {low:g} and {high:g}.")


def check_positive(of: Any, section: str, *names: str) -> None:
    for name in names:
        if getattr(of, name) < 1:
            raise ConfigError(f"{section}.{name}={getattr(of, name)} must be at least 1.")
