"""Figures of the comparison."""

from pathlib import Path

from matplotlib.axes import Axes

from reproduce.report.runs import NAMES, PAPER, Result, Runs, read_runs
from zipper.evaluation.plot_style import PAPERS, bars, line, panels, save, styled

# Read off the paper's Figure 2: (maximum characters, WER) at the minimum and at the end of each line.
PAPERS_LENGTHS = {"Single Decoder": [(90, 9.4), (480, 33)], "Zipper": [(180, 9), (480, 20.7)]}


def draw_comparison(folder: Path, figures: Path) -> list[Path]:
    """Draws comparison, learning-curves, wer-by-length and gates, if there are runs. folder: results."""
    runs = read_runs(folder / "compare", utterances=False)
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
    tasks = [task for task in PAPER if any(task in one for one in runs.values())]
    figure, axes = panels(1, len(tasks), (5.5, 2.9))
    titles = {"asr": "ASR", "tts": "TTS, scored by ASR"}
    for panel, task in zip(axes, tasks, strict=True):
        shown = {model: one[task] for model, one in runs.items() if task in one}
        names = [NAMES[model].replace(", ", ",\n") for model in shown]
        beyond = [_first(PAPER[task].get(model, "0")) for model in shown]
        bars(panel, names, [[100 * one["wer"] for one in several] for several in shown.values()], beyond)
        paper = [(_first(PAPER[task][m]), i) for i, m in enumerate(shown) if m in PAPER[task]]
        panel.plot(*zip(*paper, strict=True), **PAPERS, label="paper (its corpus and sizes)")
        if task == "tts":
            oracle = 100 * next(iter(shown.values()))[0]["oracle_wer"]
            panel.axvline(oracle, color="0.4", linestyle=":", label="codec resynthesis")
        panel.set(title=titles[task], xlabel="test WER (%), dots: seeds")
    handles = axes[-1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2)
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
        for panel, key in ((up_to, "wer_up_to"), (bins, "wer")):
            values = [[100 * run[i][key] for run in several] for i in range(len(lengths))]
            line(panel, index, lengths, values, NAMES[model])
    first = next(iter(spoken.values()))[0]
    for panel in (up_to, bins):
        oracle = 100 * first["oracle_wer"]
        panel.axhline(oracle, color="0.4", linestyle=":", label="codec resynthesis (topline)")
        panel.set(ylim=(0, None), ylabel="WER (%)")
    counted = ", ".join(f"{one['utterances']} to {one['characters']}" for one in first["by_length"])
    up_to.set(title="ours: cumulative", xlabel="maximum characters of the reference")
    bins.set(
        title="ours: in bins of 10", xlabel=f"maximum characters of the reference\n(sentences: {counted})"
    )
    for name, points in PAPERS_LENGTHS.items():
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
