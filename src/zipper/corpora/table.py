"""The one reader of tables, .tsv with a header or .jsonl: manifests, and what `generate --batch` takes.

A cell keeps its type: text is a string, an id a string or a whole number, a time a number of seconds.
"""

import difflib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from zipper.errors import DataError

Cell = object  # of JSON: any of its types; of a .tsv: a string

COLUMNS = ("id", "audio", "text", "speaker", "split", "subset", "offset", "duration", "start", "end")
# What other tools call these columns, and what is read as such.
MEANT = {
    "audio": "audio_filepath audio_file_path audio_path audio_file audio_filename path wav wavs wav_path "
    "wav_file wav_filename file file_name filename file_path filepath clip recording sound",
    "text": "transcript transcripts transcription transcriptions sentence sentences raw_text normalized_text "
    "text_normalized normalised_text words caption label target",
    "id": "utt_id uttid utterance_id audio_id segment_id key",
    "speaker": "speaker_id spk spk_id spkid speaker_name client_id",
    "split": "partition fold",
}
UNPRINTED = re.compile(r"[\x00-\x1f\x7f]")
LATEST = 1e9  # seconds, 30 years
MISNOMERS = {name: column for column, names in MEANT.items() for name in names.split()}
TIMES = re.compile(
    r"(?:(?:segment|seg|audio|clip|utt)_?)?(?:offset|start|begin|onset|from|end|stop|to|duration|dur|length|len)"
    r"(?:_?(?:at|time|s|sec|secs|seconds|ms|millis|frame|frames|sample|samples))*"
)


@dataclass(frozen=True)
class Line:
    """A row, and where it stands. Its cells are checked when they are asked for; what is missing, null or NaN
    is empty."""

    file: Path
    number: int
    cells: dict[str, Cell]

    @property
    def where(self) -> str:
        return f"{self.file}, line {self.number}"

    def text(self, column: str) -> str:
        """A string. Raises DataError on a cell of another type."""
        return self._string(column, str, "a string")

    def name(self, column: str) -> str:
        """A string of one line, or a whole number as one. Raises DataError on a cell of another type."""
        word = self._string(column, (str, int), "a string or a whole number")
        if UNPRINTED.search(word):
            raise DataError(f"{self.where}: {column}={word[:60]!r} holds what is not printed. Take it out.")
        return word

    def path(self, column: str) -> str:
        """A path to a file, in one line. Raises DataError on a cell of another type, and on a folder."""
        path = self.text(column)
        if path and (UNPRINTED.search(path) or Path(path).name in ("", "..")):
            raise DataError(f"{self.where}: {column}={path[:60]!r} names no file. Name one, without tabs.")
        return path

    def piece(self) -> tuple[float, float | None]:
        """Start and length in seconds; None: to the end. Raises DataError on times that give no piece."""
        given = {
            key: n for key in ("offset", "start", "duration", "end") if (n := self._seconds(key)) is not None
        }
        for one, other in (("offset", "start"), ("duration", "end")):
            if one in given and other in given:
                raise DataError(
                    f"{self.where}: {one}={given[one]:g} and {other}={given[other]:g} say the same in two "
                    "ways. Give one of them."
                )
        start = given.get("offset", given.get("start", 0.0))
        length = given["end"] - start if "end" in given else given.get("duration")
        if length is not None and length <= 0:
            raise DataError(
                f"{self.where}: the piece from {start:g} s, with {'end' if 'end' in given else 'duration'}="
                f"{given.get('end', length):g}, holds nothing. Mend its times, which are in seconds."
            )
        return start, length

    def _string(self, column: str, types: type | tuple[type, ...], wanted: str) -> str:
        cell = self.cells.get(column)
        if _is_missing(cell):
            return ""
        if not isinstance(cell, types) or isinstance(cell, bool):
            raise DataError(
                f"{self.where}: {column}={json.dumps(cell)[:60]} is not {wanted}. Write it as one."
            )
        word = str(cell)
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in word):
            raise DataError(
                f"{self.where}: {column}={word[:60]!r} holds what is no text. Save it as UTF-8 again."
            )
        return word

    def _seconds(self, column: str) -> float | None:
        cell = self.cells.get(column)
        if _is_missing(cell) or cell == "":
            return None
        try:
            seconds = (
                float(cell) if isinstance(cell, str | int | float) and not isinstance(cell, bool) else -1.0
            )
        except (ValueError, OverflowError):
            seconds = -1.0
        if not 0 <= seconds <= LATEST:
            raise DataError(
                f"{self.where}: {column}={json.dumps(cell)[:60]} is not a number of seconds from 0 to "
                f"{LATEST:.0e}. Write it as one."
            )
        return seconds


def read_table(file: Path) -> list[Line]:
    """Every row of a .jsonl, or of a table with tabs and a header. Empty lines are passed over.

    Says which columns nobody reads. Raises DataError, with the line's number, on what is no row, and on a
    column that seems to be one of COLUMNS by another name.
    """
    try:
        whole = file.read_text(encoding="utf-8-sig")  # a byte-order mark is no part of the first name
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no text in UTF-8 ({error}). Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({error.strerror}). Make it readable, or name another."
        ) from error
    # At \n alone: splitlines() knows more ends of lines, which may stand within a cell.
    numbered = [(n, line.rstrip("\r")) for n, line in enumerate(whole.split("\n"), 1)]
    lines = [(n, line) for n, line in numbered if line]
    rows = list(_json_rows(file, lines) if file.suffix.lower() == ".jsonl" else _tab_rows(file, lines))
    unread = {column for row in rows for column in row.cells} - {*COLUMNS}
    if unread:
        print(f"{file}: not read: {', '.join(sorted(unread))}")
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
    """An object of JSON as it stands there, a key that stands twice included."""


def _tab_rows(file: Path, lines: list[tuple[int, str]]) -> Iterator[Line]:
    header = lines[0][1].split("\t") if lines else []
    if not {"audio", "text"} & {*header}:
        hints = [f" Did you mean {meant} by {name!r}?" for name in header if (meant := _meant(name))]
        if lines and lines[0][1].startswith("{"):
            hints = [" JSON lines are read from a file that ends in .jsonl: name it so."]
        raise DataError(
            f"{file}: its first line must name columns, tab-separated, audio and text among them; it is "
            f"{str(header)[:200]}.{''.join(hints)}"
        )
    _check_names(f"{file}, line {lines[0][0]}", header)
    for number, line in lines[1:]:
        cells = line.split("\t")
        if len(cells) != len(header):
            raise DataError(f"{file}, line {number}: {len(cells)} columns, but the header has {len(header)}.")
        yield Line(file, number, dict(zip(header, cells, strict=True)))


def _check_names(where: str, names: list[str]) -> None:
    """Raises DataError where a column stands twice, or goes by another name while its own is not there."""
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise DataError(f"{where}: the column {twice!r} stands twice. Take one of them out.")
    for name in names:
        if (meant := _meant(name)) and not {*meant.split(" or ")} & {*names}:
            raise DataError(
                f"{where}: the column {name!r} is unknown. Did you mean {meant}? Rename it, or take it out."
            )


@cache
def _meant(name: str) -> str | None:
    """The column that an unknown name seems to mean."""
    plain = name.strip().lower()
    if name in COLUMNS:
        return None
    if plain in COLUMNS:
        return plain
    if plain in MISNOMERS:
        return MISNOMERS[plain]
    if TIMES.fullmatch(plain):
        return "start or offset" if re.search("start|begin|onset|offset|from", plain) else "end or duration"
    near = difflib.get_close_matches(plain, COLUMNS, 1, 0.8) if len(plain) > 3 else []  # idx is no id
    return next(iter(near), None)


def _is_missing(cell: Cell) -> bool:
    """null, no such key, or NaN, which pandas writes for a missing cell."""
    return cell is None or (isinstance(cell, float) and math.isnan(cell))
