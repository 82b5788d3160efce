"""Ways of joining two towers, on real speech: tables and claims of configs/sweeps/bake-off.yaml, by the terms
of docs/bake-off.md."""

import statistics
from typing import NamedTuple

from reproduce import ROOT
from reproduce.report.choosing import capped
from reproduce.report.records import Found, Result, Results, percent
from reproduce.report.tables import Row, millions, spread
from reproduce.sweep_file import read_sweep
from zipper.evaluation.significance import holm, over_seeds, p_value

FLAT = 0.1  # largest share by which the last quarter of the steps lowers the dev WER of a flat curve
DEV = "dev/asr_wer"
ZIPPER, SINGLE = "Zipper", "Single Decoder"
FROZEN, PAPERS = "Zipper, speech tower frozen", "Zipper, the paper's settings"
PAIRS = [
    *((ZIPPER, other) for other in (SINGLE, "Token insertion", "Mixture of transformers", FROZEN, PAPERS)),
    (PAPERS, SINGLE), (f"{SINGLE}, + unlabelled speech", SINGLE),
]  # fmt: skip


class BakeOff(NamedTuple):
    """Results on test by way, seeds in order; and of the search of learning rates, on dev."""

    ways: dict[str, list[Result]]
    searched: Found

    @classmethod
    def of(cls, results: Results) -> "BakeOff":
        final, search = (
            results.sweep(read_sweep(ROOT / f"configs/sweeps/{name}.yaml"))
            for name in ("bake-off", "bake-off-search")
        )
        return cls({labels[0]: tasks["asr"] for labels, tasks in final.items()}, search)

    def rates(self) -> list[Row]:
        """Dev WER of each trial, with the errors of a sentence capped at its words; the lowest is bold."""
        rows = []
        for way in dict.fromkeys(labels[0] for labels in self.searched):
            found = {
                labels[1]: tasks["asr"][0] for labels, tasks in self.searched.items() if labels[0] == way
            }
            wers = {rate: capped(one)["wer"] for rate, one in found.items()}
            cells = [
                f"{f'**{percent(wer)}**' if wer == min(wers.values()) else percent(wer)} "
                f"({found[rate]['config']['train']['lr']:g})"
                for rate, wer in wers.items()
            ]
            rows.append([way, *cells])
        return rows

    def budget(self) -> float:
        """FLOPs that the cheapest way spends in all."""
        return min(flops(one, one["steps"]) for several in self.ways.values() for one in several)

    def table(self) -> list[Row]:
        """Way, weights trained, FLOPs, WER, each seed, dev WER at equal FLOPs, fall of the last quarter, text
        perplexity before and after."""
        rows = []
        for way, several in self.ways.items():
            one = several[0]
            text = [seed["alone"]["text"] for seed in several]
            same = all(ends["before"] == ends["after"] for ends in text)
            after = "identical" if same else f"{statistics.fmean(ends['after'] for ends in text):.2f}"
            rows.append([
                way, millions(one["parameters_trained"], 1), millions(one["flops_per_token"]["training"], 1),
                *spread(several, "wer"), percent(statistics.fmean(map(self.at_equal_flops, several))),
                percent(statistics.fmean(map(fall, several))), f"{text[0]['before']:.2f}", after,
            ])  # fmt: skip
        return rows

    def at_equal_flops(self, one: Result) -> float:
        """Dev WER at the last validation within the budget."""
        curve = one["curves"][DEV]
        within = [wer for step, wer in curve if flops(one, step + 1) <= self.budget()]
        return within[-1] if within else curve[0][1]

    def claims(self) -> list[Row]:
        """Two ways, difference in WER with its interval, p corrected by Holm, and the way with fewer errors;
        pairs without results are left out."""
        return [
            [one, other, f"{100 * apart:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
             p_value(p).removeprefix("= "), "not decided" if p >= 0.05 else one if apart < 0 else other]
            for (one, other, apart, low, high), p in zip(*self._compared, strict=True)
        ]  # fmt: skip

    @property
    def _compared(self) -> tuple[list[tuple[str, str, float, float, float]], list[float]]:
        found, ps = [], []
        for one, other in PAIRS:
            if one in self.ways and other in self.ways:
                a, b = self.ways[one], self.ways[other]
                low, high, p = over_seeds(a, b)
                apart = statistics.fmean(x["wer"] for x in a) - statistics.fmean(x["wer"] for x in b)
                found.append((one, other, apart, low, high))
                ps.append(p)
        return found, holm(ps)


def flops(one: Result, steps: int) -> float:
    """Training FLOPs of so many steps."""
    return float(one["flops_per_token"]["training"]) * one["config"]["train"]["tokens"] * steps


def fall(one: Result) -> float:
    """Share by which the last quarter of the steps lowers the dev WER; a curve is flat below FLAT."""
    curve = one["curves"][DEV]
    before = [wer for step, wer in curve if step + 1 <= 0.75 * one["steps"]]
    return 1 - min(wer for _, wer in curve) / min(before) if before else 1.0
