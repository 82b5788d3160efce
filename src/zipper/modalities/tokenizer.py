"""Byte-pair tokenizer of normalised text."""

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from zipper.config import read_json
from zipper.errors import DataError

LETTERS = list("abcdefghijklmnopqrstuvwxyz'")


class Tokenizer:
    """Tokenizer of normalised text with BOS and EOS: trained here, or that of a pre-trained model, where
    BOS and EOS may be the same token."""

    def __init__(self, tokenizer: HFTokenizer) -> None:
        """Wrap a Hugging Face tokenizer whose post-processor adds BOS and EOS."""
        self.tokenizer = tokenizer
        self.bos, self.eos = tokenizer.encode("").ids

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int) -> "Tokenizer":
        """Train a BPE tokenizer of at most `vocabulary` tokens on normalised texts.

        Raises DataError if `vocabulary` is smaller than the number of letters and special tokens.
        """
        specials = ["<begin>", "<end>"]
        if vocabulary < len(specials) + len(LETTERS) + 1:
            raise DataError(
                f"data.subwords={vocabulary} is less than the number of letters and special tokens. Give at "
                f"least {len(specials) + len(LETTERS) + 1}."
            )
        tokenizer = HFTokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=specials, initial_alphabet=LETTERS, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.post_processor = _template(tokenizer, *specials)
        return cls(tokenizer)

    @classmethod
    def load(cls, file: Path) -> "Tokenizer":
        """Load a tokenizer.json: one of this package, or one in Hugging Face format beside the config.json
        that names BOS and EOS.

        Raises DataError if the file is missing, is no tokenizer, or loses letters of normalised text.
        """
        if not file.is_file():
            raise DataError(
                f"{file} does not exist: it should hold the tokenizer (tokenizer.json) of the text tower."
            )
        try:
            tokenizer = HFTokenizer.from_file(str(file))
        except Exception as error:  # the package raises bare Exception
            raise DataError(f"{file} is no tokenizer.json: {error}") from error
        own = tokenizer.token_to_id("<begin>") is not None and tokenizer.token_to_id("<end>") is not None
        begin, end = ("<begin>", "<end>") if own else _specials_of_model(file, tokenizer)
        tokenizer.post_processor = _template(tokenizer, begin, end)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        found = cls(tokenizer)
        if lost := [one for one in LETTERS if found.decode(found.encode(one)) != one]:
            raise DataError(
                f"{file} loses letters of normalised text, which has {LETTERS[0]} to {LETTERS[-2]} and "
                f"{LETTERS[-1]}: {' '.join(lost)}. Give a tokenizer of lower-case English."
            )
        return found

    def save(self, file: Path) -> None:
        """Write tokenizer.json."""
        # Tokenizer.save of the package hides the reason of a failed write.
        file.write_text(self.tokenizer.to_str(), encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Ids of a normalised text, without BOS and EOS."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of a sequence of ids. Special tokens are skipped."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def piece(self, index: int) -> str:
        """String of one token; \u2581 is the space before a word, for byte-level tokenizers (\u0120), too."""
        return (self.tokenizer.id_to_token(index) or f"<{index}>").replace("\u0120", "\u2581")

    @cached_property
    def vocabulary(self) -> int:
        """Ids: one more than the largest. There may be fewer tokens."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @property
    def fingerprint(self) -> str:
        """Hash of the tokenizer. Towers and encoded datasets with the same hash use the same ids."""
        info = json.loads(self.tokenizer.to_str())
        if self.tokenizer.token_to_id("<begin>") == self.bos:
            info["post_processor"] = None  # constant for tokenizers of this package
        text = json.dumps(info, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _template(tokenizer: HFTokenizer, begin: str, end: str) -> processors.TemplateProcessing:
    """Post-processor that adds BOS and EOS."""
    ids = [(name, tokenizer.token_to_id(name)) for name in dict.fromkeys((begin, end))]
    try:
        return processors.TemplateProcessing(single=f"{begin} $A {end}", special_tokens=ids)
    except ValueError as error:
        raise DataError(
            f"The tokenizer's BOS {begin!r} and EOS {end!r} cannot be used: neither name may have a space or "
            "a colon. Rename them in tokenizer.json."
        ) from error


def _specials_of_model(file: Path, tokenizer: HFTokenizer) -> tuple[str, str]:
    """BOS and EOS of a pre-trained model: the ids in config.json, else the post-processor's tokens.

    A model without BOS (Qwen) uses EOS in its place.
    """
    config = file.with_name("config.json")
    named = read_json(config) if config.is_file() else {}
    found = dict[str, str | None]()
    for key in ("bos_token_id", "eos_token_id"):
        given = named.get(key)
        index = given[0] if given and isinstance(given, list) else given
        known = type(index) is int and index >= 0 and tokenizer.id_to_token(index)
        if index is not None and not known:
            raise DataError(f"{config}: {key}={given!r} is no id of a token in {file}. Restore both.")
        found[key] = known or None
    begin, end = found.values()
    if end is None:
        specials = tokenizer.encode("").tokens  # as saved by this package
        if len(specials) != 2:
            raise DataError(
                f"{file} has no <begin> and <end>, and no config.json beside it names bos_token_id and "
                "eos_token_id. Give the tokenizer.json in the folder of its model."
            )
        begin, end = specials
    return begin or end, end
