"""Ablation section of RESULTS.md and its figures, from sweep files and results/ablations/NAME/*.json."""

import re
import statistics
from pathlib import Path

from matplotlib.axes import Axes

from reproduce import ROOT
from reproduce.report.markdown import percent, section, table
from reproduce.report.runs import Result, difference_text, paired
from reproduce.sweep_file import Sweep, read_sweep
from zipper.evaluation.plot_style import MARKS, PAPERS, bars, line, panels, save, styled
from zipper.evaluation.result_file import read_result
from zipper.evaluation.significance import Comparison

Found = dict[tuple[str, ...], dict[str, list[Result]]]  # labels of a point, task: results by seed
TASKS = {"asr": "ASR", "tts": "TTS, scored by ASR"}
# Labels of sweep files are part of result file names, so they stay. Tables and figures show these terms.
TERMS = {
    "given speech too": "+ unlabelled speech pre-training",
    "unlabelled speech": "+ unlabelled speech pre-training",
    "spans hidden": "history masking",
    "nothing hidden": "no history masking",
    "prompt loss": "loss on the prompt",
    "codebooks alike": "equal codebook weights",
    "recognition alone": "ASR only",
    "documents weigh alike": "mean over documents",
    "gates at the rate of all": "gates with the common learning rate",
    "no prior of time": "no time prior",
    "as they ship": "as shipped",
}


def sweeps() -> list[Sweep]:
    """All sweep files, by name."""
    return [read_sweep(file) for file in sorted((ROOT / "configs" / "ablations").rglob("*.yaml"))]


def read_results(ablation: Sweep, folder: Path) -> Found:
    """Results of a sweep; points without a result are left out."""
    found: Found = {}
    for point in ablation.runs():
        for task in TASKS:
            for name in (f"{point.name}-{task}.json", f"{point.name}.json"):
                file = folder / ablation.name / name
                if file.is_file() and (result := read_result(file))["task"] == task:
                    found.setdefault(tuple(point.labels.values()), {}).setdefault(task, []).append(result)
                    break
    return found


def ablations(folder: Path) -> str:
    """Overview of all sweeps, and a table for each one with results. folder: results/ablations."""
    found = {one.name: (one, results) for one in sweeps() if (results := read_results(one, folder))}
    if not found:
        return ""
    return "\n".join([_overview(found), *(_section(*one) for one in found.values())])


def _overview(found: dict[str, tuple[Sweep, Found]]) -> str:
    """A row for each sweep: number of runs and their duration."""
    rows, minutes = [], []
    for ablation, results in found.values():
        runs = [next(iter(one.values())) for one in results.values()]
        took = [sum(run["stage_seconds"].values()) / 60 for seeds in runs for run in seeds]
        minutes += took
        rows.append([
            f"[{ablation.title}]({ablation.file})", ablation.paper,
            f"{len(took)} of {len(ablation.runs())}", f"{statistics.fmean(took):.1f}", f"{max(took):.1f}",
        ])  # fmt: skip
    threads = {run["threads"] for _, results in found.values() for one in results.values()
               for seeds in one.values() for run in seeds}  # fmt: skip
    text = (
        f"One command each (`make ablation-NAME`, or `make ablations` for all of them): {len(minutes)} runs, "
        f"{sum(minutes) / 60:.1f} hours of {' or '.join(map(str, sorted(threads)))} thread(s), including "
        "evaluation and ASR scoring."
    )
    head = ["sweep", "paper", "runs", "minutes per run", "longest"]
    return section("Ablations", text, table(head, rows), ["make ablations ARGS='--jobs 2'"])


def _section(ablation: Sweep, found: Found) -> str:
    tasks = [task for task in TASKS if any(task in results for results in found.values())]
    rows = []
    for labels, results in found.items():
        row = [shown(label) for label in labels]
        for task in tasks:
            several = results.get(task, [])
            row.append(_spread([one["wer"] for one in several]) if several else "")
            first = found.get(_beside(ablation, found, labels), {})
            comparable = several and first.get(task) and first is not results
            row.append(difference_text(_compare_any_data(several, first[task])) if comparable else "")
        paper = ablation.points.get(labels[0], "")
        row.append(" / ".join(f"{value}" for value in paper) if isinstance(paper, list) else "")
        seeds = max(len(several) for several in results.values())
        one = next(iter(results.values()))[0]
        rows.append([*row, str(seeds), f"{one['parameters_trained'] / 1e6:.2f} M", f"`{one['commit']}`"])
    head = [*ablation.grid]
    for task in tasks:
        first_one = f"vs first of the {shared}" if (shared := _shared(ablation)) else "vs first row"
        head += [f"{task.upper()} WER", first_one]
    head += ["paper, ASR / TTS", "seeds", "trained", "commit"]
    if not any(row[-4] for row in rows):
        head.pop(-4)
        rows = [[*row[:-4], *row[-3:]] for row in rows]
    count = len(ablation.runs())
    done = sum(max(len(several) for several in results.values()) for results in found.values())
    figure = f"{ablation.paper} of the paper. " if ablation.paper else ""
    text = (
        f"{figure}`{ablation.file}`: {done} of {count} runs of `{ablation.config}`{_with(ablation)}. "
        f"{_split(found).capitalize()}, greedy{_spoken(found)}. Differences in points of WER with 95 % "
        "intervals, paired over utterances; p of Wilcoxon's "
        f"test.\n\n![{ablation.title}](reports/figures/ablation-{ablation.name}.svg)"
    )
    command = f"python -m zipper sweep {ablation.file}"
    return section(f"Ablation: {ablation.title}", text, table(head, rows), [command])


def _with(ablation: Sweep) -> str:
    overrides = ", ".join(f"{key}={value}" for key, value in ablation.words.items())
    return f" with {overrides}" if overrides else ""


def _split(found: Found) -> str:
    """Split that all runs of a sweep are evaluated on: test, or dev for model selection."""
    (split,) = {one["split"] for results in found.values() for several in results.values() for one in several}
    return split


def _spoken(found: Found) -> str:
    counts = {one["utterances"] for results in found.values() for one in results.get("tts", [])}
    return f", {max(counts)} sentences for TTS" if counts else ""


def _beside(ablation: Sweep, found: Found, labels: tuple[str, ...]) -> tuple[str, ...]:
    """Point to compare with: the first one with the same label on the shared axis."""
    if not (shared := _shared(ablation)):
        return next(iter(found))
    at = [*ablation.grid].index(shared)
    return next(one for one in found if one[at] == labels[at])


def _shared(ablation: Sweep) -> str:
    """Axis within which points are compared: x, or the first of several axes; "" for a single axis."""
    return ablation.x or (next(iter(ablation.grid)) if len(ablation.grid) > 1 else "")


def _compare_any_data(a: list[Result], b: list[Result]) -> Comparison | None:
    """Compares results whose codec, and so whose encoded dataset, may differ; the sentences must not."""
    any_a, any_b = (
        [{**one, "data": None, "data_fingerprint": "", "codec": ""} for one in side] for side in (a, b)
    )
    return paired(any_a, any_b)


def shown(label: str) -> str:
    """Label of a sweep as tables and figures show it (`TERMS`)."""
    for phrase, term in TERMS.items():
        label = re.sub(rf"(?<![+] )\b{phrase}\b", term, label)
    return label


def _spread(rates: list[float]) -> str:
    deviation = f" ± {100 * statistics.stdev(rates):.1f}" if len(rates) > 1 else ""
    return percent(statistics.fmean(rates)) + deviation


@styled
def draw_ablations(folder: Path, figures: Path) -> list[Path]:
    """Draws ablation-NAME of each sweep with results. folder: results/ablations."""
    files = []
    for ablation in sweeps():
        found = read_results(ablation, folder)
        if not found:
            continue
        tasks = [task for task in TASKS if any(task in results for results in found.values())]
        height = 4 if ablation.x else 1.2 + 0.33 * len(found)
        figure, axes = panels(1, len(tasks), (6, height), sharey=not ablation.x)
        for panel, task in zip(axes, tasks, strict=True):
            (_lines if ablation.x else _bars)(panel, ablation, found, task)
            panel.set_title(TASKS[task])
        if marked := [one for one in figure.axes if one not in axes]:  # axes with the paper's scale
            figure.legend(*marked[0].get_legend_handles_labels(), loc="outside lower center")
        figure.suptitle(ablation.title)
        files.append(save(figure, figures / f"ablation-{ablation.name}"))
    return files


def _lines(panel: Axes, ablation: Sweep, found: Found, task: str) -> None:
    """Draws a line for each point of the other axes, seeds as a band, and the paper's points."""
    axes = list(ablation.grid)
    at = axes.index(ablation.x)
    groups: dict[str, list[tuple[float, list[float]]]] = {}
    for labels, results in found.items():
        if task in results:
            name = ", ".join(label for i, label in enumerate(labels) if i != at) or ablation.title
            rates = [100 * one["wer"] for one in results[task]]
            groups.setdefault(name, []).append((float(labels[at]), rates))
    for i, (name, points) in enumerate(groups.items()):
        xs, several = zip(*sorted(points), strict=True)
        line(panel, i, xs, several, shown(name))
        if isinstance(paper := ablation.points.get(name), dict):
            marks = {**PAPERS, "marker": MARKS[i], "markerfacecolor": "none"}
            panel.plot([*paper], [*paper.values()], **marks, label=f"paper: {shown(name)}")
    ticks = sorted({x for points in groups.values() for x, _ in points})
    scale = "log" if ticks[0] > 0 else "linear"
    panel.set(xlabel=ablation.x, xscale=scale, ylabel=f"WER on {_split(found)} (%)", ylim=(0, None))
    panel.set_xticks(ticks)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:g}")
    panel.minorticks_off()
    panel.legend()


def _bars(panel: Axes, ablation: Sweep, found: Found, task: str) -> None:
    """Draws a bar for every point, seeds as dots, and the paper's figures as crosses on their own scale."""
    rates = [[100 * one["wer"] for one in results.get(task, [])] for results in found.values()]
    points = [ablation.points.get(labels[0]) for labels in found]
    at = [*TASKS].index(task)
    paper = {place: point[at] for place, point in enumerate(points) if isinstance(point, list)}
    longest = max(max(seeds, default=0.0) for seeds in rates)
    scale = longest / max(paper.values(), default=1.0)  # aligns the largest values of both
    beyond = [0.0] * len(rates)
    for place, wer in paper.items():
        end, cross = max(rates[place], default=0.0), scale * wer
        if end <= cross < end + 0.1 * longest:  # the cross would cover the bar's label
            beyond[place] = cross
    bars(panel, [", ".join(map(shown, labels)) for labels in found], rates, beyond)
    panel.set_xlabel(f"WER on {_split(found)} (%)")
    if paper:
        above = panel.twiny()
        above.plot([*paper.values()], [*paper], **PAPERS, label="paper (scale above)")
        above.set_xlim(*(bound / scale for bound in panel.get_xlim()))
        above.grid(visible=False)
