"""Results of a comparison, read back: by model, task and seed, and tested in pairs."""

import json
from pathlib import Path
from typing import Any

from zipper.errors import DataError
from zipper.evaluate.significance import Comparison, compare, p_value

Result = dict[str, Any]
Runs = dict[str, dict[str, list[Result]]]  # model, task: results by seed

NAMES = {
    "single-decoder": "Single Decoder",
    "single-decoder-speech": "Single Decoder, given speech too",
    "zipper-frozen": "Zipper, speech tower frozen",
    "zipper": "Zipper",
}
BASELINES = {"single-decoder": "the Single Decoder", "single-decoder-speech": "the one given speech too"}


def read_runs(folder: Path) -> Runs:
    """By model and task, in the order of the seeds."""
    runs: Runs = {}
    for model in NAMES:
        for file in sorted(folder.glob(f"{model}-seed*-*.json")):
            result = json.loads(file.read_text())
            runs.setdefault(model, {}).setdefault(result["task"], []).append(result)
    return runs


def check_equal_terms(runs: Runs) -> None:
    """Raises DataError where a run had other data, steps, tokens or evaluation than the others."""
    results = [one for tasks in runs.values() for several in tasks.values() for one in several]
    first = results[0]
    for one in results[1:]:
        for key in ("data_fingerprint", "steps", "utterances", "decoding"):
            if one[key] != first[key]:
                raise DataError(
                    f"{one['name']} has {key}={one[key]!r}, {first['name']} {first[key]!r}: they are not "
                    "comparable. Train both by `make compare`."
                )
        for key, value in first["config"]["train"].items():
            if key != "lr" and one["config"]["train"][key] != value:
                raise DataError(
                    f"{one['name']} was trained with train.{key}={one['config']['train'][key]!r}, "
                    f"{first['name']} with {value!r}: they are not comparable. Train both by `make compare`."
                )


def against(runs: Runs, task: str, model: str, baseline: str, column: str = "errors") -> Comparison | None:
    """Of all seeds of a model with all seeds of another; None where one of them has not run."""
    if not runs.get(model, {}).get(task) or not runs.get(baseline, {}).get(task):
        return None
    return compare(runs[model][task], runs[baseline][task], column)


def beside(found: Comparison | None) -> str:
    """-3.1 (-4.0 to -2.2), p < 0.0001"""
    if found is None or found.different == 0:
        return ""
    a, low, high = (100 * value for value in (found.difference, found.low, found.high))
    return f"{a:+.1f} ({low:+.1f} to {high:+.1f}), p {p_value(found.p)}"
