"""LibriSpeech (openslr.org/12), LibriTTS (openslr.org/60) and Libri-Light, in their published layouts.

    LibriSpeech/SUBSET/SPEAKER/CHAPTER/  SPEAKER-CHAPTER-0000.flac ...   SPEAKER-CHAPTER.trans.txt
    LibriTTS/SUBSET/SPEAKER/CHAPTER/     SPEAKER_CHAPTER_..._....wav     ... .normalized.txt
    {small,medium,large}/SPEAKER/BOOK/   CHAPTER.flac                    CHAPTER.json with `voice_activity`

Indexing reads file names and transcripts, but no audio. Audio without a transcript, or a transcript without
audio, is listed too, so that preparation counts it as skipped.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

from zipper.corpora.utterance import Utterance, normal_text
from zipper.errors import DataError

SUBSETS = {
    "train": ["train-clean-100", "train-clean-360", "train-other-500"],
    "dev": ["dev-clean", "dev-other"],
    "test": ["test-clean", "test-other"],
}
PUBLISHED = {"librispeech": "LibriSpeech", "libritts": "LibriTTS"}
BRACKETS = str.maketrans("()[]", "    ")
LIGHT = ("small", "medium", "large")


def index_librispeech(corpus: str, folder: Path, splits: dict[str, list[str]]) -> list[Utterance]:
    """Utterances of LibriSpeech or LibriTTS.

    corpus: librispeech or libritts. folder: the corpus folder, or its parent. splits: subsets of each split,
    or parts of them (`train-clean-100/26`); the longest match of an utterance decides its split.
    Raises DataError if the folder or a subset is missing.
    """
    root = folder / PUBLISHED[corpus]
    root = root if root.is_dir() else folder
    named = [(part.strip("/"), split) for split, parts in splits.items() for part in parts]
    wanted = dict(named)
    if len(wanted) < len(named):
        twice = next(part for part, split in named if wanted[part] != split or named.count((part, split)) > 1)
        raise DataError(f"data.splits names {twice} twice. Name it once, or parts of it ({twice}/SPEAKER).")
    out, found = list[Utterance](), set[str]()
    for subset in dict.fromkeys(part.split("/")[0] for part in wanted):
        if not (root / subset).is_dir():
            there = ", ".join(sorted(path.name for path in root.glob("*-*/"))) or "none"
            raise DataError(
                f"{root} has no subset {subset}; available: {there}. Download it (`make data-{corpus}`), "
                "name data.folder, or choose among data.splits."
            )
        for speaker, chapter, path in _folders(root / subset):
            places = (f"{subset}/{speaker}/{chapter}", f"{subset}/{speaker}", subset)
            if place := next((one for one in places if one in wanted), None):
                out += _chapter(path, speaker, chapter, wanted[place], f"{corpus}/{subset}")
                found.add(place)
    if lost := [part for part in wanted if part.count("/") and part not in found]:
        raise DataError(f"data.splits: {root} has no recordings of {lost[0]}. Correct it, or leave it out.")
    return out


def _chapter(path: Path, speaker: str, chapter: str, split: str, subset: str) -> Iterator[Utterance]:
    """Utterances of a chapter."""
    names = os.listdir(path)
    if subset.startswith("librispeech/"):
        ending, listed = ".flac", f"{speaker}-{chapter}.trans.txt"
        lines = _text(path / listed).split("\n") if listed in names else []
        texts = {name: text for name, _, text in (line.partition(" ") for line in lines) if name}
    else:  # text in brackets is spoken: LibriTTS contains only text that agrees with the audio
        ending, tail = ".wav", ".normalized.txt"
        read = [name.removesuffix(tail) for name in names if name.endswith(tail)]
        texts = {name: _text(path / f"{name}{tail}").translate(BRACKETS) for name in read}
    recorded = {name.removesuffix(ending) for name in names if name.endswith(ending)}
    for name in sorted(recorded | texts.keys()):
        text = normal_text(texts.get(name, ""))
        yield Utterance(name, str(path / f"{name}{ending}"), text, speaker, split, subset)


def index_librilight(folder: Path, longest: float) -> list[Utterance]:
    """Utterances of Libri-Light, without text, all in split train.

    Joins neighbouring `voice_activity` intervals up to `longest` seconds, as the corpus' cut_by_vad.py does,
    but without writing new files. Raises DataError if the folder holds none of small, medium, large.
    """
    parts = [folder / name for name in LIGHT if (folder / name).is_dir()]
    if not parts:
        raise DataError(f"data.folder={folder} holds none of {', '.join(LIGHT)}: it is not Libri-Light.")
    out: list[Utterance] = []
    for part in parts:
        for speaker, book, path in _folders(part):
            for file in sorted(name for name in os.listdir(path) if name.endswith(".flac")):
                audio, info = path / file, path / f"{file[:-5]}.json"
                id = f"{speaker}-{book}-{file[:-5]}"
                subset = f"librilight/{part.name}"
                for start, end in _runs(info, longest):
                    out.append(
                        Utterance(
                            f"{id}-{round(start * 100):07d}", str(audio), None, speaker, "train", subset,
                            round(start, 3), round(end - start, 3),
                        )
                    )  # fmt: skip
    return out


def _runs(info: Path, longest: float) -> Iterator[tuple[float, float]]:
    """Joins neighbouring intervals of speech while they fit; splits one that is too long."""
    try:
        voiced = json.loads(info.read_text(encoding="utf-8"))["voice_activity"]
        stretches = sorted((float(start), float(end)) for start, end in voiced)
        if wrong := [one for one in stretches if not 0 <= one[0] <= one[1] < math.inf]:
            raise ValueError(f"{wrong[0]} is not an interval")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{info} is missing or damaged ({error}): it must list the intervals of speech (voice_activity)."
        ) from error
    begun: tuple[float, float] | None = None
    for start, end in stretches:
        if begun and max(end, begun[1]) - begun[0] <= longest:
            begun = (begun[0], max(end, begun[1]))  # an interval may lie within another one
            continue
        if begun:
            yield begun
        while end - start > longest:
            yield (start, start + longest)
            start += longest
        begun = (start, end)
    if begun:
        yield begun


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text ({error}). Download it again.") from error


def _folders(root: Path) -> Iterator[tuple[str, str, Path]]:
    """SPEAKER/CHAPTER folders, exactly two levels deep, so that cyclic links do no harm."""
    for speaker in _sorted(root):
        for chapter in _sorted(root / speaker):
            yield speaker, chapter, root / speaker / chapter


def _sorted(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())
