"""Text normalisation to LibriSpeech's convention: a to z, apostrophes, single spaces.

`normalise` folds characters that have one reading. `unreadable` reports characters that have none, and needs
the original text.
"""

import re
import unicodedata
from collections.abc import Iterable
from textwrap import shorten

NORMALISER = "librispeech-2"
PLAIN = "librispeech-1"  # texts of letters only are equal in both versions

APOSTROPHES = (  # and their variants, with single quotation marks
    "'`\xb4\u2018\u2019\u201a\u201b\u2039\u203a\u2032\u2035\u02b9\u02bb\u02bc\u02bd\u055a\ua78b\ua78c\uff07\uff40"
)
FOLDED = str.maketrans(
    {
        "ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "þ": "th", "ð": "d", "\u0131": "i",
        **dict.fromkeys(APOSTROPHES, "'"),
    }
)  # fmt: skip
# Punctuation that is not pronounced. Dashes and quotation marks are recognised by their category.
SILENT = frozenset('_*.,:;!?"…‥‼⁇⁈⁉¡¿·•„‚″‶，．：；！？＂' + APOSTROPHES)  # noqa: RUF001
UNUSUAL = re.compile(r"[^A-Za-z\s.,:;!?\"'-]")  # needs a closer check
WITHIN = re.compile(r"(?<=[^\W_])[_*]+(?='?[^\W_])")  # within a word, not emphasis: snake_case, f*ck
TAG = re.compile(r"<[^<>]*>|\[[^][]*\]|\{[^{}]*\}|\([^()]*\)|[<>\[\]{}()]")

# Words that begin or end with an apostrophe. Any other apostrophe at an edge is a quotation mark.
ELISIONS = frozenset(
    ("tis", "tisn't", "twas", "twasn't", "twere", "twill", "twould", "twixt", "tween", "neath", "gainst")
    + ("mongst", "em", "im", "ave", "n", "s", "d", "ll", "re", "ve", "m")
    + ("cause", "bout", "round", "til", "till", "fore", "nuff", "cept", "scuse", "nother")
    + ("ere", "er", "ome", "ouse", "orse", "ud")
)
BARE = re.compile(r"[a-z'\s]*|[A-Z'\s]*")  # a transcript, as in LibriSpeech: no punctuation, one case
ENDS_IN_ONE = re.compile(r"[ns]$|^(?:o|i|a|t|th|wi|ol|mo|po|de|ha|fro|fo|befo|yo|sho)$")


def normalise(text: str) -> str:
    """Lower-case a text, drop accents, fold letters that have one reading (ß to ss), keep the apostrophes of
    words, and replace everything else by single spaces.

    Characters without a unique reading are dropped as well, so call `unreadable` on the original text first.
    """
    plain = re.sub(r"(?<=[a-z])''+(?=[a-z])", "'", _folded(text))
    words = re.sub(r"[^a-z']+|''+", " ", plain).split()
    return " ".join((_unpaired if BARE.fullmatch(text) else _unquoted)(words))


def unreadable(text: str) -> str | None:
    """Reason why a text has no unique reading, with the fix; None if it has one.

    Takes the original text, because `normalise` drops the characters in question.
    """
    unusual = {*UNUSUAL.findall(text)}
    if not unusual:
        return None
    if tag := TAG.search(text):
        what = shorten(tag[0], 60)
        return f"has a tag ({what!r}): its pronunciation is unknown. Remove it, or write what is spoken."
    strange = sorted((c for c in unusual if not _readable(c)), key=lambda c: (not _is(c, "N"), c))
    within = WITHIN.search(text.translate(FOLDED))
    if not strange and not within:
        return None
    sign = strange[0] if strange else within[0][0] if within else ""
    words = (
        word for word in text.split() if sign in word and (strange or WITHIN.search(word.translate(FOLDED)))
    )
    where = shorten(next(words, sign), 60)
    if _is(sign, "N"):
        return f"has digits ({where!r}), which have no unique reading. Write them in words."
    if _is(sign, "L"):
        return f"has the letter {sign!r} ({where!r}), which has no unique reading. Write the word in a to z."
    if _is(sign, "C") or sign == "\ufffd":
        return f"holds {sign!r} ({where!r}), which is not text. Save it as UTF-8 again."
    return f"has the sign {sign!r} ({where!r}), which has no unique reading. Write it in words, or remove it."


def normaliser_of(texts: Iterable[str]) -> str:
    """Version of the normaliser, as the hash of these normalised texts names it."""
    return PLAIN if all(re.fullmatch("[a-z ]*", text) for text in texts) else NORMALISER


def _folded(text: str) -> str:
    """Lower case, without accents and invisible characters."""
    if text.isascii():
        return text.lower().translate(FOLDED)
    plain = unicodedata.normalize("NFKD", text.lower().translate(FOLDED)).translate(FOLDED)
    return "".join(c for c in plain if not unicodedata.combining(c) and not _is(c, "Cf"))


def _readable(sign: str) -> bool:
    """Whether a character folds to the letters a to z, or is punctuation that is not pronounced."""
    if _is(sign, "L") and sign not in APOSTROPHES:
        raised = _is(sign, "Lm")  # superscripts
        return not raised and re.fullmatch("[a-z']+", _folded(sign)) is not None
    return sign in SILENT or sign.isspace() or _is(sign, "Cf", "Pd", "Pi", "Pf", "M")


def _is(sign: str, *categories: str) -> bool:
    """Whether the Unicode category of a character starts with one of these."""
    return unicodedata.category(sign).startswith(categories)


def _unquoted(words: list[str]) -> list[str]:
    """Remove apostrophes that serve as quotation marks from the words of written text. One mark of a pair
    may be missing."""
    out: list[str] = []
    quoted = False
    for word in words:
        bare = word.strip("'")
        if not bare:
            continue
        if word.startswith("'") and bare not in ELISIONS:
            word, quoted = word[1:], True
        if word.endswith("'") and (quoted or not ENDS_IN_ONE.search(word[:-1])):
            word, quoted = word[:-1], False
        out.append(word)
    return out


def _unpaired(words: list[str]) -> list[str]:
    """Remove apostrophes that enclose a word or a phrase in a transcript. All others belong to their
    words."""
    out: list[str] = []
    opened: list[int] = []
    for word in words:
        bare = word.strip("'")
        if not bare:
            continue
        if word.startswith("'") and bare not in ELISIONS:
            opened.append(len(out))
        out.append(word)
        own = opened[-1:] == [len(out) - 1]
        if word.endswith("'") and opened and (own or not ENDS_IN_ONE.search(bare)):
            first = opened.pop()
            out[-1] = out[-1][:-1]
            out[first] = out[first][1:]
    return out
