"""LibriSpeech (openslr.org/12), LibriTTS (openslr.org/60) and Libri-Light, in the layouts as published.

    LibriSpeech/SUBSET/SPEAKER/CHAPTER/  SPEAKER-CHAPTER-0000.flac ...   SPEAKER-CHAPTER.trans.txt
    LibriTTS/SUBSET/SPEAKER/CHAPTER/     SPEAKER_CHAPTER_..._....wav     ... .normalized.txt
    {small,medium,large}/SPEAKER/BOOK/   CHAPTER.flac                    CHAPTER.json with `voice_activity`

Indexed by names alone: no audio is opened. What has no partner (a transcript without audio, audio without
transcript) is listed all the same, so that preparing counts it as skipped.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator
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
    """corpus: librispeech or libritts. folder: holds LibriSpeech or LibriTTS, or is it. splits: by split,
    subsets or parts of them (`train-clean-100/26`); the longest that fits an utterance decides.

    Raises DataError where the folder or a subset is missing.
    """
    root = folder / PUBLISHED[corpus]
    root = root if root.is_dir() else folder
    wanted = {part.strip("/"): split for split, parts in splits.items() for part in parts}
    out: list[Utterance] = []
    for subset in dict.fromkeys(part.split("/")[0] for part in wanted):
        if not (root / subset).is_dir():
            there = ", ".join(sorted(path.name for path in root.glob("*-*/"))) or "none"
            raise DataError(
                f"{root} has no subset {subset}; there are: {there}. Fetch it (`make data-{corpus}`), name "
                "data.folder, or choose among data.splits."
            )
        for speaker, chapter, path in _folders(root / subset):
            split = _split(f"{subset}/{speaker}/{chapter}", wanted)
            if split is not None:
                one = _chapter if corpus == "librispeech" else _tts_chapter
                out += one(path, speaker, chapter, split, f"{corpus}/{subset}")
    return out


def _chapter(path: Path, speaker: str, chapter: str, split: str, subset: str) -> Iterator[Utterance]:
    """Of LibriSpeech."""
    texts: dict[str, str] = {}
    listed = path / f"{speaker}-{chapter}.trans.txt"
    if listed.is_file():
        for line in _text(listed).split("\n"):
            name, _, text = line.partition(" ")
            if name:
                texts[name] = text
    recorded = {name[: -len(".flac")] for name in os.listdir(path) if name.endswith(".flac")}
    for name in sorted(recorded | texts.keys()):
        yield Utterance(
            name, str(path / f"{name}.flac"), normal_text(texts.get(name, "")), speaker, split, subset
        )


def _tts_chapter(path: Path, speaker: str, chapter: str, split: str, subset: str) -> Iterator[Utterance]:
    """Of LibriTTS."""
    names = os.listdir(path)
    recorded = {name[: -len(".wav")] for name in names if name.endswith(".wav")}
    texts = {name[: -len(".normalized.txt")] for name in names if name.endswith(".normalized.txt")}
    for name in sorted(recorded | texts):
        text = _text(path / f"{name}.normalized.txt") if name in texts else ""
        # What stands in brackets was read: its makers left out what did not agree with the audio.
        yield Utterance(
            name, str(path / f"{name}.wav"), normal_text(text.translate(BRACKETS)), speaker, split, subset
        )


def index_librilight(folder: Path, longest: float) -> list[Utterance]:
    """Unlabelled speech: runs of `voice_activity` of at most `longest` seconds each, as the corpus' own
    cut_by_vad.py joins them, without cutting a file. All of split train.

    Raises DataError where the folder holds none of small, medium, large.
    """
    parts = [folder / name for name in LIGHT if (folder / name).is_dir()]
    if not parts:
        raise DataError(f"data.folder={folder} holds none of {', '.join(LIGHT)}: it is no Libri-Light.")
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
    """Neighbouring stretches of speech joined while they fit; one that is too long alone is cut."""
    try:
        voiced = json.loads(info.read_text(encoding="utf-8"))["voice_activity"]
        stretches = [(float(start), float(end)) for start, end in voiced]
        if wrong := [one for one in stretches if not 0 <= one[0] <= one[1] < math.inf]:
            raise ValueError(f"{wrong[0]} is no stretch of time")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{info} is missing or damaged ({error}): it is to list the stretches of speech (voice_activity)."
        ) from error
    begun: tuple[float, float] | None = None
    for start, end in stretches:
        if begun is not None and end - begun[0] <= longest:
            begun = (begun[0], end)
            continue
        if begun is not None:
            yield begun
        while end - start > longest:
            yield (start, start + longest)
            start += longest
        begun = (start, end)
    if begun is not None:
        yield begun


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as text in UTF-8 ({error}). Fetch it again.") from error


def _folders(root: Path) -> Iterator[tuple[str, str, Path]]:
    """SPEAKER/CHAPTER folders, two levels and no deeper: a link that leads back up is not followed on."""
    for speaker in _sorted(root):
        for chapter in _sorted(root / speaker):
            yield speaker, chapter, root / speaker / chapter


def _sorted(folder: Path) -> Iterable[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def _split(place: str, wanted: dict[str, str]) -> str | None:
    """place: SUBSET/SPEAKER/CHAPTER"""
    steps = place.split("/")
    return next((wanted[p] for n in (3, 2, 1) if (p := "/".join(steps[:n])) in wanted), None)
