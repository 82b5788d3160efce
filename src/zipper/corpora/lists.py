"""User corpora: a manifest (.tsv or .jsonl), or plain text."""

import gzip
import os
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from zipper.corpora.table import read_table
from zipper.corpora.utterance import SPLITS, Utterance, check_ids, hold_out, normal_text
from zipper.errors import DataError
from zipper.modalities.audio import without_speed
from zipper.modalities.normalise import normalise, unreadable

ASIDE = re.compile(r"(?<![^\W_])\(|\)(?![^\W_])")  # brackets around words, but not those of `word(s)`
MAX_WORDS = 40  # longer sentences are skipped and counted


def read_list(
    file: Path,
    dev: int,
    test: int,
    seed: int,
    other: Mapping[str, bool] | None = None,
    only: str | None = None,
) -> list[Utterance]:
    """Utterances of a manifest.

    Columns: audio (path, absolute or relative to the manifest) and text, of which one may be empty for a
    corpus of one modality. Optional: id, speaker, split (train, dev or test), subset, and a segment of the
    audio in seconds (start or offset, end or duration). Without splits, whole speakers are held out for dev
    and test; only: or all go to this one. other: further columns of raw inputs, and whether they name files.
    Raises DataError with the number of an invalid line.
    """
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise DataError(f"data.folder={file} {what}: data.corpus=manifest needs a .tsv or .jsonl file.")
    other = other or {}
    rows = read_table(file, ["audio", "text", *other])
    silent, mute = (not any(row.text(key) for row in rows) for key in ("audio", "text"))
    further = [key for key in other if any(row.text(key) for row in rows)]
    if silent and mute and not further:
        raise DataError(f"{file} lists nothing: no line has {' or '.join(['audio', 'text', *other])}.")

    def absolute(path: str) -> str:
        return os.path.realpath(file.parent / os.path.expanduser(path)) if path else ""

    pieces = [(row.path("audio"), *row.piece()) for row in rows]
    times = Counter(audio for audio, *_ in pieces)
    together = Counter((audio, round(start * 100)) for audio, start, _ in pieces)
    out = []
    for row, (audio, start, seconds) in zip(rows, pieces, strict=True):
        split = row.name("split").strip()
        if split and split not in SPLITS:
            raise DataError(f"{row.where}: split={split!r} is not one of {', '.join(SPLITS)}.")
        recording = Path(audio).with_suffix("").as_posix() if audio else f"line-{row.number}"
        later = f"-{round(start * 100):07d}" if start else ""
        if seconds and together[audio, round(start * 100)] > 1:  # segments that overlap
            later = f"-{round(start * 100):07d}-{round((start + seconds) * 100):07d}"
        text = None if mute else normal_text(row.text("text"))
        id = row.name("id") or recording + later
        if without_speed(id)[1] != 1:
            raise DataError(
                f"{row.where}: the id {id} ends as that of a copy at another speed (data.speeds). Give it "
                "another id."
            )
        speaker = row.name("speaker").strip() or (recording if start or seconds or times[audio] > 1 else id)
        subset = f"manifest/{row.name('subset').strip() or split}"
        raw = {key: absolute(row.path(key)) if other[key] else row.text(key) for key in further}
        path = None if silent else absolute(audio)
        out.append(Utterance(id, path, text, speaker, split, subset, start, seconds, raw))
    check_ids(out, str(file))
    if any(u.split for u in out):
        if lacking := next((u.id for u in out if not u.split), None):
            raise DataError(
                f"{file}: {lacking} has no split, but others have. Give every line a split, or none."
            )
        return out
    held = hold_out(out, dev, test, seed, only)
    return [replace(u, subset=f"manifest/{u.split}") if u.subset == "manifest/" else u for u in held]


def read_text(
    folder: Path,
    dev: int,
    test: int,
    seed: int,
    words: tuple[int, int] | None = None,
    only: str | None = None,
) -> list[Utterance]:
    """Text-only corpus: sentences of all .txt files, or lines of LibriSpeech's language-model corpus.

    words: passages of so many words, which end anywhere, in place of sentences. Whole files are held out for
    dev and test; only: or all go to this one. Raises DataError if there is neither .txt nor
    librispeech-lm-norm.txt.gz.
    """
    found = [
        Utterance(f"{name}-{i:07d}", None, text, name, "train", "text/train")
        for name, texts in _texts(folder, words is None)
        for i, text in enumerate(passages(texts, words, f"{seed} {name}") if words else texts)
    ]
    if not found:
        what = f"passage of {words[0]} to {words[1]} words" if words else "sentence"
        raise DataError(f"data.folder={folder} holds no {what} that can be used. Add text.")
    return [replace(u, subset=f"text/{u.split}") for u in hold_out(found, dev, test, seed, only)]


def passages(texts: list[str], words: tuple[int, int], seed: str) -> Iterator[str]:
    """Consecutive texts joined, and cut into passages of random length between two numbers of words. What is
    left at the end, if it is shorter, goes."""
    flow, lengths, start = " ".join(texts).split(), random.Random(seed), 0
    while (end := start + lengths.randint(*words)) <= len(flow):
        yield " ".join(flow[start:end])
        start = end


def _texts(folder: Path, sentences: bool) -> Iterator[tuple[str, list[str]]]:
    zipped = sorted(folder.glob("*.txt.gz"))
    for file in zipped:
        try:
            with gzip.open(file, "rt", encoding="utf-8", errors="replace") as lines:
                yield file.stem, [text for line in lines if (text := normal_text(line.strip()))]
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{file} cannot be unpacked ({error}). Download it again.") from error
    if not zipped:
        longest = MAX_WORDS if sentences else None
        yield from sentences_of_folder(folder, f"data.folder={folder}", longest).items()


def sentences_of_folder(folder: Path, setting: str, longest: int | None = MAX_WORDS) -> dict[str, list[str]]:
    """Normalised sentences of each .txt file, in order; prints how many, and how many are skipped.

    setting: `key=value` that names the folder. longest: words. Raises DataError if it holds no .txt file.
    """
    found, left_out = dict[str, list[str]](), Counter[str]()
    for file in sorted(_text_files(folder)):
        texts, skipped = sentences_of(file, longest)
        name = file.relative_to(folder)
        stem = name.with_suffix("").as_posix()
        found[name.as_posix() if stem in found else stem] = texts  # a.TXT beside a.txt
        left_out += skipped
    if not found:
        raise DataError(f"{setting} holds no .txt file. Name a folder of plain text (UTF-8).")
    reasons = ", ".join(f"{count} {why}" for why, count in sorted(left_out.items())) or "no sentence"
    print(f"{folder}: {sum(map(len, found.values()))} sentences; skipped {reasons}")
    return found


def _text_files(folder: Path) -> Iterator[Path]:
    """The .txt files of a folder, also of linked ones, each of which is entered once."""
    entered = set[str]()
    for place, below, names in os.walk(folder, followlinks=True):
        below.sort()
        if (real := os.path.realpath(place)) in entered:
            below.clear()
            continue
        entered.add(real)
        files = (Path(place, name) for name in names)
        yield from (file for file in files if file.suffix.lower() == ".txt" and file.is_file())


def sentences_of(file: Path, longest: int | None = MAX_WORDS) -> tuple[list[str], Counter[str]]:
    """Normalised sentences of a text file in order, and counts of skipped sentences by reason.

    Skips sentences that `normalise` cannot read, and long ones. Raises DataError if the file is not UTF-8.
    """
    found, left_out = list[str](), Counter[str]()
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text ({error}). Save it as such.") from error
    for sentence in re.split(r"(?<=[.!?;])\s+|\n\s*\n", text):
        sentence = ASIDE.sub(" ", sentence)
        words = normalise(sentence)
        if unreadable(sentence):
            left_out["with digits, signs, tags or other letters"] += 1
        elif longest and len(words.split()) > longest:
            left_out[f"of more than {longest} words"] += 1
        elif words:
            found.append(words)
    return found, left_out
