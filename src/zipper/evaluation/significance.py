"""Paired significance tests between two sets of result files, over utterances."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import PermutationMethod, rankdata, t, wilcoxon

from zipper.data.dataset import has_synthetic_speech
from zipper.errors import DataError
from zipper.evaluation.result_archive import result_files
from zipper.evaluation.result_file import Result, read_result

SAME = ("task", "split", "normaliser", "asr_scorer", "codec", "utterances")
RESAMPLES = 10_000
MOST_LEFT_OUT = 0.1  # maximum share of utterances without a common target
FEW = 13  # utterances that differ, up to which p is exact: all signs of their differences are tried
Errors = Literal["errors", "target_errors"]  # WER vs reference, or for TTS vs resynthesis
ZEROS = "utterances with equal error rates are left out (Wilcoxon's own policy)"


@dataclass(frozen=True)
class Comparison:
    """Comparison of two WERs over the same utterances; several files (seeds) are averaged per utterance.

    low, high: 95 % interval of a - b (paired bootstrap over utterances, which does not cover seed variance;
    p_seeds does).
    p: two-sided Wilcoxon signed-rank test on the utterances' error rates, of which `different` differ; exact
    where at most FEW do.
    """

    a: float
    b: float
    low: float
    high: float
    p: float
    utterances: int
    different: int
    better: int  # utterances with fewer errors in a
    leaning: float  # signed rank sum; positive if a has more errors
    p_seeds: float | None = None  # of `crossed`, where both sides have several seeds
    left_out: int = 0  # utterances whose targets differ
    speakers: int = 0  # 0: one, or unknown
    speakers_better: int = 0  # with fewer errors in a
    speakers_low: float = 0.0  # interval as low and high, with speakers in place of utterances
    speakers_high: float = 0.0

    @property
    def difference(self) -> float:
        """a - b."""
        return self.a - self.b

    def verdict(self, level: float = 0.05) -> str:
        """Verdict on a: "better" or "worse" if p < level, and ranks and interval agree; else "open".

        A few utterances with very many errors can give the WER another sign than the ranks.
        """
        if self.p < level and self.high < 0 and self.leaning < 0:
            return "better"
        return "worse" if self.p < level and self.low > 0 and self.leaning > 0 else "open"


def compare(
    a: Sequence[Result], b: Sequence[Result], against: Errors = "errors", seed: int = 0
) -> Comparison:
    """Compares results from `read_result`.

    The ASR scorer's output depends on the CPU, so results of different machines may have different targets
    for an utterance; such utterances are left out of a comparison against targets.
    Raises DataError if utterances, data, split, ASR scorer or normaliser differ, or if more than
    MOST_LEFT_OUT of the targets do.
    """
    first = a[0]
    _check_comparable(a, b)
    kept = np.ones(len(first["per_utterance"]), dtype=bool)
    if against == "target_errors":
        targets = [[u["target"] for u in one["per_utterance"]] for one in (*a, *b)]
        kept = np.array([len(set(of_one)) == 1 for of_one in zip(*targets, strict=True)])
    if kept.mean() < 1 - MOST_LEFT_OUT:
        what = f"the targets of {(~kept).sum()} of {len(kept)} utterances differ"
        raise _not_comparable(first, b[0], what, "Score both with the same ASR scorer.")
    words = _counts(first, "words" if against == "errors" else "target_words")[kept]
    ours, theirs = (np.array([_counts(one, against)[kept] for one in side]) for side in (a, b))
    errors_a, errors_b = ours.mean(0), theirs.mean(0)
    p_seeds = crossed(ours, theirs, words)[2] if min(len(a), len(b)) > 1 else None
    rates = ((errors_a - errors_b) / np.maximum(words, 1)).round(12)  # so that equal rates tie
    low, high = bootstrap(errors_a - errors_b, words, seed)
    different = int((rates != 0).sum())
    p = _signed_rank(rates[rates != 0])
    names = np.array([one.get("speaker", "") for one in first["per_utterance"]])[kept]
    speakers = [names == name for name in sorted({*names.tolist()})]
    by_speaker: tuple[int, int, float, float] = (0, 0, 0.0, 0.0)
    if len(speakers) > 1:
        gained = np.array([(errors_a - errors_b)[mine].sum() for mine in speakers])
        said = np.array([words[mine].sum() for mine in speakers])
        by_speaker = (len(speakers), int((gained < 0).sum()), *bootstrap(gained, said, seed))
    leaning = (np.sign(rates[rates != 0]) * rankdata(np.abs(rates[rates != 0]))).sum()
    return Comparison(
        errors_a.sum() / words.sum(), errors_b.sum() / words.sum(), low, high, p, len(words), different,
        int((rates < 0).sum()), float(leaning), p_seeds, int((~kept).sum()), *by_speaker,
    )  # fmt: skip


def _check_comparable(a: Sequence[Result], b: Sequence[Result]) -> None:
    """Raises DataError if utterances, data, split, ASR scorer or normaliser differ, or if there are fewer
    than two utterances, no words, or no counts."""
    first = a[0]
    for other in [*a, *b]:
        same = [(key, first.get(key), other.get(key)) for key in SAME]
        for key, value, its in [*(one for one in same if one[1] != one[2]), *different_data(first, other)]:
            raise _not_comparable(first, other, f"{key} is {value!r} in one and {its!r} in the other")
        if len({(*((u["id"], u["reference"]) for u in one["per_utterance"]),) for one in (first, other)}) > 1:
            raise _not_comparable(first, other, "their utterances or references differ")
    for one in [*a, *b]:
        errors, words = _counts(one, "errors"), _counts(one, "words")  # NaN where there is none
        if len(words) < 2 or not words.sum() > 0 or not np.isfinite(errors).all():
            raise DataError(
                f"{one['name']} has {len(words)} utterances of {words.sum():g} words with {errors.sum():g} "
                "errors, which cannot be compared. Evaluate it on two or more with words."
            )


def _signed_rank(apart: np.ndarray) -> float:
    """p of the two-sided Wilcoxon signed-rank test of differences that are not 0, float [N]."""
    if len(apart) < 2:
        return 1.0
    exact = PermutationMethod(n_resamples=2**FEW)
    return float(wilcoxon(apart, method=exact if len(apart) <= FEW else "asymptotic").pvalue)


def different_data(a: Result, b: Result) -> Iterator[tuple[str, Any, Any]]:
    """Yields the differing parts of the data fingerprints of two results: (part, value of a, value of b).

    Skips parts that an older result lacks, and the audio hash of a corpus with synthetic speech, which
    depends on the CPU.
    """
    if not (a.get("data") and b.get("data")):
        if a.get("data_fingerprint") != b.get("data_fingerprint"):
            yield "data_fingerprint", a.get("data_fingerprint"), b.get("data_fingerprint")
        return
    skipped = {"audio"} if has_synthetic_speech(a["data"]) else set()
    for part in sorted({*a["data"]} & {*b["data"]} - skipped):
        if a["data"][part] != b["data"][part]:
            yield f"data.{part}", a["data"][part], b["data"][part]


def bootstrap(errors: np.ndarray, words: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of sum(errors) / sum(words), over RESAMPLES bootstrap samples.

    errors: differences between two models by utterance or speaker [N]; words [N].
    """
    draw, ratios = np.random.default_rng(seed), []
    for _ in range(RESAMPLES // 100):
        chosen = draw.integers(len(words), size=(100, len(words)))
        ratios.append(errors[chosen].sum(1) / np.maximum(words[chosen].sum(1), 1))
    low, high = np.percentile(np.concatenate(ratios), [2.5, 97.5])
    return float(low), float(high)


def over_seeds(a: Sequence[Result], b: Sequence[Result]) -> tuple[float, float, float]:
    """95 % interval of the difference in WER, a - b, and its two-sided p, for seeds and utterances at once
    (`crossed`). With one seed a side, utterances alone. Raises DataError as `compare` does."""
    _check_comparable(a, b)
    ours, theirs = (np.array([_counts(one, "errors") for one in side]) for side in (a, b))
    return crossed(ours, theirs, _counts(a[0], "words"))


def crossed(a: np.ndarray, b: np.ndarray, words: np.ndarray) -> tuple[float, float, float]:
    """95 % interval and two-sided p of the difference of two sides' mean WERs, with seeds and the utterances
    that both sides share as crossed random effects. a, b: errors [seeds, N]; words [N].

    The variance is that of the seeds' WERs, plus that over utterances, less what both hold of how seeds
    differ in utterances; at least either. Degrees of freedom are Satterthwaite's, so that three seeds that
    differ much decide little.
    """
    scale = len(words) / words.sum()
    wers, between, both = [], [], 0.0  # variances of means: (over seeds, degrees of freedom), and of both
    of_utterance = np.zeros(len(words))
    for sign, side in ((1, a * scale), (-1, b * scale)):  # a mean is a WER
        wers.append(side.mean())
        rest, seeds = side - wers[-1] * words * scale, len(side)
        of_seed = rest.mean(1)
        of_utterance += sign * rest.mean(0)
        if seeds > 1:
            between.append((of_seed.var(ddof=1) / seeds, seeds - 1))
            left = rest - of_seed[:, None] - rest.mean(0) + rest.mean()
            both += (left**2).sum() / ((seeds - 1) * (len(words) - 1)) / rest.size
    apart = float(wers[0] - wers[1])
    over_utterances = of_utterance.var(ddof=1) / len(words)
    over_all_seeds = sum(one for one, _ in between)
    variance = max(over_all_seeds + over_utterances - both, over_all_seeds, over_utterances)
    if variance == 0:
        return apart, apart, float(apart == 0)
    squares = sum(one**2 / n for one, n in between) + over_utterances**2 / (len(words) - 1)
    freedom, error = variance**2 / squares, variance**0.5
    width = float(t.ppf(0.975, freedom)) * error
    return apart - width, apart + width, float(2 * t.sf(abs(apart) / error, freedom))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's method, in the same order."""
    corrected, so_far = [0.0] * len(ps), 0.0
    for rank, at in enumerate(np.argsort(ps)):
        so_far = max(so_far, min(1.0, (len(ps) - rank) * ps[at]))
        corrected[at] = so_far
    return corrected


def compare_files(a: str, b: str) -> None:
    """`zipper compare A B`: prints a comparison. Each side is a file or a glob pattern."""
    ours, theirs = ([read_result(file) for file in _files(pattern)] for pattern in (a, b))
    spoken = ours[0]["task"] == "tts"
    print(describe(compare(ours, theirs), a, b, "vs reference" if spoken else ""))
    if spoken:
        print(describe(compare(ours, theirs, "target_errors"), a, b, "vs resynthesis"))


def describe(found: Comparison, a: str, b: str, what: str = "") -> str:
    """Comparison as text for the terminal."""
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
    if found.speakers:
        lines.append(
            f"  A better on {found.speakers_better} of {found.speakers} speakers; 95 % interval over them "
            f"{100 * found.speakers_low:+.2f} to {100 * found.speakers_high:+.2f}"
        )
    if found.p_seeds is not None:
        lines.append(f"  with seeds as a second factor, both random: p {p_value(found.p_seeds)}")
    if found.left_out:
        lines.append(f"  left out: {found.left_out}, whose targets differ (scored on different machines)")
    return "\n".join(lines)


def p_value(p: float) -> str:
    """Formats a p-value: "= 0.012" or "< 0.0001"."""
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"


def _files(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_file():
        return [path]
    parent, start = path.parent, Path(path.anchor or ".")
    folders = [parent] if parent.is_dir() else sorted(start.glob(str(parent.relative_to(start))))
    known = [file for folder in folders for file in result_files(folder, below=False)]
    found = [file for file in known if file.name == path.name] or [
        file for file in known if fnmatch(file.name, path.name)
    ]
    if not found:
        raise DataError(f"{pattern} matches no file: give a result file, or a quoted glob pattern.")
    return found


def _not_comparable(
    a: Result, b: Result, why: str, fix: str = "Evaluate both on the same data."
) -> DataError:
    return DataError(f"{a['name']} and {b['name']} cannot be compared: {why}. {fix}")


def _counts(result: Result, key: Literal["errors", "words", "target_errors", "target_words"]) -> np.ndarray:
    return np.array([one[key] for one in result["per_utterance"]], dtype=float)
