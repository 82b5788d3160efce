"""All figures of RESULTS.md."""

from pathlib import Path

from matplotlib.axes import Axes

from reproduce import ROOT
from reproduce.report.bake_off import DEV, SWEEPS, BakeOff
from reproduce.report.records import AUDIO, NAMES, SAID, TASKS, Result, Results, Runs
from reproduce.report.tables import Ablation, ablations
from zipper.evaluation.attention import attention_map
from zipper.evaluation.plot_style import MARKS, PAPERS, bars, line, panels, save, styled
from zipper.generation.prompts import prompt_of
from zipper.generation.zipper import Zipper
from zipper.models.zipper import ZipperModel

PAIRS = (("text", "speech"), ("speech", "text"))  # (query, source) modality of a cross-attention map


def draw(results: Results, figures: Path) -> list[Path]:
    """Draws all figures that have results."""
    drawn = (draw_comparison, draw_longer, draw_ablations, draw_bake_off, draw_shipped)
    return [file for of in drawn for file in of(results, figures)]


def draw_comparison(results: Results, figures: Path) -> list[Path]:
    """Draws comparison, learning-curves, wer-by-length and gates, if there are runs."""
    runs = results.compared()
    if not runs:
        return []
    files = [at_a_glance(runs, figures), learning_curves(runs, figures)]
    if any("tts" in tasks for tasks in runs.values()):
        files.append(wer_by_length(runs, figures))
    if gated := {model: one for model, one in runs.items() if _gates(next(iter(one.values()))[0])}:
        files.append(gates(gated, figures))
    return files


@styled
def at_a_glance(runs: Runs, figures: Path) -> Path:
    """WER of both tasks: mean over seeds, seeds as dots, the paper's figures as crosses."""
    tasks = [task for task in TASKS if any(task in one for one in runs.values())]
    figure, axes = panels(1, len(tasks), (5.5, 2.9))
    for panel, task in zip(axes, tasks, strict=True):
        shown, said = {model: one[task] for model, one in runs.items() if task in one}, SAID["tables"][task]
        names = [NAMES[model].replace(", ", ",\n") for model in shown]
        beyond = [_first(said.get(model, "0")) for model in shown]
        bars(panel, names, [[100 * one["wer"] for one in several] for several in shown.values()], beyond)
        paper = [(_first(said[m]), i) for i, m in enumerate(shown) if m in said]
        panel.plot(*zip(*paper, strict=True), **PAPERS, label="paper (its corpus and sizes)")
        if task == "tts":
            topline = 100 * next(iter(shown.values()))[0]["resynthesis_wer"]
            panel.axvline(topline, color="0.4", linestyle=":", label="codec resynthesis")
        panel.set(title=TASKS[task], xlabel="test WER (%), dots: seeds")
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return save(figure, figures / "comparison")


@styled
def learning_curves(runs: Runs, figures: Path) -> Path:
    """Dev WER and training loss of each task over the steps, seeds as a band."""
    watched = next(one for tasks in runs.values() for several in tasks.values() for one in several)["config"]
    counts = watched["evaluate"]
    shown = {
        "dev/asr_wer": (f"ASR: WER on {counts['dev_utterances']} dev utterances", "WER (%)"),
        "dev/tts_wer": (f"TTS: WER on {counts['dev_spoken']} dev sentences", "WER (%)"),
        "train/loss_text": ("training loss of text", "nats per token"),
        "train/loss_speech": ("training loss of speech", "nats per code, weighted"),
    }
    figure, axes = panels(2, 2, (5.5, 3.2))
    for panel, (metric, (title, unit)) in zip(axes, shown.items(), strict=True):
        for index, (model, tasks) in enumerate(runs.items()):
            scale = 100 if metric.endswith("wer") else 1
            _series(panel, index, next(iter(tasks.values())), metric, scale, NAMES[model])
        panel.set(title=title, xlabel="step", ylabel=unit)
        if metric.endswith("wer"):
            panel.set_ylim(0, None)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(runs))
    return save(figure, figures / "learning-curves")


@styled
def wer_by_length(runs: Runs, figures: Path) -> Path:
    """TTS WER by length of the reference, cumulative and in bins; and the paper's Figure 2."""
    figure, (up_to, bins, paper) = panels(1, 3, (4.6, 4))
    spoken = {model: tasks["tts"] for model, tasks in runs.items() if "tts" in tasks}
    for index, (model, results) in enumerate(spoken.items()):
        several = [one["by_length"] for one in results]
        lengths = [one["characters"] for one in several[0]]
        seeds = [*zip(*several, strict=True)]  # by bin, over seeds
        line(
            up_to, index, lengths, [[100 * one["wer_up_to"] for one in same] for same in seeds], NAMES[model]
        )
        line(bins, index, lengths, [[100 * one["wer"] for one in same] for same in seeds], NAMES[model])
    first = next(iter(spoken.values()))[0]
    for panel in (up_to, bins):
        panel.axhline(
            100 * first["resynthesis_wer"], color="0.4", linestyle=":", label="codec resynthesis (topline)"
        )
        panel.set(ylim=(0, None), ylabel="WER (%)")
    counted = ", ".join(f"{one['utterances']} to {one['characters']}" for one in first["by_length"])
    up_to.set(title="ours: cumulative", xlabel="maximum characters of the reference")
    bins.set(title="ours: in bins of 10", xlabel=f"{up_to.get_xlabel()}\n(sentences: {counted})")
    for name, points in SAID["figure_2"].items():
        xs, ys = zip(*points, strict=True)
        paper.plot(xs, ys, color=PAPERS["color"], linestyle="-" if name == "Zipper" else "--",
                   marker="s" if name == "Zipper" else "o", label=f"paper: {name}")  # fmt: skip
    paper.set(
        title="paper, Figure 2: minima and ends, read off", ylim=(0, None), ylabel="WER (%)",
        xlabel="maximum characters of the reference",
    )  # fmt: skip
    up_to.legend(fontsize=7)
    paper.legend()
    return save(figure, figures / "wer-by-length")


@styled
def gates(runs: Runs, figures: Path) -> Path:
    """Absolute tanh of the gates of each zip over the steps, seeds as a band."""
    groups = {
        "text_from_speech.attention_gate": "text attends to speech: tanh(a)",
        "text_from_speech.feed_forward_gate": "text attends to speech: tanh(b)",
        "speech_from_text.attention_gate": "speech attends to text: tanh(a)",
        "speech_from_text.feed_forward_gate": "speech attends to text: tanh(b)",
    }
    figure, axes = panels(len(runs), len(groups), (3.4, 2.8), sharey=True)
    for row, (model, tasks) in enumerate(runs.items()):
        several = next(iter(tasks.values()))
        for column, (ending, title) in enumerate(groups.items()):
            panel = axes[row * len(groups) + column]
            names = sorted(name for name in _gates(several[0]) if name.endswith(ending))
            for index, name in enumerate(names):
                _series(panel, index, several, name, 1, f"zip {index + 1}", size=True)
            panel.set(title=title, xlabel="step", ylabel=f"{NAMES[model]}\nsize" if column == 0 else "")
            panel.set_ylim(0, 1)
    axes[0].legend()
    figure.suptitle("Gates of the zips in training (0: closed)")
    return save(figure, figures / "gates")


@styled
def draw_longer(results: Results, figures: Path) -> list[Path]:
    """Draws longer: dev WER of both tasks over the steps."""
    found = results.longer()
    if not found:
        return []
    figure, axes = panels(1, len(TASKS), (5.5, 3.6))
    for panel, (task, title) in zip(axes, TASKS.items(), strict=True):
        for index, (name, tasks) in enumerate(found.items()):
            curve = tasks[task]["curves"][f"dev/{task}_wer"]
            steps, rates = [step + 1 for step, _ in curve], [[100 * rate] for _, rate in curve]
            line(panel, index, steps, rates, SAID["longer"][name])
        panel.set(title=title, xlabel="step", ylabel="dev WER (%)", ylim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return [save(figure, figures / "longer")]


@styled
def draw_bake_off(results: Results, figures: Path) -> list[Path]:
    """Draws bake-off and bake-off-synthetic: test WER of each way, and its dev WER over the steps, seeds as
    dots and as a band."""
    found = [BakeOff.of(results, name) for name in SWEEPS]
    return [_draw_ways(one, figures) for one in found if one.ways]


def _draw_ways(found: BakeOff, figures: Path) -> Path:
    ways = found.ways
    figure, (ends, curves) = panels(1, 2, (5.5, 1.2 + 0.4 * len(ways)))
    bars(
        ends,
        [way.replace(", ", ",\n") for way in ways],
        [[100 * one["wer"] for one in w] for w in ways.values()],
    )
    ends.set(title=SWEEPS[found.name], xlabel="WER (%), dots: seeds")
    for index, (way, several) in enumerate(ways.items()):
        _series(curves, index, several, DEV, 100, way)
    curves.set(title="dev, in training", xlabel="step", ylabel="WER (%)", ylim=(0, None))
    figure.legend(*curves.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return save(figure, figures / found.name)


def draw_shipped(results: Results, figures: Path) -> list[Path]:
    """Draws attention-QUERY-SOURCE of the shipped model on its first test utterance."""
    given = results.shipped()
    if not given:
        return []
    zipped = Zipper.from_pretrained(ROOT / "assets" / "zipped")
    assert isinstance(zipped.network, ZipperModel)
    given_as = {"text": given["reference"], "speech": results.folder / AUDIO}
    segments = {name: zipped.encode(name, raw) for name, raw in given_as.items()}
    files = []
    for pair in PAIRS:  # the source comes first, as in ASR and TTS
        document = prompt_of(given["id"], segments[pair[1]], segments[pair[0]])
        title = f"{given['id']}: {given['reference']}"
        figure = attention_map(zipped.network, document, pair, zipped.modalities, title)
        files.append(save(figure, figures / f"attention-{'-'.join(pair)}"))
    return files


@styled
def draw_ablations(results: Results, figures: Path) -> list[Path]:
    """Draws ablation-NAME of each sweep with results."""
    files = []
    for ablation in ablations(results):
        sweep, tasks = ablation.sweep, ablation.tasks
        height = 4.5 if sweep.x else 1.2 + 0.33 * len(ablation.found)
        figure, axes = panels(1, len(tasks), (6, height), sharey=not sweep.x)
        for panel, task in zip(axes, tasks, strict=True):
            (_lines if sweep.x else _bars)(panel, ablation, task)
            panel.set_title(TASKS[task])
        if marked := [one for one in figure.axes if one not in axes]:  # axes with the paper's scale
            figure.legend(*marked[0].get_legend_handles_labels(), loc="outside lower center")
        elif sweep.x:
            figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.suptitle(sweep.title)
        files.append(save(figure, figures / f"ablation-{sweep.name}"))
    return files


def _lines(panel: Axes, ablation: Ablation, task: str) -> None:
    """Draws a line for each point of the other axes, seeds as a band, and the paper's points."""
    sweep, found = ablation
    at = [*sweep.grid].index(sweep.x)
    groups: dict[str, list[tuple[float, list[float]]]] = {}
    for labels, results in found.items():
        if task in results:
            name = ", ".join(label for i, label in enumerate(labels) if i != at) or sweep.title
            rates = [100 * one["wer"] for one in results[task]]
            groups.setdefault(name, []).append((float(labels[at]), rates))
    for i, (name, points) in enumerate(groups.items()):
        xs, several = zip(*sorted(points), strict=True)
        line(panel, i, xs, several, name)
        if isinstance(paper := sweep.points.get(name), dict):
            marks = {**PAPERS, "marker": MARKS[i], "markerfacecolor": "none"}
            panel.plot([*paper], [*paper.values()], **marks, label=f"paper: {name}")
    ticks = sorted({x for points in groups.values() for x, _ in points})
    scale = "log" if ticks[0] > 0 else "linear"
    panel.set(xlabel=sweep.x, xscale=scale, ylabel=f"WER on {ablation.split} (%)", ylim=(0, None))
    panel.set_xticks(ticks)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:g}")
    panel.minorticks_off()


def _bars(panel: Axes, ablation: Ablation, task: str) -> None:
    """Draws a bar for every point, seeds as dots, and the paper's figures as crosses on their own scale."""
    sweep, found = ablation
    rates = [[100 * one["wer"] for one in results.get(task, [])] for results in found.values()]
    points = [sweep.paper_at(labels) for labels in found]
    at = [*TASKS].index(task)
    paper = {place: point[at] for place, point in enumerate(points) if isinstance(point, list)}
    longest = max(max(seeds, default=0.0) for seeds in rates)
    scale = longest / max(paper.values(), default=1.0)  # aligns the largest values of both
    beyond = [0.0] * len(rates)
    for place, wer in paper.items():
        end, cross = max(rates[place], default=0.0), scale * wer
        if end <= cross < end + 0.1 * longest:  # the cross would cover the bar's label
            beyond[place] = cross
    bars(panel, [", ".join(labels) for labels in found], rates, beyond)
    panel.set_xlabel(f"WER on {ablation.split} (%)")
    if paper:
        above = panel.twiny()
        above.plot([*paper.values()], [*paper], **PAPERS, label="paper (scale above)")
        above.set_xlim(*(bound / scale for bound in panel.get_xlim()))
        above.grid(visible=False)


def _first(figures: str) -> float:
    """3.47* / 8.37** -> 3.47"""
    return float(figures.split(" / ")[0].rstrip("*"))


def _gates(result: Result) -> list[str]:
    return [name for name in result["curves"] if name.startswith("gate/zips")]


def _series(
    panel: Axes, index: int, several: list[Result], metric: str, scale: float, label: str, size: bool = False
) -> None:
    """Draws one metric over seeds. size: absolute value, since the sign differs between seeds."""
    curves = [dict(one["curves"].get(metric, [])) for one in several]
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    values = [[scale * (abs(c[step]) if size else c[step]) for c in curves] for step in steps]
    if steps:
        line(panel, index, steps, values, label)
