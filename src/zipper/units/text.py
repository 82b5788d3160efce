"""Text to ids and back: one normaliser, LibriSpeech's convention, and byte-pair subwords."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from zipper.errors import DataError

NORMALISER = "librispeech-1"
LETTERS = list("abcdefghijklmnopqrstuvwxyz'")


def normalise(text: str) -> str:
    """Lower case, accents dropped, apostrophes kept, all else to one space.

    Digits would vanish too: whoever brings text in refuses or skips those first, since a digit has no one
    reading.
    """
    plain = unicodedata.normalize("NFKD", text.lower().replace("\u2019", "'"))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return " ".join(re.sub(r"[^a-z' ]+", " ", plain).split())


class Subwords:
    """Byte-pair subwords of normalised text, with a begin and an end of their own."""

    begin, end = 0, 1

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int) -> "Subwords":
        """Learns at most `vocabulary` subwords from normalised texts. DataError where that is too few."""
        specials = ["<begin>", "<end>"]
        if vocabulary < len(specials) + len(LETTERS) + 1:
            raise DataError(
                f"data.subwords={vocabulary} is fewer than the letters and specials need. Give at least "
                f"{len(specials) + len(LETTERS) + 1}."
            )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=specials, initial_alphabet=LETTERS, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, file: Path) -> "Subwords":
        """Raises DataError where the file is missing or is no tokenizer."""
        if not file.is_file():
            raise DataError(
                f"{file} does not exist: it should hold the tokenizer (tokenizer.json) of the text tower."
            )
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the package raises bare Exception
            raise DataError(f"{file} is no tokenizer.json: {error}") from error
        if tokenizer.token_to_id("<begin>") != cls.begin or tokenizer.token_to_id("<end>") != cls.end:
            raise DataError(
                f"{file} has no <begin> and <end> at ids {cls.begin} and {cls.end}: it was not made here."
            )
        return cls(tokenizer)

    def save(self, file: Path) -> None:
        """Writes tokenizer.json."""
        file.write_text(self.tokenizer.to_str(pretty=True))  # its own save hides why a write failed

    def encode(self, text: str) -> list[int]:
        """Ids of normalised text, without begin and end."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The inverse of `encode`; begin and end, should they be there, are left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def piece(self, index: int) -> str:
        """One subword as it is written in the tokenizer, with a mark where a word begins."""
        return self.tokenizer.id_to_token(index) or f"<{index}>"

    @property
    def vocabulary(self) -> int:
        return self.tokenizer.get_vocab_size()

    @property
    def fingerprint(self) -> str:
        """Hash of the tokenizer: towers and stores that share it read the same ids."""
        return hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()[:16]
