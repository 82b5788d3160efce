"""A result file, NAME.json, and the utterances of it beside it, one a line: NAME.utterances.jsonl.xz."""

import json
import lzma
import os
from pathlib import Path
from typing import Any

from zipper.errors import DataError

NEEDED = ("id", "errors", "words", "reference")  # of every utterance


def utterances_file(file: Path) -> Path:
    """The file of utterances that belongs to a result file."""
    return file.with_name(f"{file.name.removesuffix('.json')}.utterances.jsonl.xz")


def write_result(result: dict[str, Any], *files: Path) -> None:
    """Writes each result file, a top-level key a line, and its per_utterance, where it has one, to the file
    beside it. Each file is written atomically; the result file comes last."""
    rows = [f" {json.dumps(key)}: {json.dumps(result[key])}" for key in result if key != "per_utterance"]
    text = "{\n" + ",\n".join(rows) + "\n}\n"
    utterances = "".join(json.dumps(one) + "\n" for one in result.get("per_utterance", []))
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        if utterances:
            _write(utterances_file(file), lzma.compress(utterances.encode()))
        _write(file, text.encode())
        if not utterances:
            utterances_file(file).unlink(missing_ok=True)  # of an older result


def _write(file: Path, content: bytes) -> None:
    aside = file.with_name(f"{file.name}.{os.getpid()}.part")  # other processes may write it too
    aside.write_bytes(content)
    aside.rename(file)


def read_result(file: Path, utterances: bool = True) -> dict[str, Any]:
    """What `write_result` wrote, or an older file, whose utterances are inside the JSON. utterances: with
    per_utterance; else without it, and its file is not read.

    Raises DataError where either file is missing or damaged.
    """
    if not file.is_file():
        raise DataError(f"{file} does not exist: give a result file, such as build/runs/NAME/asr.json.")
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is no JSON ({error}). Give a result file of `zipper train`.") from error
    if not isinstance(result, dict):
        raise DataError(f"{file} holds no JSON object. Give a result file of `zipper train`.")
    inside = result.pop("per_utterance", None)
    if not utterances:
        return result
    rows = inside or _read_utterances(file, result.get("utterances"))
    if lacking := [key for key in NEEDED if any(key not in row for row in rows)]:
        raise DataError(f"{file}: an utterance of it has no {lacking[0]}. Evaluate the run again.")
    return {**result, "per_utterance": rows}


def _read_utterances(file: Path, count: int | None) -> list[dict[str, Any]]:
    """count: how many there are to be, where the result file says it."""
    beside = utterances_file(file)
    if not beside.is_file():
        raise DataError(
            f"{file} holds no utterances, and {beside} does not exist. Restore that file, or give the "
            "asr.json or tts.json of a run."
        )
    try:
        rows = [json.loads(line) for line in lzma.decompress(beside.read_bytes()).splitlines()]
    except (lzma.LZMAError, ValueError) as error:
        raise DataError(
            f"{beside} is damaged ({error}). Restore it together with {file}, or evaluate the run again."
        ) from error
    if count not in (None, len(rows)):
        raise DataError(
            f"{beside} holds {len(rows)} utterances, but {file} is of {count}: they do not belong together. "
            "Restore both, or evaluate the run again."
        )
    return rows
