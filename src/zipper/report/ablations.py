"""The section of ablations, and a figure of each: from the grid files and results/ablations/NAME/*.json."""

import json
import statistics
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zipper.ablate import Ablation, read_ablation
from zipper.config import ROOT
from zipper.evaluate.significance import compare
from zipper.report.markdown import percent, section, table
from zipper.report.runs import beside

Result = dict[str, Any]
Found = dict[tuple[str, ...], dict[str, list[Result]]]  # labels of a point, task: results by seed
TASKS = {"asr": "recognition", "tts": "speech, heard by the judge"}
MARKS = ("o", "s", "^", "D", "v", "P")  # lines are told apart without colours, too
LINES = ("-", "--", ":", "-.")


def grids() -> list[Ablation]:
    """All grid files, by name."""
    return [read_ablation(file) for file in sorted((ROOT / "configs" / "ablations").glob("*.yaml"))]


def read_results(ablation: Ablation, folder: Path) -> Found:
    """What has been run of a grid; points without a result are left out."""
    found: Found = {}
    for point in ablation.runs():
        for task in TASKS:
            for name in (f"{point.name}-{task}.json", f"{point.name}.json"):
                file = folder / ablation.name / name
                if file.is_file() and (result := json.loads(file.read_text()))["task"] == task:
                    found.setdefault(tuple(point.labels.values()), {}).setdefault(task, []).append(result)
                    break
    return found


def ablations(folder: Path) -> str:
    """A table for each grid that has results. folder: results/ablations."""
    return "\n".join(_section(one, found) for one in grids() if (found := read_results(one, folder)))


def _section(ablation: Ablation, found: Found) -> str:
    tasks = [task for task in TASKS if any(task in results for results in found.values())]
    first = next(iter(found.values()))
    rows = []
    for labels, results in found.items():
        row = list(labels)
        for task in tasks:
            several = results.get(task, [])
            row.append(_spread([one["wer"] for one in several]) if several else "")
            same = several and first.get(task) and results is not first
            row.append(beside(compare(several, first[task])) if same else "")
        paper = ablation.points.get(labels[0], "")
        row.append(" / ".join(f"{value}" for value in paper) if isinstance(paper, list) else "")
        seeds = max(len(several) for several in results.values())
        one = next(iter(results.values()))[0]
        rows.append([*row, str(seeds), f"{one['parameters_trained'] / 1e6:.2f} M", f"`{one['commit']}`"])
    head = [*ablation.grid]
    for task in tasks:
        head += [f"{task.upper()} WER", "against the first row, p"]
    head += ["paper, ASR / TTS", "seeds", "trained", "commit"]
    if not any(row[-4] for row in rows):
        head.pop(-4)
        rows = [[*row[:-4], *row[-3:]] for row in rows]
    count = len(ablation.runs())
    done = sum(max(len(several) for several in results.values()) for results in found.values())
    asked = f"{ablation.paper} of the paper. " if ablation.paper else ""
    text = (
        f"{asked}`configs/ablations/{ablation.name}.yaml`: {done} of {count} runs. Test, greedy. "
        "Differences in points with 95 % intervals, paired over utterances.\n\n"
        f"![{ablation.title}](results/figures/ablation-{ablation.name}.png)"
    )
    command = f"python -m zipper ablate configs/ablations/{ablation.name}.yaml"
    return section(f"Ablation: {ablation.title}", text, table(head, rows), [command])


def _spread(rates: list[float]) -> str:
    deviation = f" ± {100 * statistics.stdev(rates):.1f}" if len(rates) > 1 else ""
    return percent(statistics.fmean(rates)) + deviation


def draw_ablations(folder: Path, figures: Path) -> list[Path]:
    """ablation-NAME.svg and .png of each grid that has results; the paper's points are drawn apart."""
    files = []
    for ablation in grids():
        found = read_results(ablation, folder)
        if not found:
            continue
        figures.mkdir(parents=True, exist_ok=True)
        tasks = [task for task in TASKS if any(task in results for results in found.values())]
        figure = Figure(figsize=(5.5 * len(tasks), 4), layout="constrained")
        for index, (panel, task) in enumerate(
            zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True)
        ):
            (_lines if ablation.x else _bars)(panel, ablation, found, task, index)
            panel.set(ylabel="WER on test (%)", title=TASKS[task], ylim=(0, None))
            panel.grid(alpha=0.3)
        figure.suptitle(ablation.title)
        for suffix in ("svg", "png"):
            files.append(figures / f"ablation-{ablation.name}.{suffix}")
            with rc_context({"svg.hashsalt": ablation.name}):  # the same figure, the same file
                figure.savefig(files[-1], dpi=110, metadata={"Date": None} if suffix == "svg" else None)
    return files


def _lines(panel: Axes, ablation: Ablation, found: Found, task: str, _: int) -> None:
    """One line for every point of the other axes."""
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
        means = [statistics.fmean(rates) for rates in several]
        panel.plot(xs, means, marker=MARKS[i % len(MARKS)], linestyle=LINES[i % len(LINES)], label=name)
        panel.fill_between(xs, [min(r) for r in several], [max(r) for r in several], alpha=0.2)
    panel.set(xlabel=ablation.x, xscale="log")
    panel.set_xticks(sorted({x for points in groups.values() for x, _ in points}))
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.minorticks_off()
    panel.legend()


def _bars(panel: Axes, ablation: Ablation, found: Found, task: str, index: int) -> None:
    """A bar for every point, its seeds as dots; the paper's figures as crosses, on their own scale."""
    shown = [(labels, [100 * one["wer"] for one in results[task]]) for labels, results in found.items()
             if task in results]  # fmt: skip
    names = [", ".join(labels) for labels, _ in shown]
    panel.bar(
        range(len(shown)), [statistics.fmean(rates) for _, rates in shown], color="0.75", edgecolor="0.3"
    )
    for i, (_, rates) in enumerate(shown):
        panel.plot([i] * len(rates), rates, "k.", markersize=5)
    panel.set_xticks(range(len(names)), names, rotation=20)
    found_there = [ablation.points.get(labels[0]) for labels, _ in shown]
    paper = [(i, point[index]) for i, point in enumerate(found_there) if isinstance(point, list)]
    if paper:
        beside_it = panel.twinx()
        beside_it.plot(*zip(*paper, strict=True), "x", color="tab:red", label="paper (right scale)")
        beside_it.set(ylim=(0, None), ylabel="the paper's WER (%)")
        beside_it.legend(loc="lower right")
