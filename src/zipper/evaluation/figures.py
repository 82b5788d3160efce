"""Figures of a run as PNG: learning curve, gates, and cross-attention on one test utterance."""

import re
from pathlib import Path

import torchaudio
from matplotlib.figure import Figure
from torch import Tensor

from zipper.data.dataset import EncodedDataset, Row
from zipper.data.documents import document
from zipper.evaluation.attention import attention_map
from zipper.evaluation.metrics import Series, read_metrics, smooth
from zipper.evaluation.plot_style import COLOURS, LINES, line, panels, styled
from zipper.evaluation.result_file import Result, Results
from zipper.models.multimodal import MultimodalModel
from zipper.models.zipper import ZipperModel


def draw_run(
    run: Path, model: MultimodalModel, dataset: EncodedDataset, row: Row, results: Results
) -> list[Path]:
    """Draws all figures of a run into run/figures. row: utterance of the attention maps. results: by task."""
    folder = run / "figures"
    folder.mkdir(exist_ok=True)
    metrics = read_metrics(run)
    train = next(iter(results.values()))["config"]["train"]
    weighted = bool(train["codebook_weights"] or train["history_mask"])
    files = [learning_curve(metrics, folder / "learning-curve.png", weighted)]
    if gates := {name: series for name, series in metrics.items() if name.startswith("gate/")}:
        files.append(gate_curves(gates, folder / "gates.png"))
    if isinstance(model, ZipperModel):
        for pair in model.directions_used:
            if all(row[dataset.modalities[name].length_column] for name in pair):
                given = document(dataset, row, ">".join(reversed(pair)), 0.0)
                title = f"{row['id']}: {row.get('text', '')}"
                drawn = attention_map(model, given, pair, dataset.modalities, title)
                files.append(_save(drawn, folder / f"attention-{'-'.join(pair)}.png"))
    for task, result in results.items():
        if "by_length" in result:
            files.append(wer_by_length(result, folder / f"wer-by-length-{task}.png"))
    return files


@styled
def learning_curve(metrics: dict[str, Series], file: Path, weighted: bool) -> Path:
    """Training and dev loss, dev WER of the trained tasks, and gradient norm over the steps.

    weighted: the training loss uses codebook weights or history masking, which the dev loss does not.
    """
    tasks = [(name, found[1]) for name in metrics if (found := re.fullmatch("dev/(.+)_wer", name))]
    shown = {task.upper(): metrics[name] for name, task in tasks}
    norms = {name: metrics.get(f"train/grad_norm{name}", []) for name in ("", "_max")}
    count = 1 + bool(shown) + bool(norms[""])
    figure, axes = panels(1, count, (5, 4))
    train = metrics.get("train/loss", [])
    axes[0].plot(
        *_columns(metrics.get("train/loss_max", [])), ".", color="0.6", markersize=3, label="largest"
    )
    axes[0].plot(*_columns(train), color="0.8", linewidth=0.8)
    axes[0].plot(*_columns(smooth(train)), color=COLOURS[0], label="train (mean of 10 points)")
    on_dev = "dev, equal codebook weights, no history masking" if weighted else "dev"
    axes[0].plot(*_columns(metrics.get("dev/loss", [])), "o--", color=COLOURS[1], label=on_dev)
    axes[0].set(xlabel="step", ylabel="loss (nats per scored token)", ylim=(0, None))
    axes[0].legend()
    for index, (label, series) in enumerate(shown.items()):
        steps, rates = _columns(series)
        line(axes[1], index, steps, [[100 * rate] for rate in rates], label)
    if shown:  # set limits last, since they do not grow with further series
        axes[1].set(xlabel="step", ylabel="dev WER (%)", ylim=(0, None))
        axes[1].legend()
    if norms[""]:
        axes[-1].plot(
            *_columns(norms["_max"]), ".", color="0.6", markersize=3, label="maximum between points"
        )
        axes[-1].plot(*_columns(smooth(norms[""])), color=COLOURS[0], label="mean of 10 points")
        axes[-1].set(xlabel="step", ylabel="gradient norm", yscale="log")
        axes[-1].legend()
    return _save(figure, file)


@styled
def gate_curves(gates: dict[str, Series], file: Path) -> Path:
    """tanh of every trained gate over the steps: attention, feed-forward and input projections."""
    kinds = {"attention_gate": "zips, attention: tanh(a)", "feed_forward_gate": "zips, feed-forward: tanh(b)"}
    groups: dict[str, dict[str, Series]] = {}
    for name, series in gates.items():
        kind = kinds.get(name.rsplit(".", 1)[-1], "input projections")
        label = name.removeprefix("gate/").rsplit(".", 1)[0]
        groups.setdefault(kind, {})[label] = series
    figure, axes = panels(1, len(groups), (4.5, 4))
    for panel, (kind, lines) in zip(axes, groups.items(), strict=True):
        for i, (label, series) in enumerate(lines.items()):
            panel.plot(
                *_columns(series),
                label=label,
                color=COLOURS[i % len(COLOURS)],
                linestyle=LINES[i % len(LINES)],
            )
        panel.axhline(0, color="0.7", linewidth=0.8)
        panel.set(title=kind, xlabel="step", ylabel="tanh of the gate")
        panel.legend()
    return _save(figure, file)


@styled
def wer_by_length(result: Result, file: Path) -> Path:
    """WER by length of the reference (paper, Figure 2): cumulative, and in bins."""
    figure, (up_to, bins) = panels(1, 2, (5, 4), sharey=True)
    lengths = [one["characters"] for one in result["by_length"]]
    line(up_to, 0, lengths, [[100 * one["wer_up_to"]] for one in result["by_length"]], "model")
    if "resynthesis_wer" in result:
        up_to.axhline(
            100 * result["resynthesis_wer"], color="0.5", linestyle="--", label="codec resynthesis (topline)"
        )
    up_to.set(xlabel="maximum characters of the reference", ylabel="WER (%)", ylim=(0, None))
    up_to.legend()
    wers = [100 * one["wer"] for one in result["by_length"]]
    drawn = bins.bar(range(len(lengths)), wers, color="0.8", edgecolor="0.25")
    bins.bar_label(drawn, [str(one["utterances"]) for one in result["by_length"]], fontsize="small")
    bins.set_xticks(range(len(lengths)), [f"to {length}" for length in lengths], rotation=45)
    bins.set(xlabel="characters of the reference (above each bar: number of sentences)")
    return _save(figure, file)


@styled
def spectrograms(waves: dict[str, Tensor], sample_rate: int, title: str, file: Path) -> Path:
    """Log-mel spectrograms of waves float32 [n], stacked on one scale."""
    mel = torchaudio.transforms.MelSpectrogram(sample_rate, n_fft=512, hop_length=128, n_mels=64)
    figure, axes = panels(len(waves), 1, (9, 1.6), sharex=True)
    for panel, (name, wave) in zip(axes, waves.items(), strict=True):
        picture = (mel(wave) + 1e-6).log10()
        panel.imshow(
            picture, aspect="auto", origin="lower", vmin=-5, vmax=1,
            extent=(0, len(wave) / sample_rate, 0, 64),
        )  # fmt: skip
        panel.set(ylabel=name)
        panel.set_yticks([])
        panel.grid(visible=False)
    axes[-1].set(xlabel="seconds")
    figure.suptitle(title, fontsize="medium", parse_math=False)  # a transcript may contain two dollar signs
    return _save(figure, file, dpi=80)  # at 120, noise doubles the file size


def _columns(series: Series) -> tuple[list[int], list[float]]:
    return [step for step, _ in series], [value for _, value in series]


def _save(figure: Figure, file: Path, dpi: int = 120) -> Path:
    figure.savefig(file, dpi=dpi)
    return file
