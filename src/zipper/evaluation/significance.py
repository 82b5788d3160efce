"""Are two results different? Paired tests over the utterances of two sets of result files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata, wilcoxon

from zipper.errors import DataError
from zipper.evaluation.result_file import read_result

SAME = ("task", "split", "normaliser", "judge", "codec", "utterances")
RESAMPLES = 10_000
MOST_LEFT_OUT = 0.1  # of the utterances, for want of a common target
ZEROS = "utterances with equal error rates are left out (Wilcoxon's own policy)"


@dataclass(frozen=True)
class Comparison:
    """Of a's WER with b's, over the same utterances; where several files (seeds) stand on a side, by the mean
    over them, utterance by utterance.

    low, high: 95 % interval of a - b (paired bootstrap over utterances); it knows nothing of other seeds.
    p: two-sided Wilcoxon signed-rank test on the utterances' error rates, of which `different` differ.
    """

    a: float
    b: float
    low: float
    high: float
    p: float
    utterances: int
    different: int
    better: int  # utterances on which a has fewer errors
    leaning: float  # rank sum of those on which a has more errors, less that of those on which it has fewer
    left_out: int = 0  # utterances whose targets differ between the results

    @property
    def difference(self) -> float:
        """a - b."""
        return self.a - self.b

    def verdict(self, level: float = 0.05) -> str:
        """better or worse, where p is below the level, and ranks and the whole interval say the same; else
        open (a few runaways can turn the WER against most of the utterances)."""
        if self.p < level and self.high < 0 and self.leaning < 0:
            return "better"
        return "worse" if self.p < level and self.low > 0 and self.leaning > 0 else "open"


def compare(
    a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]], against: str = "errors", seed: int = 0
) -> Comparison:
    """Of results with each other, as `read_result` gives them. against: "errors" against the transcript, or,
    in speech, "target_errors" against what was heard in the recordings' round trips.

    The judge's arithmetic depends on the CPU: where results come from several machines, some targets differ.
    Those utterances are left out of a comparison against targets.

    Raises DataError where they are not of the same utterances, data, split, judge or normaliser, or more than
    MOST_LEFT_OUT of the targets differ.
    """
    first = a[0]
    for other in [*a, *b]:
        for key in SAME:
            if first.get(key) != other.get(key):
                raise DataError(
                    f"{first['name']} and {other['name']} cannot be compared: {key} is {first.get(key)!r} in "
                    f"one and {other.get(key)!r} in the other. Evaluate both on the same data."
                )
        for key, value, its in different_data(first, other):
            raise DataError(
                f"{first['name']} and {other['name']} cannot be compared: {key} is {value!r} in one and "
                f"{its!r} in the other. Evaluate both on the same data."
            )
        if _each(first, "id") != _each(other, "id") or _each(first, "reference") != _each(other, "reference"):
            raise DataError(
                f"{first['name']} and {other['name']} cannot be compared: they hold other utterances, or "
                "other transcripts of them. Evaluate both on the same data."
            )
    kept = np.ones(len(first["per_utterance"]), dtype=bool)
    if against == "target_errors":
        targets = [_each(one, "target") for one in (*a, *b)]
        kept = np.array([len(set(of_one)) == 1 for of_one in zip(*targets, strict=True)])
    if kept.mean() < 1 - MOST_LEFT_OUT:
        raise DataError(
            f"{first['name']} and {b[0]['name']} cannot be compared: the targets of {(~kept).sum()} of "
            f"{len(kept)} utterances differ. Let the same judge hear both."
        )
    words = _counts(first, against.replace("errors", "words"))[kept]
    errors_a, errors_b = (np.mean([_counts(one, against)[kept] for one in side], axis=0) for side in (a, b))
    rates = ((errors_a - errors_b) / np.maximum(words, 1)).round(12)  # or equal ones would not tie
    low, high = bootstrap(errors_a - errors_b, words, seed)
    different = int((rates != 0).sum())
    p = float(wilcoxon(rates, zero_method="wilcox").pvalue) if different else 1.0
    leaning = (np.sign(rates[rates != 0]) * rankdata(np.abs(rates[rates != 0]))).sum()
    return Comparison(
        errors_a.sum() / words.sum(), errors_b.sum() / words.sum(), low, high, p, len(words), different,
        int((rates < 0).sum()), float(leaning), int((~kept).sum()),
    )  # fmt: skip


def different_data(a: dict[str, Any], b: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What made the stores of two results, where it differs: (part, that of a, that of b). Parts that one of
    them does not tell, being older, are not compared; nor is the audio of a synthetic corpus, which is spoken
    anew on each machine, and rounded as its CPU does."""
    if not (a.get("data") and b.get("data")):
        if a.get("data_fingerprint") != b.get("data_fingerprint"):
            yield "data_fingerprint", a.get("data_fingerprint"), b.get("data_fingerprint")
        return
    synthetic = a["data"].get("corpus_folder", "").startswith("spoken-")
    for part in sorted({*a["data"]} & {*b["data"]} - ({"audio"} if synthetic else set())):
        if a["data"][part] != b["data"][part]:
            yield f"data.{part}", a["data"][part], b["data"][part]


def bootstrap(errors: np.ndarray, words: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval (percentiles) of sum(errors) / sum(words), utterances drawn again RESAMPLES times.

    errors: of one model less those of another, by utterance [N]; words [N].
    """
    draw, ratios = np.random.default_rng(seed), []
    for _ in range(RESAMPLES // 100):
        chosen = draw.integers(len(words), size=(100, len(words)))
        ratios.append(errors[chosen].sum(1) / words[chosen].sum(1))
    low, high = np.percentile(np.concatenate(ratios), [2.5, 97.5])
    return float(low), float(high)


def compare_files(a: str, b: str) -> None:
    """`zipper compare A B`: prints the comparison. Each side is a file, or a quoted pattern of several."""
    sides = [[read_result(file) for file in _files(pattern)] for pattern in (a, b)]
    against = ["errors", *(["target_errors"] if sides[0][0]["task"] == "tts" else [])]
    for column in against:
        found = compare(sides[0], sides[1], column)
        name = {"errors": "against gold", "target_errors": "against target"}[column]
        print(describe(found, a, b, name if len(against) > 1 else ""))


def describe(found: Comparison, a: str, b: str, what: str = "") -> str:
    """To be read in a terminal."""
    words = {"better": "A is better", "worse": "A is worse", "open": "not decided"}[found.verdict()]
    lines = [
        f"{f'WER {what}'.strip()}: {words}, p {p_value(found.p)}",
        f"  A  {found.a:7.2%}  {a}",
        f"  B  {found.b:7.2%}  {b}",
        f"  A - B  {100 * found.difference:+.2f} points, 95 % interval {100 * found.low:+.2f} to "
        f"{100 * found.high:+.2f} (paired bootstrap, {RESAMPLES:,} resamples)",
        f"  Wilcoxon signed-rank, two-sided, over the {found.different} of {found.utterances} utterances "
        f"that differ, A better on {found.better}; {ZEROS}",
    ]
    if found.left_out:
        lines.append(f"  left out: {found.left_out}, whose targets differ (judged on another machine)")
    return "\n".join(lines)


def p_value(p: float) -> str:
    """= 0.012, or < 0.0001"""
    return f"= {p:.2g}" if p >= 1e-4 else "< 0.0001"


def _files(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_file():
        return [path]
    found = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor) if path.anchor else path)))
    if not found:
        raise DataError(f"{pattern} names no file: give a result file, or a quoted pattern of several.")
    return found


def _each(result: dict[str, Any], key: str) -> list[str]:
    return [one[key] for one in result["per_utterance"]]


def _counts(result: dict[str, Any], key: str) -> np.ndarray:
    return np.array([one[key] for one in result["per_utterance"]], dtype=float)
