"""`zipper bench-live`: speech while it is generated, words while they are said, and word times.

The recordings are test sentences of the synthetic corpus, whose word times the voice knows: its durations of
phonemes.
"""

import argparse
import itertools
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import jiwer
import numpy as np
import torch
import torchaudio.functional as AF
from torch import Tensor

from reproduce.bench.record import peak_mb, write_record
from zipper.config import DataConfig, load_config
from zipper.corpora.spoken import VOICE_RATE, drawn_voice, edges, recipe_hash, spoken_texts
from zipper.corpora.utterance import Utterance
from zipper.generation import word_times
from zipper.generation.word_times import Word
from zipper.generation.zipper import Zipper

CONFIG = Path("configs/asr.yaml")
DURATIONS = "/Clip_output_0"  # frames of each phoneme, in the graph of the voice
PAUSES = (0.5, 1.0)  # seconds between sentences
PIECE, WARM = 0.1, 120.0  # seconds: of a piece from the microphone; after which memory should not grow
TURNS = 5


class Spoken(NamedTuple):
    """Sentence of the voice: waveform float32 [n], and its words."""

    wave: Tensor
    words: list[Word]

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


def run(args: argparse.Namespace) -> None:
    """Measure, print the figures, and write them to args.out."""
    torch.set_num_threads(args.threads)
    model, cfg = Zipper.from_pretrained(args.model), load_config(CONFIG)
    spoken = [*itertools.islice(sentences(cfg.data, model.sample_rate), args.sentences)]
    parts: dict[str, Any] = {"sentences": len(spoken)}
    for name, measure in {"speaking": speaking, "word_times": timed, "listening": listening}.items():
        parts[name] = measure(model, spoken, args)
        print(name, parts[name], flush=True)
    data = {"corpus": f"spoken {recipe_hash(cfg.data)}", "split": "test"}
    settings = {"threads": args.threads, "model": args.model.name, "data_fingerprint": data}
    write_record("bench-live", args.line, {**settings, **parts}, args.out, cfg=cfg)


def sentences(cfg: DataConfig, sample_rate: int) -> Iterator[Spoken]:
    """Test sentences as the corpus has them, with the times of their words."""
    import onnx
    from hibari import Hibari

    voice = Hibari()
    graph = onnx.load(voice.model_path)
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(DURATIONS))
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(graph, f"{folder}/voice.onnx")
        telling = Hibari(model=f"{folder}/voice.onnx")
    for i, text in enumerate(spoken_texts(cfg)["test"]):
        utterance = Utterance(f"test-{i:05d}", None, text, "", "test", "")
        pitch, speed, noise = drawn_voice(utterance, cfg.seed, cfg.rates)
        wave = voice(text + ".", speed=speed, seed=noise)
        start, end = edges(wave)
        (phonemes,) = telling.phonemize(text + ".")
        feed = {"ids": np.array([telling.ids(phonemes)]), "speed": np.array([speed], np.float32)}
        [frames] = telling.sess.run([DURATIONS], feed)
        ends = frames.reshape(-1).cumsum() * len(wave) / frames.sum()  # samples; a pad comes first and last
        bounds = [(ends[k], ends[k + 1], symbol) for k, symbol in enumerate(phonemes)]
        runs = [[*run] for is_word, run in itertools.groupby(bounds, lambda b: b[2] not in " .") if is_word]
        scale = 1 / (VOICE_RATE * pitch)
        times = [((run[0][0] - start) * scale, (run[-1][1] - start) * scale) for run in runs]
        played = AF.resample(torch.from_numpy(wave[start:end]), round(VOICE_RATE * pitch), sample_rate)
        yield Spoken(played, [Word(word, *at) for word, at in zip(text.split(), times, strict=True)])


def speaking(model: Zipper, spoken: list[Spoken], args: argparse.Namespace) -> dict[str, float]:
    """Seconds from the call to the first sound, and real-time factor of the whole stream."""
    first, factors = [], []
    for one in spoken[: args.speaking] * TURNS:
        started, length = time.perf_counter(), 0
        for piece in model.stream(one.text):
            first += [] if length else [time.perf_counter() - started]
            length += len(piece)
        factors.append((time.perf_counter() - started) / (length / model.sample_rate))
    return {**_quantiles("first_sound", first), **_quantiles("real_time_factor", factors)}


def timed(model: Zipper, spoken: list[Spoken], args: argparse.Namespace) -> dict[str, float]:
    """Absolute errors of starts and ends in seconds, where the transcript is right; and by expected durations
    alone, as if attention were flat."""
    found: dict[str, float] = {}
    for name, attention in {"": word_times.cross_attention, "durations_alone_": _flat}.items():
        starts, ends = [], []
        with patch.object(word_times, "cross_attention", attention):
            for one in spoken:
                words = model.transcribe_words(one.wave, one.text)
                starts += [abs(a.start - b.start) for a, b in zip(words, one.words, strict=True)]
                ends += [abs(a.end - b.end) for a, b in zip(words, one.words, strict=True)]
        found |= {**_quantiles(f"{name}start_error", starts), **_quantiles(f"{name}end_error", ends)}
    return {"words": len(starts), **found}


def _flat(*given: Any) -> list[Tensor]:
    return [torch.ones_like(one) for one in _ATTENTION(*given)]


_ATTENTION = word_times.cross_attention


def listening(model: Zipper, spoken: list[Spoken], args: argparse.Namespace) -> dict[str, float]:
    """The sentences, again and again with pauses, as sound that arrives in real time for args.minutes.

    A word's delay is the time from its end to its commitment, with what the computation took.
    """
    draw, stream, words, at = random.Random(0), [], list[Word](), 0.0
    for one in itertools.cycle(spoken):
        if at > args.minutes * 60:
            break
        pause = torch.zeros(round(draw.uniform(*PAUSES) * model.sample_rate))
        stream += [one.wave, pause]
        words += [Word(word.text, at + word.start, at + word.end) for word in one.words]
        at += (len(one.wave) + len(pause)) / model.sample_rate
    live = model.live_transcript()
    committed, clock, busy, warm, buffer = [], 0.0, 0.0, 0.0, 0
    for i, piece in enumerate(torch.cat(stream).split(round(PIECE * model.sample_rate))):
        arrived, started = (i + 1) * PIECE, time.perf_counter()
        found = live.feed(piece)
        took = time.perf_counter() - started
        clock, busy = max(clock, arrived) + took, busy + took
        committed += [(word.text, clock) for word in found]
        buffer = max(buffer, len(live.sound) + len(live.coming))
        warm = warm or (peak_mb() if arrived > WARM else 0.0)
    committed += [(word.text, clock) for word in live.finish()]
    reference, heard = " ".join(word.text for word in words), " ".join(word for word, _ in committed)
    aligned = jiwer.process_words(reference, heard)
    pairs = [
        (words[chunk.ref_start_idx + k], committed[chunk.hyp_start_idx + k][1])
        for chunk in aligned.alignments[0]
        if chunk.type == "equal"
        for k in range(chunk.ref_end_idx - chunk.ref_start_idx)
    ]
    whole = [model.transcribe(one.wave) for one in spoken]
    return {
        **_quantiles("delay", [clock - word.end for word, clock in pairs]),
        "wer": round(aligned.wer, 4),
        "offline_wer": round(jiwer.wer([one.text for one in spoken], whole), 4),
        "real_time_factor": round(busy / at, 3),
        "minutes": round(at / 60, 1),
        "buffer_seconds": round(buffer / model.sample_rate, 1),
        "memory_growth_mb": round(peak_mb() - warm, 1),
    }


def _quantiles(name: str, values: list[float]) -> dict[str, float]:
    at = {"p50": 0.5, "p95": 0.95}
    return {f"{name}_{key}": round(float(np.quantile(values, q)), 3) for key, q in at.items()}
