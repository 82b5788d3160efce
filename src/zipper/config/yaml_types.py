"""YAML parsed by the type of each setting.

Unquoted text for a string setting keeps its characters, so that 007 stays 007 and a commit such as 7541e27
stays a string. All other values follow YAML 1.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from omegaconf._yaml import get_yaml_loader

NULL = ("", "null")  # values of an override that unset an optional string


@dataclass(frozen=True)
class Scalar:
    """Unquoted YAML scalar: its characters and its YAML value."""

    text: str
    value: Any


def bare_scalar_loader(base: Any) -> Any:
    """YAML loader that returns a Scalar for each unquoted value that YAML does not read as a string."""

    class Loader(base):
        def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
            value = super().construct_object(node, deep=deep)
            bare = isinstance(node, yaml.ScalarNode) and not node.style
            return Scalar(node.value, value) if bare and not isinstance(value, str) else value

    return Loader


def load_typed(content: str, expected: Any) -> Any:
    """YAML document as a value of the type `expected`; None: type unknown."""
    return typed(expected, yaml.load(content, bare_scalar_loader(get_yaml_loader())))


def typed(expected: Any, value: Any) -> Any:
    """Replaces the Scalars in a nested value according to its type `expected`."""
    if isinstance(value, Scalar):
        unset = value.value is None and _optional(expected)
        return value.text if _is_text(expected) and not unset else value.value
    if isinstance(value, dict):
        known = is_dataclass(expected) or get_origin(expected) is dict
        keys = [typed(str if known else None, key) for key in value]
        return {
            key: typed(_element_type(expected, key), one)
            for key, one in zip(keys, value.values(), strict=True)
        }
    if isinstance(value, list):
        return [typed(_element_type(expected, str(index)), one) for index, one in enumerate(value)]
    return value


def read_override(expected: Any, text: str) -> Any:
    """Value of a `key=value` override.

    Quotes around a string are removed. `null` or an empty value unsets an optional string.
    """
    if not _is_text(expected):
        return load_typed(text, expected)
    if text in NULL and _optional(expected):
        return None
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        try:
            unquoted = yaml.safe_load(text)
        except yaml.YAMLError:  # such as 'a' and 'b'
            return text
        return unquoted if isinstance(unquoted, str) else text
    return text


def type_at(expected: Any, keys: Sequence[str]) -> Any:
    """Type of a nested setting; None if it does not exist."""
    for key in keys:
        expected = _element_type(expected, key)
    return expected


def _element_type(expected: Any, key: str) -> Any:
    if is_dataclass(expected):
        return next((f.type for f in fields(expected) if f.name == key), None)
    args = get_args(expected)
    if get_origin(expected) is tuple:
        return args[int(key)] if key.isdecimal() and int(key) < len(args) else None
    return args[-1] if get_origin(expected) in (dict, list) else None


def _alternatives(expected: Any) -> tuple[Any, ...]:
    return get_args(expected) if get_origin(expected) in (Union, UnionType) else (expected,)


def _optional(expected: Any) -> bool:
    return NoneType in _alternatives(expected)


def _is_text(expected: Any) -> bool:
    return any(
        one is str or (get_origin(one) is Literal and isinstance(get_args(one)[0], str))
        for one in _alternatives(expected)
    )
