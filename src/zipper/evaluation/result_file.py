"""Result files: NAME.json, and its utterances as JSON lines in NAME.utterances.jsonl.xz."""

import json
import lzma
from pathlib import Path
from typing import Any

from zipper.config import upgraded
from zipper.disk import write_atomic
from zipper.errors import DataError

NEEDED = ("id", "errors", "words", "reference")  # keys of every utterance


def utterances_file(file: Path) -> Path:
    """Utterances file of a result file."""
    return file.with_name(f"{file.name.removesuffix('.json')}.utterances.jsonl.xz")


def write_result(result: dict[str, Any], *files: Path) -> None:
    """Writes result files, one top-level key per line, and `per_utterance` to their utterances files.

    Each file is written atomically, the result file last.
    """
    rows = [f" {json.dumps(key)}: {json.dumps(result[key])}" for key in result if key != "per_utterance"]
    text = "{\n" + ",\n".join(rows) + "\n}\n"
    utterances = "".join(json.dumps(one) + "\n" for one in result.get("per_utterance", []))
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        if utterances:
            write_atomic(utterances_file(file), lzma.compress(utterances.encode()))
        write_atomic(file, text.encode())
        if not utterances:
            utterances_file(file).unlink(missing_ok=True)  # from an older result


def read_result(file: Path, utterances: bool = True) -> dict[str, Any]:
    """Result written by `write_result`, or an older one with its utterances inside the JSON.

    utterances=False leaves `per_utterance` out and does not read its file. Raises DataError if a file is
    missing or damaged.
    """
    if not file.is_file():
        raise DataError(f"{file} does not exist: give a result file, such as build/runs/NAME/asr.json.")
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not JSON ({error}). Give a result file of `zipper train`.") from error
    if not isinstance(result, dict):
        raise DataError(f"{file} holds no JSON object. Give a result file of `zipper train`.")
    if "config" in result:
        result["config"] = upgraded(result["config"])
    inside = result.pop("per_utterance", None)
    if not utterances:
        return result
    rows = inside or _read_utterances(file, result.get("utterances"))
    if lacking := [key for key in NEEDED if any(key not in row for row in rows)]:
        raise DataError(f"{file}: an utterance has no {lacking[0]}. Evaluate the run again.")
    return {**result, "per_utterance": rows}


def _read_utterances(file: Path, count: int | None) -> list[dict[str, Any]]:
    """Utterances of a result file. count: expected number, if known."""
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
            f"{beside} holds {len(rows)} utterances, but {file} has {count}: they do not belong together. "
            "Restore both, or evaluate the run again."
        )
    return rows
