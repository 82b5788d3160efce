"""Reader of tables (.tsv with a header, or .jsonl): manifests, and the prompts of `generate --batch`.

Cells keep their type: text is a string, an id a string or an integer, a time a number of seconds.
"""

import difflib
import json
import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from zipper.errors import DataError

Cell = object  # any JSON type; a string in a .tsv

COLUMNS = ("id", "audio", "text", "speaker", "split", "subset", "offset", "duration", "start", "end")
# Names of these columns in other tools, used for hints in error messages.
MEANT = {
    "audio": "audio_filepath audio_file_path audio_path audio_file audio_filename path wav wavs wav_path "
    "wav_file wav_filename file file_name filename file_path filepath clip recording sound",
    "text": "transcript transcripts transcription transcriptions sentence sentences raw_text normalized_text "
    "text_normalized normalised_text words caption label target",
    "id": "utt_id uttid utterance_id audio_id segment_id key",
    "speaker": "speaker_id spk spk_id spkid speaker_name client_id",
    "split": "partition fold",
}
BROKEN = re.compile("[\0\ud800-\udfff]")  # halves of surrogate pairs
UNPRINTED = re.compile(r"[\x00-\x1f\x7f]")
LATEST = 1e9  # seconds, 30 years
MISNOMERS = {name: column for column, names in MEANT.items() for name in names.split()}
TIMES = re.compile(
    r"(?:(?:segment|seg|audio|clip|utt)_?)?(?:offset|start|begin|onset|from|end|stop|to|duration|dur|length|len)"
    r"(?:_?(?:at|time|s|sec|secs|seconds|ms|millis|frame|frames|sample|samples))*"
)


@dataclass(frozen=True)
class Line:
    """Row of a table and its position. Cells are checked on access; missing, null and NaN cells are empty."""

    file: Path
    number: int
    cells: dict[str, Cell]

    @property
    def where(self) -> str:
        return f"{self.file}, line {self.number}"

    def text(self, column: str) -> str:
        """Cell as a string. Raises DataError for another type."""
        return self._string(column, str, "a string")

    def name(self, column: str) -> str:
        """Cell as a single-line string, or an integer as a string. Raises DataError for another type."""
        text = self._string(column, (str, int), "a string or an integer")
        if UNPRINTED.search(text):
            raise DataError(f"{self.where}: {column}={text[:60]!r} has control characters. Remove them.")
        self._check_unquoted(column, text)
        return text

    def path(self, column: str) -> str:
        """Cell as the path of a file. Raises DataError for another type, or a folder."""
        path = self.text(column)
        if path and (UNPRINTED.search(path) or Path(path).name in ("", "..")):
            raise DataError(
                f"{self.where}: {column}={path[:60]!r} is not a file name. Name a file, without control "
                "characters."
            )
        self._check_unquoted(column, path)
        return path

    def piece(self) -> tuple[float, float | None]:
        """Start and length of the audio segment in seconds; length None: to the end.

        Raises DataError if the times contradict each other or the segment is empty.
        """
        given = {
            key: n for key in ("offset", "start", "duration", "end") if (n := self._seconds(key)) is not None
        }
        for one, other in (("offset", "start"), ("duration", "end")):
            if one in given and other in given:
                raise DataError(
                    f"{self.where}: {one}={given[one]:g} and {other}={given[other]:g} define the same value. "
                    "Give one of them."
                )
        start = given.get("offset", given.get("start", 0.0))
        length = given["end"] - start if "end" in given else given.get("duration")
        if length is not None and length <= 0:
            raise DataError(
                f"{self.where}: the segment from {start:g} s, with {'end' if 'end' in given else 'duration'}="
                f"{given.get('end', length):g}, is empty. Correct its times, which are in seconds."
            )
        return start, length

    def _check_unquoted(self, column: str, text: str) -> None:
        if len(text) > 1 and text[0] == text[-1] == '"':
            raise DataError(f"{self.where}: {column}={text[:60]} is quoted. Write cells without quotes.")

    def _string(self, column: str, types: type | tuple[type, ...], wanted: str) -> str:
        cell = self.cells.get(column)
        if _is_missing(cell):
            return ""
        if not isinstance(cell, types) or isinstance(cell, bool):
            raise DataError(
                f"{self.where}: {column}={json.dumps(cell)[:60]} is not {wanted}. Write it as such."
            )
        text = str(cell)
        if BROKEN.search(text):
            raise DataError(
                f"{self.where}: {column}={text[:60]!r} is not valid text. Save it as UTF-8 again."
            )
        return text

    def _seconds(self, column: str) -> float | None:
        cell = self.cells.get(column)
        if _is_missing(cell) or cell == "":
            return None
        is_number = isinstance(cell, str | int | float) and not isinstance(cell, bool)
        try:
            seconds = float(str(cell)) if is_number else -1.0
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds <= LATEST:
            raise DataError(
                f"{self.where}: {column}={json.dumps(cell)[:60]} is not a number of seconds from 0 to "
                f"{LATEST:.0e}. Write it as such."
            )
        return seconds


def read_table(file: Path, inputs: Collection[str] = ("audio", "text")) -> list[Line]:
    """Rows of a .jsonl file, or of a tab-separated table with a header. Empty lines are skipped.

    inputs: columns of raw inputs, of which a header needs one. Prints the columns that are not used. Raises
    DataError with the line number for an invalid row, and for a column whose name resembles one of COLUMNS.
    """
    try:
        whole = file.read_text(encoding="utf-8-sig")  # drops a byte-order mark
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({error.strerror}). Make it readable, or name another file."
        ) from error
    # splitlines() would also split at other separators, which may occur inside a cell.
    numbered = [(n, line.rstrip("\r")) for n, line in enumerate(whole.split("\n"), 1)]
    lines = [(n, line) for n, line in numbered if line]
    is_json = file.suffix.lower() == ".jsonl"
    rows = list(_json_rows(file, lines) if is_json else _tab_rows(file, lines, inputs))
    if unread := {column for row in rows for column in row.cells} - {*COLUMNS, *inputs}:
        print(f"{file}: columns not used: {', '.join(sorted(unread))}")
    return rows


def _json_rows(file: Path, lines: list[tuple[int, str]]) -> Iterator[Line]:
    for number, line in lines:
        where = f"{file}, line {number}"
        try:
            pairs = json.loads(line, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not a JSON object ({error}). Write one a line.") from error
        if not isinstance(pairs, _Pairs):
            raise DataError(f"{where}: not a JSON object ({line[:60]}). Write one a line.")
        _check_names(where, [name for name, _ in pairs])
        yield Line(file, number, dict(pairs))


class _Pairs(list[tuple[str, Cell]]):
    """JSON object as a list of pairs, which keeps duplicate keys."""


def _tab_rows(file: Path, lines: list[tuple[int, str]], inputs: Collection[str]) -> Iterator[Line]:
    header = lines[0][1].split("\t") if lines else []
    if not {*inputs} & {*header}:
        hints = [f" Did you mean {meant} by {name!r}?" for name in header if (meant := _meant(name))]
        if lines and lines[0][1].startswith("{"):
            hints = [" For JSON lines, rename the file to end in .jsonl."]
        elif lines and "," in lines[0][1] and len(header) == 1:
            hints = [" Separate the columns with tabs, not with commas."]
        raise DataError(
            f"{file}: its first line must be a tab-separated header with {' or '.join(inputs)}; it is "
            f"{str(header)[:200]}.{''.join(hints)}"
        )
    _check_names(f"{file}, line {lines[0][0]}", header)
    for number, line in lines[1:]:
        cells = line.split("\t")
        if len(cells) != len(header):
            raise DataError(f"{file}, line {number}: {len(cells)} columns, but the header has {len(header)}.")
        yield Line(file, number, dict(zip(header, cells, strict=True)))


def _check_names(where: str, names: list[str]) -> None:
    """Raises DataError for a duplicate column, or one that seems to be a missing column by another name."""
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise DataError(f"{where}: the column {twice!r} occurs twice. Remove one of them.")
    for name in names:
        if (meant := _meant(name)) and not {*meant.split(" or ")} & {*names}:
            raise DataError(
                f"{where}: the column {name!r} is unknown. Did you mean {meant}? Rename it, or remove it."
            )


@cache
def _meant(name: str) -> str | None:
    """Column that an unknown name resembles; None if there is none."""
    plain = name.strip().lower()
    if name in COLUMNS:
        return None
    if plain in COLUMNS:
        return plain
    if plain in MISNOMERS:
        return MISNOMERS[plain]
    if TIMES.fullmatch(plain):
        return "start or offset" if re.search("start|begin|onset|offset|from", plain) else "end or duration"
    near = difflib.get_close_matches(plain, COLUMNS, 1, 0.8)
    return near[0] if near and len(plain) > 3 else None  # idx must not match id


def _is_missing(cell: Cell) -> bool:
    """Whether a cell is absent, null, or NaN (which pandas writes for a missing cell)."""
    return cell is None or (isinstance(cell, float) and math.isnan(cell))
