"""Figures of a run, as PNG: learning curve, gates over steps, where the zips look in one test utterance."""

from pathlib import Path
from typing import Any

import torch
import torchaudio
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from zipper.data.batch import collate
from zipper.data.document import document
from zipper.model.multimodal import MultimodalModel, Pair
from zipper.model.tower import KeyValue
from zipper.model.zip_block import When, ZipBlock
from zipper.model.zipper import Zipper
from zipper.report.metrics import Series, read_metrics, smooth
from zipper.units.store import Row, Store


def draw_run(
    run: Path, model: MultimodalModel, store: Store, row: Row, results: dict[str, Any]
) -> list[Path]:
    """All figures of a run into run/figures. row: whose attention is shown. results: by task."""
    folder = run / "figures"
    folder.mkdir(exist_ok=True)
    metrics = read_metrics(run)
    train = next(iter(results.values()))["config"]["train"]
    harder = bool(train["codebook_weights"] or train["hide"])
    files = [learning_curve(metrics, folder / "learning-curve.png", harder)]
    if gates := {name: series for name, series in metrics.items() if name.startswith("gate/")}:
        files.append(gate_curves(gates, folder / "gates.png"))
    if isinstance(model, Zipper):
        files += [
            attention_map(model, store, row, pair, folder / f"attention-{'-'.join(pair)}.png")
            for pair in model.zipped
            if set(pair) == {"text", "speech"}
        ]
    if "tts" in results:
        files.append(wer_by_length(results["tts"], folder / "wer-by-length.png"))
    return files


def learning_curve(metrics: dict[str, Series], file: Path, harder: bool) -> Path:
    """Loss of training and dev over the steps, the WER on dev of what the run learns, and the gradient's norm
    with its spikes. harder: the training's loss weighs codebooks or hides spans, and dev's does not."""
    tasks = {"recognition": "dev/asr_wer", "speech, heard by the judge": "dev/tts_wer"}
    shown = {label: metrics[name] for label, name in tasks.items() if name in metrics}
    norms = {name: metrics.get(f"train/grad_norm{name}", []) for name in ("", "_max")}
    count = 1 + bool(shown) + bool(norms[""])
    figure = Figure(figsize=(5 * count, 4), layout="constrained")
    panels = figure.subplots(1, count, squeeze=False)[0]
    train = metrics.get("train/loss", [])
    panels[0].plot(
        *_columns(metrics.get("train/loss_max", [])), ".", color="0.6", markersize=3, label="largest"
    )
    panels[0].plot(*_columns(train), color="0.8", linewidth=0.8)
    panels[0].plot(*_columns(smooth(train)), color="tab:blue", label="train (mean of 10 points)")
    on_dev = "dev, codebooks alike, nothing hidden" if harder else "dev"
    panels[0].plot(*_columns(metrics.get("dev/loss", [])), "o-", color="tab:orange", label=on_dev)
    panels[0].set(xlabel="step", ylabel="loss (nats a scored token)", ylim=(0, None))
    panels[0].legend()
    for label, series in shown.items():
        steps, rates = _columns(series)
        panels[1].plot(steps, [100 * rate for rate in rates], "o-", label=label)
    if shown:  # limits last: once set, they do not grow with the next series
        panels[1].set(xlabel="step", ylabel="dev WER (%)", ylim=(0, None))
        panels[1].legend()
    if norms[""]:
        panels[-1].plot(*_columns(norms["_max"]), ".", color="0.6", markersize=3, label="largest in between")
        panels[-1].plot(*_columns(smooth(norms[""])), label="mean of 10 points")
        panels[-1].set(xlabel="step", ylabel="norm of the gradient", yscale="log")
        panels[-1].legend()
    for panel in panels:
        panel.grid(alpha=0.3)
    return _save(figure, file)


def gate_curves(gates: dict[str, Series], file: Path) -> Path:
    """tanh of every trained gate over the steps: those of attention, feed-forward and input projections."""
    kinds = {"attention_gate": "zips, attention: tanh(a)", "feed_forward_gate": "zips, feed-forward: tanh(b)"}
    groups: dict[str, dict[str, Series]] = {}
    for name, series in gates.items():
        kind = kinds.get(name.rsplit(".", 1)[-1], "input projections")
        label = name.removeprefix("gate/").rsplit(".", 1)[0]
        groups.setdefault(kind, {})[label] = series
    figure = Figure(figsize=(4.5 * len(groups), 4), layout="constrained")
    for panel, (kind, lines) in zip(
        figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True
    ):
        for label, series in lines.items():
            panel.plot(*_columns(series), label=label)
        panel.axhline(0, color="0.7", linewidth=0.8)
        panel.set(title=kind, xlabel="step")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    return _save(figure, file)


def attention_map(model: Zipper, store: Store, row: Row, pair: Pair, file: Path) -> Path:
    """Where each zip of one direction looks for the token that comes next, mean over heads: text downwards,
    seconds of speech to the right, whichever of the two asks."""
    asks_text = pair[0] == "text"
    maps = cross_attention(model, store, row, pair)
    maps = maps if asks_text else [weights.T for weights in maps]
    words = store.subwords
    said = [*(words.piece(i) for i in row["ids"]), words.piece(words.end)]
    # A row that asks is about the subword to come; one that is asked, about the subword that it is.
    rows = said if asks_text else [words.piece(words.begin), *said]
    seconds = maps[0].shape[1] / store.facts["frame_rate"]
    figure = Figure(figsize=(4.5 * len(maps), 1.5 + 0.28 * len(rows)), layout="constrained")
    panel: Axes
    for stage, (panel, weights) in enumerate(
        zip(figure.subplots(1, len(maps), squeeze=False)[0], maps, strict=True)
    ):
        panel.imshow(
            weights[: len(rows)], aspect="auto", cmap="magma", interpolation="nearest",
            extent=(0, seconds, len(rows) - 0.5, -0.5),
        )  # fmt: skip
        panel.set(title=f"zip {stage + 1}: {pair[0]} looks at {pair[1]}", xlabel="seconds of speech")
        panel.set_yticks(range(len(rows)), rows if stage == 0 else [""] * len(rows))
    figure.suptitle(f"{row['id']}: {row['text']}", fontsize="medium")
    return _save(figure, file)


@torch.no_grad()
def cross_attention(model: Zipper, store: Store, row: Row, pair: Pair) -> list[Tensor]:
    """Weights [Tq, Tk] of each stage's zip of one direction, mean over heads, the document being given."""
    found: list[Tensor] = []

    def keep(block: ZipBlock, inputs: tuple[Tensor, When, KeyValue, Tensor], _: Tensor) -> None:
        found.append(block.weights(*inputs).mean(1)[0].cpu())

    hooks = [model.zip(stage, *pair).register_forward_hook(keep) for stage in range(model.stages)]
    try:
        device = next(model.parameters()).device
        batch = collate(
            [document(store, row, "asr" if pair[0] == "text" else "tts", 0.0)],
            {name: model.cfg.towers[name].codebooks for name in model.names},
        )
        model.eval()(batch.on(device))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def wer_by_length(result: dict[str, Any], file: Path) -> Path:
    """WER of speech by the length of what was to be said (paper, figure 2): up to a length, and in bins."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    up_to, bins = figure.subplots(1, 2, sharey=True)
    lengths = [one["characters"] for one in result["by_length"]]
    up_to.plot(lengths, [100 * one["wer_up_to"] for one in result["by_length"]], "o-")
    up_to.axhline(100 * result["oracle_wer"], color="0.5", linestyle="--", label="oracle: codec round trip")
    up_to.set(xlabel="characters of the transcript, at most", ylabel="WER (%)", ylim=(0, None))
    up_to.legend()
    drawn = bins.bar(range(len(lengths)), [100 * one["wer"] for one in result["by_length"]])
    bins.bar_label(drawn, [str(one["utterances"]) for one in result["by_length"]], fontsize="small")
    bins.set_xticks(range(len(lengths)), [f"to {length}" for length in lengths])
    bins.set(xlabel="characters of the transcript (above each bar: sentences)")
    for panel in (up_to, bins):
        panel.grid(alpha=0.3)
    return _save(figure, file)


def spectrograms(waves: dict[str, Tensor], sample_rate: int, title: str, file: Path) -> Path:
    """Log-mel spectrograms of waves float32 [n] below each other, on one scale."""
    mel = torchaudio.transforms.MelSpectrogram(sample_rate, n_fft=512, hop_length=128, n_mels=64)
    figure = Figure(figsize=(9, 1.6 * len(waves)), layout="constrained")
    panels = figure.subplots(len(waves), 1, squeeze=False, sharex=True)[:, 0]
    for panel, (name, wave) in zip(panels, waves.items(), strict=True):
        picture = (mel(wave) + 1e-6).log10()
        panel.imshow(
            picture, aspect="auto", origin="lower", cmap="magma", vmin=-5, vmax=1,
            extent=(0, len(wave) / sample_rate, 0, 64),
        )  # fmt: skip
        panel.set(ylabel=name)
        panel.set_yticks([])
    panels[-1].set(xlabel="seconds")
    figure.suptitle(title, fontsize="medium", parse_math=False)  # a judge may write two dollars
    return _save(figure, file)


def _columns(series: Series) -> tuple[list[int], list[float]]:
    return [step for step, _ in series], [value for _, value in series]


def _save(figure: Figure, file: Path) -> Path:
    figure.savefig(file, dpi=120)
    return file
