"""Ways of joining two towers: tables and claims of the sweeps of SWEEPS, by the terms of docs/bake-off.md."""

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from reproduce import ROOT
from reproduce.report.choosing import capped
from reproduce.report.records import Result, Results, percent
from reproduce.report.tables import Row, millions, spread
from reproduce.sweep_file import read_sweep
from zipper.errors import DataError
from zipper.evaluation.result_file import BeforeAfter
from zipper.evaluation.significance import holm, over_seeds, p_value

# By name of the sweep, what its runs are tested on.
SWEEPS = {"bake-off-synthetic": "the synthetic corpus", "bake-off": "half of test-clean"}
# A curve is flat if the last quarter of the steps lowers its dev WER by less than this share, or this much.
FLAT, LITTLE = 0.1, 0.005
DEV = "dev/asr_wer"
TESTS = ("last_word", "continuation")  # of zipper.evaluation.cloze
SEEDS = 3  # fewer on either side decide nothing
ZIPPER, SINGLE, MORE = "Zipper", "Single Decoder", "Single Decoder, + unlabelled speech"
PAIRS = [  # the claims of the terms
    (ZIPPER, SINGLE), (ZIPPER, MORE),
    (ZIPPER, "Token insertion"), (ZIPPER, "Token insertion, text tower trained"),
    (ZIPPER, "Mixture of transformers"), (ZIPPER, "Mixture of transformers, text tower trained"),
    (ZIPPER, "Zipper, speech tower frozen"), (ZIPPER, "Zipper, the paper's settings"), (MORE, SINGLE),
]  # fmt: skip


class BakeOff(NamedTuple):
    """Results on test by way, seeds in order; and of the search of learning rates on dev, by (way, rate)."""

    name: str  # of the sweep
    ways: dict[str, list[Result]]
    searched: dict[tuple[str, ...], Result]

    @classmethod
    def of(cls, results: Results, name: str) -> "BakeOff":
        """Raises DataError if ways were not trained and decoded on the same terms."""
        final, search = (
            results.sweep(read_sweep(ROOT / f"configs/sweeps/{sweep}.yaml"))
            for sweep in (name, f"{name}-search")
        )
        ways = {labels[0]: tasks["asr"] for labels, tasks in final.items() if "asr" in tasks}
        terms = {
            (one["decoding"], one["steps"], one["checkpoint"], one["config"]["train"]["tokens"]): one["name"]
            for several in ways.values()
            for one in several
        }
        if len(terms) > 1:
            raise DataError(f"Runs of {name} differ in decoding, steps, checkpoint or tokens: {terms}.")
        return cls(
            name, ways, {labels: tasks["asr"][0] for labels, tasks in search.items() if "asr" in tasks}
        )

    def rates(self) -> tuple[list[str], list[Row]]:
        """Rates searched, and a row for each way: dev WER of each trial, with the errors of a sentence capped
        at its words, and the rate. The lowest of a way is bold once all trials are there."""
        choices = [*read_sweep(ROOT / f"configs/sweeps/{self.name}-search.yaml").grid["rate"]]
        rows = []
        for way in dict.fromkeys(way for way, _ in self.searched):
            found = {rate: one for (of, rate), one in self.searched.items() if of == way}
            wers = {rate: capped(one)["wer"] for rate, one in found.items()}
            best = min(wers, key=lambda rate: wers[rate]) if len(wers) == len(choices) else ""
            cells = dict.fromkeys(choices, "")
            for rate, one in found.items():
                wer = f"**{percent(wers[rate])}**" if rate == best else percent(wers[rate])
                cells[rate] = f"{wer} ({one['config']['train']['lr']:g})"
            rows.append([way, *cells.values()])
        return choices, rows

    def budget(self) -> float:
        """FLOPs that the cheapest way spends in all."""
        return min(flops(one, one["steps"]) for several in self.ways.values() for one in several)

    def table(self) -> list[Row]:
        """Way, weights trained, FLOPs, WER, each seed, dev WER at equal FLOPs, fall of the last quarter, and
        before and after: text perplexity, and both cloze tests."""
        rows = []
        for way, several in self.ways.items():
            one, text = several[0], [seed["alone"]["text"] for seed in several]
            tests = [[seed["cloze"][test] for seed in text if "cloze" in seed] for test in TESTS]
            rows.append([
                way, millions(one["parameters_trained"], 1), millions(one["flops_per_token"]["training"], 1),
                *spread(several, "wer"), _mean(map(self.at_equal_flops, several)), _mean(map(fall, several)),
                _kept(text, "{:.2f}"), *(_kept(ends, "{:.1%}") for ends in tests),
            ])  # fmt: skip
        return rows

    def at_equal_flops(self, one: Result) -> float | None:
        """Dev WER at the budget, on the line between the validations around it; None without them."""
        curve = [(flops(one, step + 1), wer) for step, wer in one["curves"].get(DEV, [])]
        if not curve or not curve[0][0] <= self.budget() <= curve[-1][0]:
            return None
        spent, wers = zip(*curve, strict=True)
        return float(np.interp(self.budget(), spent, wers))

    def claims(self) -> list[Row]:
        """Two ways, seeds of each, difference in WER with its interval, p corrected by Holm for all claims of
        the terms, and the way with fewer errors. Pairs without results are left out."""
        pairs = [(one, other) for one, other in PAIRS if one in self.ways and other in self.ways]
        found = [over_seeds(self.ways[one], self.ways[other]) for one, other in pairs]
        missing = [1.0] * (len(PAIRS) - len(pairs))
        rows = []
        for (one, other), (low, high, _), p in zip(
            pairs, found, holm([p for *_, p in found] + missing), strict=False
        ):
            a, b = self.ways[one], self.ways[other]
            apart = statistics.fmean(x["wer"] for x in a) - statistics.fmean(x["wer"] for x in b)
            if min(len(a), len(b)) < SEEDS:
                fewer = "not decided: too few seeds"
            elif not (flat(a) and flat(b)):
                fewer = "not ranked: a curve still falls"
            else:
                fewer = "not decided" if p >= 0.05 else one if apart < 0 else other
            difference = f"{100 * apart:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            seeds = f"{len(a)}, {len(b)}"
            rows.append([one, other, seeds, difference, p_value(p).removeprefix("= "), fewer])
        return rows


def flops(one: Result, steps: int) -> float:
    """Training FLOPs of so many steps."""
    return float(one["flops_per_token"]["training"]) * one["config"]["train"]["tokens"] * steps


def fall(one: Result) -> float | None:
    """Share by which the last quarter of the steps lowers the dev WER. None without validations before and in
    it."""
    before, after = _lowest(one) or (0.0, 0.0)
    return 1 - after / before if before else None


def flat(seeds: list[Result]) -> bool:
    """Whether the mean curve of the seeds is flat."""
    known = [lowest for one in seeds if (lowest := _lowest(one)) is not None]
    if not known:
        return False
    before, after = (statistics.fmean(wers) for wers in zip(*known, strict=True))
    return before - after < max(FLAT * before, LITTLE)


def _lowest(one: Result) -> tuple[float, float] | None:
    """Lowest dev WER before the last quarter of the steps, and in all. None without validations in both."""
    curve = one["curves"].get(DEV, [])
    before = [wer for step, wer in curve if step + 1 <= 0.75 * one["steps"]]
    if not before or len(before) == len(curve):
        return None
    return min(before), min(wer for _, wer in curve)


def _kept(ends: Sequence[BeforeAfter], form: str) -> str:
    """A score before and after, mean over seeds; empty without results."""
    if not ends:
        return ""
    after = form.format(statistics.fmean(one["after"] for one in ends))
    before = ends[0]["before"]
    same = all(one["before"] == one["after"] for one in ends)
    told = after if before is None else f"{form.format(before)}, {'identical' if same else after}"
    return told.replace("%", " %")


def _mean(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return percent(statistics.fmean(known)) if known else ""
