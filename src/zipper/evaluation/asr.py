"""ASR evaluation: transcribes rows of an encoded dataset and counts word errors."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from zipper.config import TASKS, RunConfig, SamplingConfig
from zipper.data.dataset import EncodedDataset, Row
from zipper.data.statistics import DatasetStatistics
from zipper.distributed import map_over_ranks
from zipper.evaluation.journal import Journal
from zipper.evaluation.result import Origin, by_subset, chosen_rows, describe_run, finish_reasons
from zipper.evaluation.wer import WordErrors, word_errors
from zipper.generation.generate import GREEDY, GenerationOutput
from zipper.generation.rows import generate_rows
from zipper.modalities.normalise import normalise
from zipper.models.multimodal import MultimodalModel


@dataclass(frozen=True)
class AsrUtterance:
    """Hypothesis of one utterance, its word errors, and the finish reason of decoding."""

    id: str
    errors: int
    words: int
    seconds: float
    reference: str
    hypothesis: str
    stopped: str

    @property
    def counts(self) -> WordErrors:
        return WordErrors(self.errors, self.words)

    def entry(self) -> dict[str, str | int | float]:
        """Entry of `per_utterance` in a result file."""
        return asdict(self)


def transcribe_rows(
    model: MultimodalModel,
    dataset: EncodedDataset,
    statistics: DatasetStatistics,
    rows: list[Row],
    batch: int,
    sampling: SamplingConfig = GREEDY,
    audio_rows: list[Row] | None = None,
    kept: Journal | None = None,
) -> list[AsrUtterance]:
    """Transcribes every row, in order, `batch` utterances at a time.

    audio_rows: rows whose audio replaces that of `rows` (mismatched-audio control). kept: journal that stores
    finished batches.
    """
    name = "shuffled" if audio_rows else "asr"
    written = generate_rows(
        model,
        dataset,
        statistics,
        audio_rows or rows,
        TASKS["asr"],
        batch,
        {"text": sampling},
        journal=kept,
        name=name,
    )
    return score_transcripts(dataset, rows, [segment for (segment,) in written])


def score_transcripts(
    dataset: EncodedDataset, rows: list[Row], written: list[GenerationOutput]
) -> list[AsrUtterance]:
    """Scores the generated text of each row against the row's reference."""
    out = []
    for row, segment in zip(rows, written, strict=True):
        hypothesis = normalise(dataset.tokenizer.decode(segment.content[0].tolist()))
        errors = word_errors(row["text"], hypothesis)
        seconds = round(row["seconds"], 3)
        out.append(
            AsrUtterance(
                row["id"],
                errors.errors,
                errors.words,
                seconds,
                row["text"],
                hypothesis,
                segment.finish_reason,
            )
        )
    return out


def evaluate_asr(
    model: MultimodalModel,
    dataset: EncodedDataset,
    statistics: DatasetStatistics,
    cfg: RunConfig,
    origin: Origin,
    kept: Journal,
) -> dict[str, Any]:
    """Evaluates ASR on a split; returns the content of a result file."""
    rows, sampling, batch = chosen_rows(dataset, cfg, "asr"), cfg.decode.text, cfg.evaluate.batch

    def transcribe(some: list[Row]) -> list[AsrUtterance]:
        return transcribe_rows(model, dataset, statistics, some, batch, sampling, kept=kept)

    found = map_over_ranks(rows, transcribe)
    counts = total_errors(found)
    result = {
        **describe_run(model, dataset, statistics, cfg, origin),
        "task": "asr",
        "split": cfg.evaluate.split,
        "wer": round(counts.rate, 6),
        "errors": counts.errors,
        "words": counts.words,
        "utterances": len(found),
        **finish_reasons([one.stopped for one in found]),
        "decoding": sampling.describe(),
        "normaliser": dataset.info["fingerprint"]["normaliser"],
    }
    if parts := by_subset([(row, one.counts) for row, one in zip(rows, found, strict=True)]):
        result["by_subset"] = parts
    if cfg.evaluate.shuffled:

        def mismatched(pairs: list[tuple[Row, Row]]) -> list[AsrUtterance]:
            own, other = [row for row, _ in pairs], [row for _, row in pairs]
            return transcribe_rows(model, dataset, statistics, own, batch, sampling, other, kept)

        control = map_over_ranks(list(zip(rows, mismatched_rows(rows), strict=True)), mismatched)
        result["shuffled_wer"] = round(total_errors(control).rate, 6)
    return {**result, "per_utterance": [one.entry() for one in found]}


def summary_line(result: dict[str, Any], file: Path | str) -> str:
    """Summary line that a command prints."""
    control = f"; mismatched audio {result['shuffled_wer']:.0%}" if "shuffled_wer" in result else ""
    return (
        f"ASR WER {result['wer']:.1%} ({result['errors']} errors, {result['words']} words, "
        f"{result['utterances']} utterances{control}) -> {file}"
    ).replace("%", " %")


def total_errors(found: Iterable[AsrUtterance]) -> WordErrors:
    """Word errors of the corpus."""
    return sum((r.counts for r in found), WordErrors())


def mismatched_rows(rows: list[Row], seed: int = 0) -> list[Row]:
    """Permutation of rows in which no row keeps its place, for the mismatched-audio control."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    out: list[Row | None] = [None] * len(rows)
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        out[here] = rows[there]
    return [row for row in out if row is not None]
