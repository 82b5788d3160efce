"""TTS evaluation: synthesizes rows of an encoded dataset and measures the WER via ASR (paper 4.1.4)."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from torch import Tensor

from zipper.codecs.codec import Codec
from zipper.config import TASKS, RunConfig, SamplingConfig
from zipper.data.dataset import EncodedDataset, Row
from zipper.data.statistics import DatasetStatistics
from zipper.distributed import map_over_ranks
from zipper.evaluation.journal import Journal
from zipper.evaluation.result import (
    Origin,
    by_subset,
    chosen_rows,
    describe_run,
    finish_reasons,
    truncation_text,
)
from zipper.evaluation.scorer import AsrScorer
from zipper.evaluation.transcripts import Transcripts, transcribe_recordings
from zipper.evaluation.wer import WordErrors
from zipper.generation.generate import GenerationOutput
from zipper.generation.rows import generate_rows
from zipper.models.multimodal import MultimodalModel

BINS = 12  # maximum number of length bins


@dataclass(frozen=True)
class TtsUtterance:
    """Transcript of one synthesized sentence and its word errors.

    reference: text to synthesize (the paper's "gold"). hypothesis: ASR transcript of the generated speech.
    target: ASR transcript of the codec resynthesis of the recording. errors, target_errors: against reference
    and target. seconds: length of the generated speech. stopped: finish reason of decoding.
    """

    id: str
    errors: int
    words: int
    target_errors: int
    target_words: int
    seconds: float
    reference: str
    hypothesis: str
    target: str
    stopped: str

    def entry(self) -> dict[str, str | int | float]:
        """Entry of `per_utterance` in a result file."""
        return asdict(self)


@dataclass(frozen=True)
class SpeechScorer:
    """Codec and ASR scorer, which together score generated speech. build: folder of cached transcripts."""

    codec: Codec
    asr_scorer: AsrScorer
    build: str

    def wave(self, written: GenerationOutput) -> Tensor:
        """Waveform float32 [n] at the codec's sample rate; empty if no frame was generated."""
        return self.codec.decode(written.content)

    def recordings(self, dataset: EncodedDataset, rows: list[Row]) -> list[Transcripts]:
        return transcribe_recordings(self.build, dataset, self.codec, self.asr_scorer, rows)

    def score(
        self,
        rows: list[Row],
        written: list[GenerationOutput],
        recorded: list[Transcripts],
        kept: Journal | None = None,
        name: str = "speech",
    ) -> list[TtsUtterance]:
        """Scores segments against reference and resynthesis. name: key of the segments in `kept`."""
        out, rate = [], self.codec.sample_rate
        waves = [self.wave(segment) for segment in written]
        transcripts = self.asr_scorer.transcribe_waves(waves, rate, name, kept)
        parts = zip(rows, written, recorded, waves, transcripts, strict=True)
        for row, segment, record, wave, transcript in parts:
            errors = self.asr_scorer.errors(row["text"], transcript)
            target = self.asr_scorer.errors(record.target, transcript)
            out.append(
                TtsUtterance(
                    row["id"],
                    errors.errors,
                    errors.words,
                    target.errors,
                    target.words,
                    round(len(wave) / rate, 3),
                    row["text"],
                    transcript,
                    record.target,
                    segment.finish_reason,
                )
            )
        return out


def synthesize_rows(
    model: MultimodalModel,
    dataset: EncodedDataset,
    statistics: DatasetStatistics,
    rows: list[Row],
    speech_scorer: SpeechScorer,
    batch: int,
    sampling: SamplingConfig,
    seed: int,
    kept: Journal | None = None,
    name: str = "speech",
) -> list[tuple[GenerationOutput, TtsUtterance]]:
    """Synthesizes and scores every row, `batch` at a time. name: key of the scores in `kept`."""
    answered = generate_rows(
        model, dataset, statistics, rows, TASKS["tts"], batch, {"speech": sampling}, seed, kept, "tts"
    )
    written = [segment for (segment,) in answered]
    scores = speech_scorer.score(rows, written, speech_scorer.recordings(dataset, rows), kept, name)
    return list(zip(written, scores, strict=True))


def evaluate_tts(
    model: MultimodalModel,
    dataset: EncodedDataset,
    statistics: DatasetStatistics,
    cfg: RunConfig,
    origin: Origin,
    speech_scorer: SpeechScorer,
    kept: Journal | None = None,
) -> tuple[dict[str, Any], list[GenerationOutput]]:
    """Evaluates TTS on a split; returns the content of a result file, and the segments of the first sampling.

    The result holds the WER of the model vs reference (`wer`) and vs resynthesis (`target_wer`), and for
    context the WER of the recordings (`original_wer`) and of their codec resynthesis (`oracle_wer`).
    """
    rows, sampling = chosen_rows(dataset, cfg, "tts")[: cfg.evaluate.spoken], cfg.decode.speech
    recorded = map_over_ranks(rows, lambda some: speech_scorer.recordings(dataset, some))
    asr_scorer = speech_scorer.asr_scorer
    samplings, segments = [], []
    for turn in range(cfg.evaluate.samplings):
        work = partial(
            synthesize_rows,
            model,
            dataset,
            statistics,
            speech_scorer=speech_scorer,
            batch=cfg.evaluate.batch,
            sampling=sampling,
            seed=cfg.seed + turn,
            kept=kept,
            name=f"speech {turn}",
        )
        spoken = map_over_ranks(rows, work)
        segments.append([segment for segment, _ in spoken])
        samplings.append([one for _, one in spoken])
    found = samplings[0]
    errors = total_errors(found)
    target = sum((WordErrors(one.target_errors, one.target_words) for one in found), WordErrors())
    pairs = list(zip(rows, recorded, strict=True))
    original = sum(
        (asr_scorer.errors(row["text"], transcript.original) for row, transcript in pairs), WordErrors()
    )
    resynthesis = sum(
        (asr_scorer.errors(row["text"], transcript.target) for row, transcript in pairs), WordErrors()
    )
    result = {
        **describe_run(model, dataset, statistics, cfg, origin),
        "task": "tts",
        "split": cfg.evaluate.split,
        "wer": round(errors.rate, 6),
        "errors": errors.errors,
        "words": errors.words,
        "utterances": len(found),
        "target_wer": round(target.rate, 6),
        "oracle_wer": round(resynthesis.rate, 6),
        "original_wer": round(original.rate, 6),
        **finish_reasons([one.stopped for one in found]),
        "decoding": sampling.describe(),
        "judge": asr_scorer.name,
        "normaliser": asr_scorer.normaliser,
        "codec": speech_scorer.codec.fingerprint,
        "by_length": by_length(found),
    }
    if parts := by_subset(
        [(row, WordErrors(one.errors, one.words)) for row, one in zip(rows, found, strict=True)]
    ):
        result["by_subset"] = parts
    if len(samplings) > 1:
        rates = [total_errors(one).rate for one in samplings]
        best = [min(several, key=lambda one: one.errors) for several in zip(*samplings, strict=True)]
        result["samplings"] = {
            "wer": [round(rate, 6) for rate in rates],
            "mean": round(fmean(rates), 6),
            "deviation": round(stdev(rates), 6),
            # Differs from the paper, whose best of 3 is over runs of vocoder and ASR.
            "best_of_wer": round(total_errors(best).rate, 6),
        }
    return {**result, "per_utterance": [one.entry() for one in found]}, segments[0]


def total_errors(found: Iterable[TtsUtterance]) -> WordErrors:
    """Word errors of the corpus vs reference."""
    return sum((WordErrors(one.errors, one.words) for one in found), WordErrors())


def by_length(found: list[TtsUtterance]) -> list[dict[str, float]]:
    """WER by length of the reference in characters (paper, Figure 2).

    Each entry is a bin: maximum characters, utterances, wer of the bin, wer_up_to of all shorter sentences.
    """
    longest = max(len(one.reference) for one in found)
    width = max(10, 10 * -(-longest // (10 * BINS)))
    out, upto = [], WordErrors()
    for top in range(width, longest + width, width):
        inside = [one for one in found if top - width < len(one.reference) <= top]
        if inside:
            upto += total_errors(inside)
            out.append(
                {
                    "characters": top,
                    "utterances": len(inside),
                    "wer": round(total_errors(inside).rate, 6),
                    "wer_up_to": round(upto.rate, 6),
                }
            )
    return out


def summary_line(result: dict[str, Any], file: Path | str) -> str:
    """Summary line that a command prints."""
    return (
        f"TTS WER via ASR: {result['wer']:.1%} vs reference, {result['target_wer']:.1%} vs resynthesis "
        f"(recordings {result['original_wer']:.1%}, codec resynthesis {result['oracle_wer']:.1%}; "
        f"{result['utterances']} utterances, {truncation_text(result)}) -> {file}"
    ).replace("%", " %")
