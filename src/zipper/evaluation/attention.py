"""Cross-attention weights of a model on one document."""

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor

from zipper.data.documents import Document
from zipper.evaluation.plot_style import panels, styled
from zipper.generation.prompts import prompt_of
from zipper.generation.word_times import cross_attention
from zipper.generation.zipper import Zipper
from zipper.modalities.base import Modality
from zipper.models.multimodal import Pair
from zipper.models.zipper import ZipperModel


def diagonal(weights: Tensor) -> float:
    """Spearman's rank correlation between query position and mean attended position.

    weights: float [Tq, Tk], each row sums to 1. Monotonic attention gives 1. NaN if all rows attend to the
    same position.
    """
    centres = weights @ torch.arange(weights.shape[1], dtype=weights.dtype)
    return float(spearmanr(range(len(centres)), centres.numpy()).statistic)


@styled
def attention_map(
    model: ZipperModel, document: Document, pair: Pair, modalities: Mapping[str, Modality], title: str
) -> Figure:
    """Attention map of each zip of one direction, mean over heads.

    The modality with token labels (text) runs down and the other one right, whichever of them is the query.
    """
    found = cross_attention(model, document, pair)
    ids = {s.modality: s.tokens[:, 0].tolist() for s in document.segments}
    labels = {name: modalities[name].labels(ids[name]) for name in pair}
    down = next((name for name in pair if labels[name]), pair[0])
    across = next(name for name in pair if name != down)
    is_query = down == pair[0]
    named = labels[down] or [str(i) for i in ids[down]]
    # A query row predicts the next token; a key row holds its own token.
    rows = named[1:] if is_query else named
    used = [weights[: len(rows)] if is_query else weights for weights in found]
    seconds = found[0].shape[1 if is_query else 0] / model.rates[across]
    figure, axes = panels(1, len(found), (4.2, 1.3 + 0.22 * len(rows)))
    for stage, (panel, weights) in enumerate(zip(axes, used, strict=True)):
        panel.imshow(
            weights if is_query else weights.T[: len(rows)], aspect="auto", interpolation="nearest",
            extent=(0, seconds, len(rows) - 0.5, -0.5),
        )  # fmt: skip
        panel.set(
            title=f"zip {stage + 1}: {pair[0]} attends to {pair[1]} ($\\rho$ = {diagonal(weights):.2f})",
            xlabel=f"seconds of {across}",
        )
        panel.set_yticks(range(len(rows)), rows if stage == 0 else [""] * len(rows))
        panel.grid(visible=False)
    figure.suptitle(title, parse_math=False)
    return figure


@styled
def listening_picture(model: Zipper, wave: Tensor, text: str) -> Figure:
    """Log-mel spectrogram of a recording float32 [n] with the words of its transcript, above the frames to
    which each of them attends (mean over zips and heads)."""
    spoken, written = model.encode("speech", wave), model.encode("text", text)
    network, words = model.network, model.transcribe_words(wave, text)
    assert isinstance(network, ZipperModel)
    weights = torch.stack(cross_attention(network, prompt_of("0", spoken, written), ("text", "speech"))).mean(
        0
    )
    labels = model.modalities["text"].labels(written.tokens[1:-1, 0].tolist()) or []
    seconds, rows = len(wave) / model.sample_rate, len(labels)
    figure = Figure(figsize=(5.2, 2.2 + 0.18 * rows), dpi=180, layout="constrained")  # legible on a phone
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, max(2.0, 0.24 * rows)])
    above.specgram(wave.numpy() + 1e-7, NFFT=400, Fs=model.sample_rate, noverlap=240, vmin=-110)
    above.set(ylabel="Hz", ylim=(0, min(8000, model.sample_rate / 2)), xlim=(0, seconds))
    for word in words:
        above.axvline(word.start, color="white", linewidth=0.8, alpha=0.8)
        at = ((word.start + word.end) / 2, 1.02)
        above.annotate(
            word.text, at, xycoords=("data", "axes fraction"), ha="left", va="bottom", fontsize=8, rotation=35
        )
    frames = weights.shape[1] / network.rates["speech"]
    below.imshow(weights[:rows], aspect="auto", interpolation="nearest", extent=(0, frames, rows - 0.5, -0.5))
    below.set(xlabel="seconds", xlim=(0, seconds))
    below.set_yticks(range(rows), [label.replace("\u2581", "") for label in labels])
    for panel in (above, below):
        panel.grid(visible=False)
    return figure
