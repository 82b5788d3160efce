"""When the words of a transcript were said: the frames to which text attends in the zips."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipper.data.batches import collate
from zipper.data.documents import Document, Segment
from zipper.data.statistics import DatasetStatistics
from zipper.errors import ConfigError
from zipper.generation.prompts import prompt_of
from zipper.modalities.base import Modality
from zipper.modalities.layout import TokenLayout
from zipper.models.multimodal import MultimodalModel, Pair
from zipper.models.zipper import ZipperModel, recorded_attention

BLOCK = 0.02  # seconds whose power is measured
SILENT = 0.03  # of the loudest block: amplitude of the silence around a sentence
LEAST = 1e-3  # added to attention weights, so that one of 0 excludes nothing
DURATION = 3.0  # weight of the squared log ratio of a token's duration to the expected one
UNTRAINED = "Word times are where zips look, and those of this model were not trained to recognise speech."
NO_ZIPS = "Word times are where zips look, and this model has none (a Single Decoder)."


class Word(NamedTuple):
    """A word of a transcript, and its start and end in a recording, in seconds."""

    text: str
    start: float
    end: float


@torch.no_grad()
def cross_attention(model: ZipperModel, document: Document, pair: Pair) -> list[Tensor]:
    """Attention weights of one direction with teacher forcing: float [Tq, Tk] per zip, mean over heads."""
    batch = collate([document], model.cfg.codebooks)
    with recorded_attention(model.eval(), *pair) as found:
        model(batch.on(next(model.parameters()).device))
    return [weights[0].cpu() for weights in found]


def word_times(
    model: MultimodalModel,
    modalities: Mapping[str, Modality],
    statistics: DatasetStatistics,
    wave: Tensor,
    spoken: Segment,
    written: Segment,
) -> list[Word]:
    """Words of a transcript with their times. wave: float32 [n] of the segment `spoken`; written: its
    transcript.

    Each token gets a run of frames, in order, such that the attention on them (mean over zips and heads) and
    the expected durations fit best; together they cover the sound from the end of the silence before it to
    the beginning of the silence after it.

    Raises ConfigError if the model has no zips, or was not trained to recognise speech.
    """
    if not isinstance(model, ZipperModel):
        raise ConfigError(NO_ZIPS)
    if ("text", "speech") not in model.used:
        raise ConfigError(UNTRAINED)
    ids = written.tokens[1:-1, 0].tolist()
    labels = modalities["text"].labels(ids)
    assert labels is not None
    maps = cross_attention(model, prompt_of("0", spoken, written), ("text", "speech"))
    frames = TokenLayout.of(model.cfg.towers["speech"]).content(spoken.tokens).shape[1]
    # The query at BOS predicts the first token, and the first frame's key follows that of BOS.
    attention = torch.stack(maps).mean(0)[: len(ids), 1 : 1 + frames]
    rate, seconds = model.rates["speech"], statistics.seconds.get("text", [])
    first, last = _sounding(wave, modalities["speech"].sample_rate or 1)
    start = min(int(first * rate), max(0, frames - len(ids)))
    end = min(max(math.ceil(last * rate), start + len(ids)), frames)
    expected = [rate * (seconds[i] if seconds else 1 / model.rates["text"]) for i in ids]
    scores = (attention[:, start:end] + LEAST).log().double().numpy()
    cuts = [round((start + cut) / rate, 2) for cut in monotonic(scores, np.array(expected)).tolist()]
    words: list[Word] = []
    for label, begin, finish in zip(labels, cuts, cuts[1:], strict=False):
        part = label.lstrip("\u2581 ")
        if label != part or not words:
            words.append(Word(part, begin, finish))
        else:
            words[-1] = Word(words[-1].text + part, words[-1].start, finish)
    return words


def monotonic(scores: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Boundaries int64 [N + 1], from 0 to F, of the N runs of frames, one a token, of the largest sum.

    The sum is of scores float [N, F] of each frame in its token's run, less DURATION times the squared log
    ratio of each run's frames to `expected` [N], by dynamic programming. A run has at least one frame, unless
    there are more tokens than frames: then the first tokens have one each, and the rest none.
    """
    count, frames = scores.shape
    if frames <= count:
        return np.minimum(np.arange(count + 1), frames)
    lengths = np.arange(frames + 1)[:, None] - np.arange(frames + 1)[None]  # [end, start]
    logs = np.log(np.maximum(lengths, 1))
    best = np.where(np.arange(frames + 1) == 0, 0.0, -np.inf)  # by the end of the tokens so far
    origins = np.zeros((count, frames + 1), dtype=np.int64)
    for token in range(count):
        total = np.concatenate([[0.0], scores[token].cumsum()])
        penalty = DURATION * (logs - np.log(max(expected[token], 1e-6))) ** 2
        sums = np.where(lengths > 0, best - total - penalty, -np.inf)
        origins[token] = sums.argmax(1)
        best = sums.max(1) + total
    cuts = [frames]
    for token in reversed(range(count)):
        cuts.append(int(origins[token, cuts[-1]]))
    return np.array(cuts[::-1])


def loudness(wave: Tensor, block: int) -> Tensor:
    """Amplitude (RMS beside the mean) of each whole block of a waveform float32 [n]: [n // block]"""
    count = len(wave) // block
    return wave[: count * block].view(count, block).std(1, correction=0)


def _sounding(wave: Tensor, sample_rate: int) -> tuple[float, float]:
    """Seconds from which and to which a waveform float32 [n] is louder than SILENT of its loudest block."""
    loud = loudness(wave, round(BLOCK * sample_rate))
    above = (loud > SILENT * loud.max()).nonzero() if len(loud) else torch.zeros(0)
    if not len(above):
        return 0.0, len(wave) / sample_rate
    return int(above[0]) * BLOCK, (int(above[-1]) + 1) * BLOCK
