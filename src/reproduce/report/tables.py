"""Rows of the tables of RESULTS.md that need more than a result's own figures."""

import statistics
from typing import Literal, NamedTuple

from reproduce.report.choosing import (
    against,
    best_choice,
    best_rate,
    capped,
    dev_loss,
    difference_text,
    paired,
    rate,
)
from reproduce.report.records import CHOICES, NAMES, TASKS, Found, Result, Results, Runs, percent
from reproduce.sweep_file import Sweep
from zipper.evaluation.significance import Comparison

Row = list[str]


class Ablation(NamedTuple):
    """A sweep with its results."""

    sweep: Sweep
    found: Found

    @property
    def tasks(self) -> list[str]:
        """Evaluated tasks."""
        return [task for task in TASKS if any(task in results for results in self.found.values())]

    @property
    def split(self) -> str:
        """Split that all runs are evaluated on: test, or dev for model selection."""
        (split,) = {one["split"] for one in self.results}
        return split

    @property
    def seconds(self) -> list[float]:
        """Duration of each run, with training in processes before its last."""
        runs = [run for results in self.found.values() for run in next(iter(results.values()))]
        return [
            sum(run["stage_seconds"].values()) + max(0.0, run["wall_seconds"] - run["stage_seconds"]["train"])
            for run in runs
        ]

    @property
    def seeds(self) -> list[int]:
        """Number of seeds of each point."""
        return [max(map(len, results.values())) for results in self.found.values()]

    @property
    def results(self) -> list[Result]:
        """All results."""
        return [one for tasks in self.found.values() for several in tasks.values() for one in several]

    def table(self) -> tuple[Row, list[Row]]:
        """Head and rows: WER by point and task, with the difference to another point."""
        sweep, rows = self.sweep, []
        # Axis within which points are compared: x, or the first of several axes; "" for a single axis.
        shared = sweep.x or (next(iter(sweep.grid)) if len(sweep.grid) > 1 else "")
        at = [*sweep.grid].index(shared) if shared else 0
        for labels, results in self.found.items():
            row = [*labels]
            first = next(self.found[one] for one in self.found if not shared or one[at] == labels[at])
            for task in self.tasks:
                several = results.get(task, [])
                row.append(spread(several, "wer")[0] if several else "")
                comparable = several and first.get(task) and first is not results
                row.append(difference_text(_compare_any_data(several, first[task])) if comparable else "")
            paper = sweep.paper_at(labels)
            row.append(" / ".join(map(str, paper)) if isinstance(paper, list) else "")
            seeds, one = max(map(len, results.values())), next(iter(results.values()))[0]
            rows.append([*row, str(seeds), millions(one["parameters_trained"]), f"`{one['commit']}`"])
        other = f"vs first of the {shared}" if shared else "vs first row"
        head = [*sweep.grid, *(name for task in self.tasks for name in (f"{task.upper()} WER", other))]
        head += ["paper, ASR / TTS", "seeds", "trained", "commit"]
        if not any(row[-4] for row in rows):
            for row in (head, *rows):
                row.pop(-4)
        return head, rows


def ablations(results: Results) -> list[Ablation]:
    """All sweeps with results."""
    return [Ablation(one, found) for one in results.sweeps if (found := results.sweep(one))]


def _compare_any_data(a: list[Result], b: list[Result]) -> Comparison | None:
    """Compares results whose codec, and so whose encoded dataset, may differ; the sentences must not."""
    unknown: Result = {"data": {}, "data_fingerprint": "", "codec": ""}
    return paired([{**one, **unknown} for one in a], [{**one, **unknown} for one in b])


def spread(several: list[Result], key: Literal["wer", "target_wer"]) -> tuple[str, str]:
    """Mean with standard deviation over seeds, and the value of each seed."""
    values = [one[key] for one in several]
    mean = percent(statistics.fmean(values))
    if len(values) > 1:
        mean += f" ± {100 * statistics.stdev(values):.1f}"
    return mean, ", ".join(f"{100 * value:.1f}" for value in values)


def left_out_targets(runs: Runs) -> int:
    """Largest number of sentences without a common target in the comparisons vs resynthesis."""
    found = [against(runs, "tts", model, "single-decoder", "target_errors") for model in runs]
    return max((one.left_out for one in found if one), default=0)


def searched(results: Results) -> tuple[list[float], list[Row]]:
    """Learning rates of the search, and a row for each model; the chosen rate is bold."""
    found = results.select(folder="search")
    found = found[found.run.str.contains("-lr")]
    rates = sorted({rate(one) for one in found.result})
    rows = []
    for model in NAMES:
        own = found[found.run.str.startswith(f"{model}-lr")].result
        if len(own):
            best, cells = best_rate([*own]), dict.fromkeys(rates, "")
            cells |= {rate(one): score_text(one, bold=rate(one) == best) for one in own}
            rows.append([NAMES[model], *cells.values()])
    return rates, rows


def score_text(one: Result, bold: bool = False) -> str:
    """Formats WER and dev loss: "**61.3 %** (1.41)"."""
    wer = percent(capped(one)["wer"])
    return f"{f'**{wer}**' if bold else wer} ({dev_loss(one):.3f})"


def choices(results: Results) -> tuple[list[str], list[Row], Result]:
    """Training objectives, a row for each model with the chosen one in bold, and one of the results."""
    found = results.sweep_named(CHOICES)
    found = {labels: tasks for labels, tasks in found.items() if tasks.keys() == TASKS.keys()}
    labels, rows = [*dict.fromkeys(choice for _, choice in found)], []
    for model in dict.fromkeys(model for model, _ in found):
        own = {choice: tasks for (of, choice), tasks in found.items() if of == model}
        best, cells = best_choice(own), dict.fromkeys(labels, "")
        for choice, tasks in own.items():
            rates = " / ".join(percent(capped(tasks[task][0])["wer"]) for task in TASKS)
            cells[choice] = f"**{rates}**" if choice == best else rates
        rows.append([model, *cells.values()])
    return [*labels], rows, next(iter(found.values()))["asr"][0] if found else {}


def millions(count: float, digits: int = 2) -> str:
    """Formats a count: "4.55 M"."""
    return f"{count / 1e6:.{digits}f} M"
