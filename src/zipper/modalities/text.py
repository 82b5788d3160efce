"""Text: normalised, in subwords, scored by word errors."""

import math
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from zipper.config import RunConfig, asset
from zipper.errors import ConfigError, DataError
from zipper.hub import model_folder
from zipper.modalities.base import LIMIT, Column, Modality
from zipper.modalities.layout import TokenLayout
from zipper.modalities.normalise import NORMALISER, normalise, unreadable
from zipper.modalities.scoring import Scorer, TextScorer
from zipper.modalities.tokenizer import Tokenizer

FILE = "tokenizer.json"
SUBWORDS_PER_SECOND = 4.0  # without recordings
LETTER = re.compile("[A-Za-z]")


class Text(Modality):
    """Values are strings; content is int64 [1, number of subwords]."""

    name = "text"
    tokens_column, length_column, units_key = "ids", "subwords", "tokenizer"
    rate = SUBWORDS_PER_SECOND

    def __init__(self, tokenizer: Tokenizer | None, subwords: int = 0) -> None:
        """tokenizer=None: `fit` trains one of at most `subwords` tokens."""
        self._tokenizer, self.subwords = tokenizer, subwords

    @property
    def codebooks(self) -> int:
        return 1

    @classmethod
    def load(cls, cfg: RunConfig, folder: Path | None = None) -> Self:
        """The tokenizer of the trained model, of the config, or of the pre-trained text tower."""
        tower = cfg.model.towers.get(cls.name)
        own = cls.name in cfg.model.modalities and not cfg.model.init  # which has the tokenizer
        if folder is not None and (own or (folder / FILE).is_file()):
            file = folder / FILE
        elif cfg.data.tokenizer:
            file = asset(cfg.data.tokenizer)
        elif tower and tower.init:
            file = model_folder(tower.init) / FILE
        else:
            return cls(None, cfg.data.subwords)
        return cls(Tokenizer.load(file))

    def fit(self, raw: Iterable[str]) -> None:
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.train((t for t in raw if t and not unreadable(t)), self.subwords)

    def save(self, folder: Path) -> None:
        self.tokenizer.save(folder / FILE)

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise DataError(
                "There is no tokenizer: name one (data.tokenizer), or a pre-trained text tower "
                "(model.towers.text.init), which has one."
            )
        return self._tokenizer

    @cached_property
    def letters(self) -> np.ndarray:
        """Letters of each token, with the space before a word: int64 [V]; 0 for BOS and EOS."""
        letters = np.array([len(self.tokenizer.piece(i)) for i in range(self.tokenizer.vocabulary)])
        letters[[self.tokenizer.bos, self.tokenizer.eos]] = 0
        return letters

    @property
    def layout(self) -> TokenLayout:  # type: ignore[override]  # not before `fit`
        return TokenLayout(self.tokenizer.vocabulary, 1, self.tokenizer.bos, self.tokenizer.eos, None)

    @property
    def fingerprint(self) -> str:  # type: ignore[override]  # not before `fit`
        return self.tokenizer.fingerprint

    def check(self, raw: str) -> None:
        """A transcript: normalised text."""
        if reason := unreadable(raw):
            raise DataError(f"its text {reason}")
        if not normalise(raw):
            raise DataError(f"its text {raw!r} normalises to nothing.")
        if normalise(raw) != raw:
            raise DataError(f"its text {raw!r} is not normalised ({NORMALISER}: {normalise(raw)!r}).")

    def read(
        self,
        raw: str,
        start: float = 0.0,
        seconds: float | None = None,
        longest: float = math.inf,
        limit: str = LIMIT,
    ) -> str:
        """Normalised text. Raises ConfigError if it is empty or has no unique reading."""
        if not isinstance(raw, str):
            raise ConfigError(f"{raw!r} is no text. Give a string.")
        if reason := unreadable(raw):
            raise ConfigError(f"{shorten(raw, 60)!r} {reason}")
        if not (normal := normalise(raw)):
            raise ConfigError(f"{raw!r} holds no letter of a to z. Give text to synthesize.")
        return normal

    def check_size(self, raw: Any, most: int) -> None:
        """By its letters, of which reading loses none: reading takes a second a megabyte."""
        longest = int(self.letters.max())
        if isinstance(raw, str) and (count := len(LETTER.findall(raw))) > most * longest:
            raise ConfigError(
                f"{shorten(raw[:100], 60)!r} has {count} letters, but this model accepts at most {most} "
                f"subwords of at most {longest} letters. Cut it into sentences."
            )

    def encode(self, values: list[str]) -> list[Tensor]:
        return [torch.tensor(self.tokenizer.encode(text), dtype=torch.int64)[None] for text in values]

    def decode(self, content: Tensor) -> str:
        return self.tokenizer.decode(content[0].tolist())

    def length_text(self, length: int) -> str:
        return f"{length} subwords"

    def labels(self, ids: Sequence[int]) -> list[str]:
        return [self.tokenizer.piece(i) for i in ids]

    def features(self) -> dict[str, Any]:
        import datasets

        return {**super().features(), "letters": datasets.Value("int32")}  # with the spaces before words

    def row(self, content: Tensor) -> dict[str, Any]:
        return {**super().row(content), "letters": int(self.letters[content[0]].sum())}

    def token_seconds(self, column: Column) -> list[float]:
        """From a linear fit of duration against letters.

        The slope is the duration of a letter, or of the space before a word. The intercept is the silence
        around a sentence; BOS and EOS get half of it each.
        """
        count, duration = column("letters"), column("seconds")
        both = (count > 0) & (duration > 0)
        if not both.any():
            return [1 / SUBWORDS_PER_SECOND] * len(self.letters)
        count, duration = count[both], duration[both]
        slope, constant = np.polyfit(count, duration, 1) if len(set(count.tolist())) > 1 else (0.0, 0.0)
        if slope <= 0 or constant < 0:  # too few sentences, or all of one length
            slope, constant = duration.sum() / count.sum(), 0.0
        seconds = slope * self.letters
        seconds[[self.tokenizer.bos, self.tokenizer.eos]] = constant / 2
        return [round(float(one), 5) for one in seconds]

    def scorer(self, cfg: RunConfig) -> Scorer:
        return TextScorer(lambda row: row[self.column], lambda content: normalise(self.decode(content)))
