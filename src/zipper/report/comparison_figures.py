"""Figures of the comparison, drawn from its result files."""

import statistics
from pathlib import Path

from matplotlib.figure import Figure

from zipper.report.runs import NAMES, Runs, read_runs

COLOURS = dict(zip(NAMES, ("tab:red", "tab:orange", "tab:cyan", "tab:blue"), strict=True))


def draw_comparison(folder: Path) -> list[Path]:
    """results/figures/compare-*.png, where there are runs."""
    runs = read_runs(folder / "compare")
    if not runs:
        return []
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    files = [learning_curves(runs, figures / "compare-learning-curves.png")]
    if any("tts" in tasks for tasks in runs.values()):
        files.append(wer_by_length(runs, figures / "compare-wer-by-length.png"))
    return files


def learning_curves(runs: Runs, file: Path) -> Path:
    """WER on dev and training loss of each task over the steps; a line a seed."""
    watched = next(one for tasks in runs.values() for several in tasks.values() for one in several)["config"]
    counts = watched["evaluate"]
    panels = {
        "dev/asr_wer": f"recognition: WER on {counts['dev_utterances']} dev utterances (%)",
        "dev/tts_wer": f"speech: WER heard on {counts['dev_spoken']} dev sentences (%)",
        "train/loss_text": "training loss of text (nats a token)",
        "train/loss_speech": "training loss of speech (weighted)",
    }
    figure = Figure(figsize=(12, 7), layout="constrained")
    for panel, (metric, title) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for model, tasks in runs.items():
            for index, one in enumerate(next(iter(tasks.values()))):
                points = one["curves"].get(metric, [])
                scale = 100 if metric.endswith("wer") else 1
                panel.plot(
                    [step for step, _ in points], [scale * value for _, value in points],
                    color=COLOURS[model], alpha=0.8, marker="o" if scale == 100 else None, markersize=4,
                    label=NAMES[model] if index == 0 else None,
                )  # fmt: skip
        panel.set(title=title, xlabel="step")
        if metric.endswith("wer"):
            panel.set_ylim(0, None)
        panel.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(runs))
    figure.savefig(file, dpi=110)
    return file


def wer_by_length(runs: Runs, file: Path) -> Path:
    """WER of speech by the length of what was to be said (paper, figure 2): up to a length, and in bins; the
    mean over seeds."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    up_to, bins = figure.subplots(1, 2, sharey=True)
    spoken = {model: tasks["tts"] for model, tasks in runs.items() if "tts" in tasks}
    for model, results in spoken.items():
        several = [one["by_length"] for one in results]
        lengths = [one["characters"] for one in several[0]]
        for panel, key in ((up_to, "wer_up_to"), (bins, "wer")):
            means = [100 * statistics.fmean(run[i][key] for run in several) for i in range(len(lengths))]
            panel.plot(lengths, means, "o-", color=COLOURS[model], label=NAMES[model])
    first = next(iter(spoken.values()))[0]
    for panel in (up_to, bins):
        panel.axhline(
            100 * first["oracle_wer"], color="0.5", linestyle="--", label="oracle: codec round trip"
        )
        panel.set_ylim(0, None)
        panel.grid(alpha=0.3)
    up_to.set(xlabel="characters of the transcript, at most", ylabel="WER (%)")
    counted = ", ".join(f"{one['utterances']} to {one['characters']}" for one in first["by_length"])
    bins.set(xlabel=f"characters of the transcript, bins of 10\n(sentences: {counted})")
    up_to.legend()
    figure.savefig(file, dpi=110)
    return file
