"""Paired comparison and model selection over results."""

from collections.abc import Iterator
from statistics import fmean
from typing import Any

from reproduce.report.records import Result, Runs
from zipper.config import RunConfig, to_dict
from zipper.errors import DataError
from zipper.evaluation.result_file import UtteranceResult
from zipper.evaluation.significance import Comparison, Errors, compare, different_data, p_value

# Keys of train that each model may have tuned for itself.
OWN = {"lr", "optimiser", "history_mask", "prompt_weight", "codebook_weights"}


def check_equal_terms(runs: Runs) -> None:
    """Raises DataError if runs differ in data, steps or evaluation."""
    first, *others = [one for tasks in runs.values() for several in tasks.values() for one in several]
    for one in others:
        for key, value, other in _terms(first, one):
            if value != other:
                raise DataError(
                    f"{one['name']} has {key}={other!r}, {first['name']} {value!r}: they are not comparable. "
                    "Train all by `make compare`."
                )


def _terms(first: Result, one: Result) -> Iterator[tuple[str, Any, Any]]:
    yield from different_data(first, one)
    for key in ("steps", "utterances", "decoding", "checkpoint"):
        yield key, first[key], one[key]
    for part in ("data", "train", "evaluate", "decode"):
        usual = to_dict(RunConfig())[part]  # defaults of settings that an older result lacks
        ours, its = ({**usual, **side["config"][part]} for side in (first, one))
        for key in sorted({*ours, *its} - OWN):
            yield f"{part}.{key}", ours.get(key), its.get(key)
    patterns = [side["config"].get("codec", {}).get("pattern", "delay") for side in (first, one)]
    yield "codec.pattern", *patterns


def capped(one: Result) -> Result:
    """Copy of a result with the errors of each sentence capped at its number of words.

    Used for model selection on dev, so that a sentence with repetition does not decide.
    """
    kept: list[UtteranceResult] = [
        {**u, "errors": min(u["errors"], u["words"])} for u in one["per_utterance"]
    ]
    errors, words = sum(u["errors"] for u in kept), sum(u["words"] for u in kept)
    return {**one, "per_utterance": kept, "errors": errors, "wer": errors / max(words, 1)}


def best_rate(found: list[Result]) -> float:
    """Learning rate with the lowest dev WER (errors `capped`).

    Among the rates that do not differ significantly from it, the one with the lowest dev loss of text.
    """
    found = [capped(one) for one in found]
    lowest = min(found, key=lambda one: one["wer"])
    near = [one for one in found if compare([one], [lowest]).verdict() == "open"]
    return rate(min(near, key=dev_loss))


def rate(one: Result) -> float:
    """Learning rate of a run."""
    return one["config"]["train"]["lr"]


def dev_loss(one: Result) -> float:
    """Last dev loss of text."""
    return one["curves"]["dev/loss_text"][-1][1]


def best_choice(found: dict[str, dict[str, list[Result]]]) -> str:
    """Choice with the lowest mean WER of both tasks (errors `capped`).

    The first choice, shared by all models, unless the other is significantly better in a task. found: results
    by choice and task.
    """
    found = {
        choice: {task: [capped(one) for one in several] for task, several in tasks.items()}
        for choice, tasks in found.items()
    }
    first = next(iter(found))
    lowest = min(found, key=lambda choice: sum(map(_mean_wer, found[choice].values())))
    verdicts = [compare(found[lowest][task], found[first][task]).verdict() for task in found[first]]
    return lowest if "better" in verdicts else first


def _mean_wer(seeds: list[Result]) -> float:
    return fmean(one["wer"] for one in seeds)


def against(runs: Runs, task: str, model: str, baseline: str, column: Errors = "errors") -> Comparison | None:
    """Compares two models over their common seeds; None without one."""
    return paired(runs.get(model, {}).get(task, []), runs.get(baseline, {}).get(task, []), column)


def paired(a: list[Result], b: list[Result], column: Errors = "errors") -> Comparison | None:
    """Compares results over their common seeds; None without one."""
    seeds = {one["seed"] for one in a} & {one["seed"] for one in b}
    ours, theirs = ([one for one in side if one["seed"] in seeds] for side in (a, b))
    return compare(ours, theirs, column) if seeds else None


def difference_text(found: Comparison | None) -> str:
    """Formats a comparison: "-3.1 (-4.0 to -2.2), p < 0.0001", and p of several seeds."""
    if found is None or found.different == 0:
        return ""
    a, low, high = (100 * value for value in (found.difference, found.low, found.high))
    seeds = "" if found.p_seeds is None else f"; with seeds {p_value(found.p_seeds)}"
    return f"{a:+.1f} ({low:+.1f} to {high:+.1f}), p {p_value(found.p)}{seeds}"
