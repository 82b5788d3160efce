"""YAML by the type of the setting: text takes the characters as they stand, so that 007 stays 007, and
7541e27 a commit; all else is what YAML 1.1 makes of it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from omegaconf._yaml import get_yaml_loader

NULL = ("", "null")  # words that leave an optional setting out


@dataclass(frozen=True)
class Scalar:
    """What stands in YAML without quotes: its characters, and what YAML makes of them."""

    text: str
    value: Any


def bare_scalar_loader(base: Any) -> Any:
    """A YAML loader that gives a Scalar where YAML makes anything but text of what stands without quotes."""

    class Loader(base):
        def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
            value = super().construct_object(node, deep=deep)
            bare = isinstance(node, yaml.ScalarNode) and not node.style
            return Scalar(node.value, value) if bare and not isinstance(value, str) else value

    return Loader


def load_typed(content: str, of: Any) -> Any:
    """YAML by the type `of` what it describes; None: of no known type."""
    return typed(of, yaml.load(content, bare_scalar_loader(get_yaml_loader())))


def typed(of: Any, value: Any) -> Any:
    """Scalars within a value, however deep, by its type."""
    if isinstance(value, Scalar):
        left_out = value.value is None and _optional(of)
        return value.text if _is_text(of) and not left_out else value.value
    if isinstance(value, dict):
        known = is_dataclass(of) or get_origin(of) is dict
        keys = [typed(str if known else None, key) for key in value]
        return {key: typed(_within(of, key), one) for key, one in zip(keys, value.values(), strict=True)}
    if isinstance(value, list):
        return [typed(_within(of, str(index)), one) for index, one in enumerate(value)]
    return value


def read_override(of: Any, word: str) -> Any:
    """The value of a key=value word. Of text, quotes around all of it are taken off, and an optional one is
    left out by null or nothing."""
    if not _is_text(of):
        return load_typed(word, of)
    if word in NULL and _optional(of):
        return None
    if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"":
        try:
            unquoted = yaml.safe_load(word)
        except yaml.YAMLError:  # 'a' and 'b'
            return word
        return unquoted if isinstance(unquoted, str) else word
    return word


def type_at(of: Any, keys: Sequence[str]) -> Any:
    """The type of what a dotted key names; None where there is no such setting."""
    for key in keys:
        of = _within(of, key)
    return of


def _within(of: Any, key: str) -> Any:
    if is_dataclass(of):
        return next((f.type for f in fields(of) if f.name == key), None)
    args = get_args(of)
    if get_origin(of) is tuple:
        return args[int(key)] if key.isdecimal() and int(key) < len(args) else None
    return args[-1] if get_origin(of) in (dict, list) else None


def _alternatives(of: Any) -> tuple[Any, ...]:
    return get_args(of) if get_origin(of) in (Union, UnionType) else (of,)


def _optional(of: Any) -> bool:
    return NoneType in _alternatives(of)


def _is_text(of: Any) -> bool:
    return any(
        one is str or (get_origin(one) is Literal and isinstance(get_args(one)[0], str))
        for one in _alternatives(of)
    )
