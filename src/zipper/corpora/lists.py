"""Corpora that are lists: a manifest of one's own (.tsv or .jsonl), and plain text."""

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from zipper.corpora.utterance import SPLITS, Utterance, check_ids, hold_out, normal_text
from zipper.errors import DataError

MAX_WORDS = 40  # longer sentences of a text are left out, and counted
NEEDED = ("audio", "text")


def read_list(file: Path, dev: int, test: int, seed: int) -> list[Utterance]:
    """A manifest: tab-separated with a header, or JSON lines. Columns: audio (a path, absolute or beside the
    manifest) and text, one of which may be empty where a corpus is of one modality; and if wanted id,
    speaker, split (train, dev or test) and subset. Without splits, whole speakers are held out.

    Raises DataError on a line that is not such, with its number.
    """
    if not file.is_file():
        raise DataError(
            f"data.folder={file} does not exist: data.corpus=manifest needs a .tsv or .jsonl file."
        )
    rows = list(_rows(file))
    if not rows:
        raise DataError(f"{file} lists nothing.")
    silent, mute = (not any(row.get(key) for _, row in rows) for key in NEEDED)
    out = []
    for number, row in rows:
        where = f"{file}, line {number}"
        split = row.get("split") or ""
        if split and split not in SPLITS:
            raise DataError(f"{where}: split={split!r} is none of {', '.join(SPLITS)}.")
        audio = row.get("audio") or ""
        path = str((file.parent / audio).resolve()) if audio else None
        id = row.get("id") or (Path(audio).with_suffix("").as_posix() if audio else f"line-{number}")
        text = None if mute else normal_text(row.get("text") or "")
        if path is None and not silent:
            path = ""
        out.append(
            Utterance(
                id, path, text, row.get("speaker") or id, split, f"manifest/{row.get('subset') or split}"
            )
        )
    check_ids(out, str(file))
    if any(u.split for u in out):
        if lacking := next((u.id for u in out if not u.split), None):
            raise DataError(f"{file}: {lacking} has no split, but others have. Give every line one, or none.")
        return out
    return [replace(u, subset=f"manifest/{u.split}") for u in hold_out(out, dev, test, seed)]


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    # At \n alone: splitlines() knows more ends of lines, which may stand within a JSON string.
    try:
        whole = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no text in UTF-8 ({error}). Save it as UTF-8.") from error
    lines = whole.rstrip("\n").split("\n")
    lines = [line.rstrip("\r") for line in lines] if lines != [""] else []
    if file.suffix == ".jsonl":
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                yield number, {key: str(value) for key, value in row.items() if value is not None}
            except (ValueError, AttributeError) as error:
                raise DataError(f"{file}, line {number}: not a JSON object ({error}).") from error
        return
    header = lines[0].split("\t") if lines else []
    if not {*NEEDED} & {*header}:
        raise DataError(
            f"{file}: its first line must name columns, tab-separated, audio and text among them; it is "
            f"{header}."
        )
    for number, line in enumerate(lines[1:], 2):
        cells = line.split("\t")
        if len(cells) != len(header):
            raise DataError(f"{file}, line {number}: {len(cells)} columns, but the header has {len(header)}.")
        yield number, dict(zip(header, cells, strict=True))


def read_text(folder: Path, dev: int, test: int, seed: int) -> list[Utterance]:
    """Text alone: sentences of all .txt files (books are held out whole), or the lines of LibriSpeech's
    language-model corpus (librispeech-lm-norm.txt.gz). Raises DataError where there is neither."""
    found = [
        Utterance(f"{name}-{i:07d}", None, text, name, "train", "text/train")
        for name, texts in _texts(folder)
        for i, text in enumerate(texts)
    ]
    return [replace(u, subset=f"text/{u.split}") for u in hold_out(found, dev, test, seed)]


def _texts(folder: Path) -> Iterator[tuple[str, list[str]]]:
    if zipped := sorted(folder.glob("*.txt.gz")):
        for file in zipped:
            with gzip.open(file, "rt", encoding="utf-8") as lines:
                yield file.stem, [text for line in lines if (text := normal_text(line))]
        return
    files = sorted(folder.glob("**/*.txt"))
    if not files:
        raise DataError(f"{folder} holds no .txt and no .txt.gz file. Name a folder of plain text (UTF-8).")
    for file in files:
        yield file.relative_to(folder).with_suffix("").as_posix(), sentences_of(file)[0]


def sentences_of(file: Path) -> tuple[list[str], int, int]:
    """Normalised sentences of a text file in its order; and how many were left out, for digits (which have no
    one reading) and for length."""
    found: list[str] = []
    digits = long = 0
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    for sentence in re.split(r"(?<=[.!?;])\s+|\n\s*\n", text):
        words = normal_text(sentence)
        if re.search(r"\d", sentence):
            digits += 1
        elif len(words.split()) > MAX_WORDS:
            long += 1
        elif words:
            found.append(words)
    return found, digits, long
