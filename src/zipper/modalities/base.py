"""Modality: how raw input becomes tokens and back, its token layout, its rate, and how its output is scored.

A modality is a class in a module of this package that has its name (`zipper.modalities.text`), or any
subclass of `Modality` that was imported. Nothing outside these modules depends on which ones there are.
"""

import math
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

import zipper.modalities
from zipper.config import RunConfig, SamplingConfig
from zipper.config.model import DEFAULT_MODALITIES
from zipper.errors import ConfigError, DataError, ZipperError
from zipper.modalities.layout import TokenLayout
from zipper.modalities.scoring import Scorer, TextScorer

NAME = re.compile(r"[A-Za-z][\w-]*")
LIMIT = "data.max_seconds={:g}"
Column = Callable[[str], np.ndarray]  # values [N] of a column of encoded rows
_CLASSES: dict[str, "type[Modality]"] = {}


class Modality(ABC):
    """One modality. Content is int64 [Q, F]: F positions of Q codebooks.

    name: as in `model.modalities`. column: of manifests and encoded datasets, for the raw input (a text, or
    the path of a file, if names_file). suffix: of the files of `write`, if any. tokens_column, length_column:
    of encoded datasets, for content and F.
    units_key: of the fingerprint of an encoded dataset. sample_rate: in Hz if values are waveforms float32
    [n], else None.

    Instances have: layout, the token layout; fingerprint, which changes with the meaning of the tokens; rate,
    tokens per second, which zips use to align modalities; fixed_rate, False if it is measured on the training
    data instead, where that has recordings; batch_cost, limit of the summed cost of a batch of `encode`;
    network, to be moved to the device of `encode`.
    """

    name: ClassVar[str]
    column: ClassVar[str]
    tokens_column: ClassVar[str]
    length_column: ClassVar[str]
    units_key: ClassVar[str]
    _defaults: ClassVar[set[str]] = set()  # columns that no class states
    names_file: ClassVar[bool] = False
    suffix: ClassVar[str] = ""
    sample_rate: int | None = None
    rate: float = 1.0
    fixed_rate: bool = False
    batch_cost: float = math.inf
    network: nn.Module | None = None
    layout: TokenLayout
    fingerprint: str

    def __init_subclass__(cls) -> None:
        if not NAME.fullmatch(cls.name) or "_from_" in cls.name or hasattr(nn.ModuleDict, cls.name):
            raise ConfigError(
                f"{cls.__qualname__}: name={cls.name!r} cannot name a tower. Give another one, of letters, "
                "digits, - and _."
            )
        defaults = {
            "column": cls.name,
            "tokens_column": f"{cls.name}_tokens",
            "length_column": f"{cls.name}_length",
            "units_key": cls.name,
        }
        stated = {key for one in cls.__mro__ for key in {*vars(one)} - vars(one).get("_defaults", set())}
        cls._defaults = {*defaults} - stated  # a subclass has its own
        for key in cls._defaults:
            setattr(cls, key, defaults[key])
        known = _CLASSES.get(cls.name, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(
                f"{cls.__qualname__}: {cls.name!r} is already the modality {known.__module__}."
                f"{known.__qualname__}. Give it another name."
            )
        _CLASSES[cls.name] = cls  # also if a notebook runs its cell again

    def __deepcopy__(self, memo: object) -> Self:
        return self  # nothing in it is trained further: copies of a model share it

    @classmethod
    @abstractmethod
    def load(cls, cfg: RunConfig, folder: Path | None = None) -> Self:
        """Modality of a config. folder: of a trained model, with what `save` wrote."""

    @property
    def codebooks(self) -> int:
        """Q, known before `fit`."""
        return self.layout.codebooks

    @property
    def description(self) -> str:
        """The fingerprint, and what else `decode` depends on."""
        return self.fingerprint

    def fit(self, raw: Iterable[str]) -> None:  # noqa: B027  # a hook
        """Learn the tokens from the raw inputs of a training split, unless they are known."""

    def save(self, folder: Path) -> None:  # noqa: B027  # a hook
        """Write what `load` needs besides the config."""

    def export(self, folder: Path) -> None:
        """Write what `load` needs besides the config, where files that the config names may be gone."""
        self.save(folder)

    def check(self, raw: str) -> None:  # noqa: B027  # a hook
        """Raises DataError on raw input that cannot be used, with the fix. Cheap: reads no file."""

    def read(
        self,
        raw: Any,
        start: float = 0.0,
        seconds: float | None = None,
        longest: float = math.inf,
        limit: str = LIMIT,
    ) -> Any:
        """Value of a raw input, or the value itself. start, seconds: part of a recording. longest: limit of
        its length in seconds, which messages call `limit`. Raises DataError."""
        return raw

    def check_size(self, raw: Any, most: int) -> None:  # noqa: B027  # optional: most sizes show once read
        """Raises ConfigError if a raw prompt has certainly more than `most` timesteps, before it is read."""

    @abstractmethod
    def encode(self, values: list[Any]) -> list[Tensor]:
        """Content int64 [Q, F] of each value. It does not depend on the other values."""

    @abstractmethod
    def decode(self, content: Tensor) -> Any:
        """Value of content int64 [Q, F], F >= 0."""

    def write(self, value: Any, stem: Path) -> Path | None:
        """Write a generated value to a file with this stem; None if values need no file."""
        return None

    def cost(self, value: Any) -> float:
        """Cost of a value in a batch of `encode`, padding included, in the unit of `batch_cost`."""
        return 0.0

    def seconds(self, value: Any) -> float:
        """Duration of a value; 0 without one."""
        return 0.0

    def length_text(self, length: int) -> str:
        """Length of content in words, for messages."""
        return f"{length} tokens"

    def labels(self, ids: Sequence[int]) -> list[str] | None:
        """Label of each token of the first codebook in figures; None: positions are labelled in seconds."""
        return None

    def features(self) -> dict[str, Any]:
        """Columns of this modality in an encoded dataset, besides `column`."""
        import datasets  # seconds, which inference does without

        kind = "int16" if self.layout.filler is not None and self.layout.codes <= 2**15 else "int32"
        return {
            self.tokens_column: datasets.Sequence(datasets.Value(kind)),  # codebook by codebook, [Q * F]
            self.length_column: datasets.Value("int32"),  # F
        }

    def row(self, content: Tensor) -> dict[str, Any]:
        """Values of `features`."""
        return {self.tokens_column: content.flatten().tolist(), self.length_column: content.shape[1]}

    def content(self, row: Mapping[str, Any]) -> Tensor:
        """Content int64 [Q, F] of an encoded row. In training a row holds `id` and `tokens_column` alone."""
        tokens = np.array(row[self.tokens_column], dtype=np.int64)
        return torch.from_numpy(tokens).view(self.layout.codebooks, -1)

    def info(self) -> dict[str, Any]:
        """Entries of an encoded dataset's store.json."""
        return {}

    def token_seconds(self, column: Column) -> list[float] | None:
        """Expected duration of each token in seconds, [V], from encoded rows; None: 1 / rate."""
        return None

    def repeats(self, column: Column) -> list[int]:
        """For periods 1, 2, ... the largest number of consecutive positions of an encoded row that repeat
        the one a period before; empty: generation does not stop at repetition."""
        return []

    def scorer(self, cfg: RunConfig) -> Scorer:
        """Scorer of generated segments. Raises at once if a part of it is missing."""
        return TextScorer(lambda row: _ids(self.content(row)), _ids)


def encode_values(modality: Modality, values: list[Any], what: str) -> list[Tensor]:
    """Content int64 [Q, F] of each value. what: names them in the DataError that an invalid value raises."""
    try:
        return modality.encode(values)
    except ZipperError:
        raise
    except (ValueError, TypeError, LookupError) as error:  # of a class of one's own
        raise DataError(
            f"{what} cannot be encoded as {modality.name} ({error!r}). Correct it, or let {modality.name} "
            "refuse it in `check`."
        ) from error


def _ids(content: Tensor) -> str:
    """First codebook of content int64 [Q, F] as text."""
    return " ".join(map(str, content[0].tolist()))


def modality_class(name: str) -> type[Modality]:
    """Class of a modality. Raises ConfigError if there is none."""
    own = [one.name for one in pkgutil.iter_modules(zipper.modalities.__path__)]
    if name not in _CLASSES and name in own:
        import_module(f"zipper.modalities.{name}")
    if name not in _CLASSES:
        for one in own:
            with suppress(ImportError):  # of an extra that is not installed
                import_module(f"zipper.modalities.{one}")
        known = ", ".join(sorted(_CLASSES))
        raise ConfigError(
            f"There is no modality {name!r}, only {known}. Import the module with its "
            "subclass of zipper.Modality, or add it to zipper/modalities."
        )
    return _CLASSES[name]


def load_modalities(cfg: RunConfig, folder: Path | None = None) -> dict[str, Modality]:
    """Modalities of a config by name: text and speech, and others that have a tower. folder: of a trained
    model. Raises ConfigError if a decoding setting does not fit, or two of them share a column."""
    names = dict.fromkeys([*DEFAULT_MODALITIES, *cfg.model.towers])
    classes = {name: modality_class(name) for name in names}
    for (name, one), (other, another) in combinations(classes.items(), 2):
        for key in ("column", "tokens_column", "length_column", "units_key"):
            if getattr(one, key) == getattr(another, key):
                raise ConfigError(
                    f"The modalities {name} and {other} have the same {key}={getattr(one, key)!r}. Give one "
                    "of the classes its own."
                )
    found = {name: one.load(cfg, folder) for name, one in classes.items()}
    check_searches(cfg.decode, {name: found[name].codebooks for name in cfg.decode})
    return found


def check_searches(decode: Mapping[str, SamplingConfig], codebooks: Mapping[str, int]) -> None:
    """Raise ConfigError if beam search is set for a modality of several codebooks."""
    for name, how in decode.items():
        if how.searches and codebooks.get(name, 1) > 1:
            raise ConfigError(
                f"decode.{name}.beams={how.beams} with ctc={how.ctc:g}: beam search needs one codebook, and "
                f"{name} has {codebooks[name]}. Leave it out."
            )
