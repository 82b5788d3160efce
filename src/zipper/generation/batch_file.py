"""Prompts of `zipper generate --batch`, and the entries of what is generated."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from zipper.config import expanded
from zipper.corpora.table import read_table
from zipper.disk import LONGEST_NAME, file_lock, file_name, write_atomic
from zipper.errors import ConfigError, DataError
from zipper.modalities.audio import recordings

LOCK = ".generating.lock"


@dataclass(frozen=True)
class Prompt:
    """Input of one request: id, modality, and its raw input (a text, or the path of a file).

    piece: start and length of a recording in seconds; by default the whole file.
    """

    id: str
    modality: str
    raw: str
    piece: tuple[float, float | None] = (0.0, None)


class Entries:
    """generated.jsonl: an entry a line, written as soon as a prompt has its answer. What is asked stands
    beside it until all are there, so that the same command goes on."""

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        """asked: what the entries depend on."""
        self.file, self.marker = folder / "generated.jsonl", folder / ".unfinished.json"
        self.asked = json.loads(json.dumps(asked))

    def lock(self) -> AbstractContextManager[None]:
        """Keeps other processes out. Raises ConfigError if one is at work in the folder."""
        return file_lock(self.file.with_name(LOCK), f"-o {self.file.parent}", other="another -o")

    def resumes(self) -> bool:
        """Whether the folder holds the beginning of what is asked."""
        try:
            return bool(json.loads(self.marker.read_text(encoding="utf-8")) == self.asked)
        except (OSError, ValueError):
            return False

    def begin(self) -> set[str]:
        """Ids of the entries that are there already."""
        kept = self._whole() if self.resumes() and self.file.is_file() else []
        write_atomic(self.file, "".join(f"{line}\n" for line in kept).encode())
        write_atomic(self.marker, json.dumps(self.asked).encode())  # after entries of another request
        return {json.loads(line)["id"] for line in kept}

    def add(self, entry: Mapping[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(entry) + "\n")

    def end(self) -> None:
        self.marker.unlink(missing_ok=True)

    def _whole(self) -> list[str]:
        """Lines, without what a killed process has left of one."""
        text = self.file.read_text(encoding="utf-8", errors="replace")
        return text[: text.rfind("\n") + 1].splitlines()


def read_batch(path: Path) -> list[Prompt]:
    """Prompts of a folder of recordings (the file's name is the id), of a .txt with a sentence a line (its
    number is the id), or of a .tsv or .jsonl table in the format of a manifest, where paths of recordings are
    absolute or relative to the table.

    Raises ConfigError with the file or the line number.
    """
    if path.is_dir():
        files = recordings(path)
        stems = Counter(file.stem for file in files)
        names = [file.stem if stems[file.stem] == 1 else file.name for file in files]
        found = [
            (str(file), Prompt(file_name(name.replace(".", "_")), "speech", str(file.resolve())))
            for file, name in zip(files, names, strict=True)
        ]
    elif not path.is_file():
        raise ConfigError(f"--batch {path}: no such file or folder.")
    elif path.suffix.lower() == ".txt":
        try:
            lines = enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1)
        except UnicodeDecodeError as error:
            raise ConfigError(f"--batch {path} is not UTF-8 text ({error}). Save it as UTF-8.") from error
        found = [(f"{path}:{n}", Prompt(str(n), "text", line.strip())) for n, line in lines if line.strip()]
    elif path.suffix.lower() in (".tsv", ".jsonl"):
        found = _table_prompts(path)
    else:
        raise ConfigError(
            f"--batch {path}: give a .tsv with a header line, a .jsonl, a .txt with a sentence a line, or a "
            "folder of recordings."
        )
    known: set[str] = set()
    for where, prompt in found:
        if prompt.id in known or prompt.id != file_name(prompt.id) or "." in prompt.id:
            raise ConfigError(
                f"--batch {where}: needs a unique id that can name a file, without slashes, dots or any of "
                f'\\ : * ? " < > |, and of at most {LONGEST_NAME} bytes; it has {shorten(prompt.id, 200)!r}.'
            )
        known.add(prompt.id)
    if not found:
        raise ConfigError(f"--batch {path} holds no prompt.")
    return [prompt for _, prompt in found]


def _table_prompts(file: Path) -> list[tuple[str, Prompt]]:
    """Prompts of a table, each with its file and line number."""
    found = []
    try:
        for line in read_table(file):
            audio, text = line.path("audio"), line.text("text")
            given = [("text", text)] if text else []
            given += [("speech", os.path.realpath(file.parent / expanded(audio)))] if audio else []
            name = line.name("id")
            if len(given) != 1 or not name:
                raise DataError(
                    f"{line.where}: needs a unique id, and either text or audio; it has "
                    f"{shorten(str(line.cells), 200)}."
                )
            found.append((line.where, Prompt(name, *given[0], line.piece())))
    except DataError as error:
        raise ConfigError(f"--batch {error}") from error
    return found
