"""Evaluation of a task or a chain: generates the answers of a split and scores the last modality."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import cast

import torch

from zipper.config import RunConfig, SamplingConfig, modalities_of
from zipper.data.dataset import EncodedDataset, Row
from zipper.data.documents import Document, segment
from zipper.data.statistics import DatasetStatistics
from zipper.distributed import map_over_ranks
from zipper.evaluation.result import (
    Origin,
    by_column,
    by_length,
    chosen_rows,
    describe_run,
    error_rate,
    finish_reasons,
    truncation_text,
)
from zipper.evaluation.result_file import Result, UtteranceResult
from zipper.generation.generate import GenerationOutput, generate
from zipper.generation.rows import generate_rows
from zipper.modalities.scoring import Journal, Score, Scorer, total_errors
from zipper.models.multimodal import MultimodalModel

Answer = tuple[list[GenerationOutput], Score]  # generated segments of a row, and the score of the last


def answer_rows(
    model: MultimodalModel,
    dataset: EncodedDataset,
    statistics: DatasetStatistics,
    scorer: Scorer,
    rows: list[Row],
    order: Sequence[str],
    batch: int,
    decode: dict[str, SamplingConfig] | None = None,
    seed: int = 0,
    kept: Journal | None = None,
    name: str = "",
    prompts: list[Row] | None = None,
) -> list[Answer]:
    """Generates `order[1:]` for every row, `batch` at a time, and scores the last segment.

    scorer: of modality `order[-1]`. prompts: rows whose prompt replaces that of `rows` (mismatched control).
    kept: journal that stores finished work under `name`.
    """
    written = generate_rows(
        model, dataset, statistics, prompts or rows, order, batch, decode, seed, kept, name
    )
    last = [segments[-1] for segments in written]
    scores = scorer.score(rows, last, dataset.fingerprint, kept, f"{name} scores")
    return list(zip(written, scores, strict=True))


def evaluate_task(
    task: str,
    model: MultimodalModel,
    dataset: EncodedDataset,
    statistics: DatasetStatistics,
    cfg: RunConfig,
    origin: Origin,
    scorer: Scorer,
    kept: Journal | None = None,
) -> tuple[Result, list[GenerationOutput]]:
    """Evaluates a task on a split; returns the content of a result file, and the segments of the first
    sampling."""
    order, how = modalities_of(task), cfg.decode[modalities_of(task)[-1]]
    rows = chosen_rows(dataset, cfg, task)[: cfg.evaluate.spoken if scorer.costly else None]
    answer = partial(
        answer_rows, model, dataset, statistics, scorer, order=order, batch=cfg.evaluate.batch,
        decode=cfg.decode, kept=kept,
    )  # fmt: skip
    samplings = []
    for turn in range(cfg.evaluate.samplings if how.temperature else 1):
        work = partial(answer, seed=cfg.seed + turn, name=f"{task} {turn}")
        samplings.append(map_over_ranks(rows, work))
    found = [score for _, score in samplings[0]]
    result: Result = {
        **describe_run(task, model, dataset, statistics, cfg, origin),
        **error_rate([one.counts for one in found]),
        **finish_reasons([one.stopped for one in found]),
        "decoding": how.describe(),
        "normaliser": dataset.info["fingerprint"]["normaliser"],
    }
    result |= cast(Result, {**scorer.identity, **scorer.describe(rows, found, dataset.fingerprint)})
    counts = [(row, one.counts) for row, one in zip(rows, found, strict=True)]
    if parts := by_column("subset", counts):
        result["by_subset"] = parts
    if parts := by_column("speaker", counts):
        result["by_speaker"] = parts
    result["by_length"] = by_length(found)
    pairs = mismatched_pairs(rows)
    if cfg.evaluate.mismatched and pairs and not scorer.costly:

        def mismatched(pairs: list[tuple[Row, Row]]) -> list[Answer]:
            own, other = [row for row, _ in pairs], [row for _, row in pairs]
            return answer(own, seed=cfg.seed, name=f"{task} mismatched", prompts=other)

        control = map_over_ranks(pairs, mismatched)
        result["mismatched_wer"] = round(total_errors(score for _, score in control).rate, 6)
    if len(samplings) > 1:
        several = [[score for _, score in one] for one in samplings]
        rates = [total_errors(one).rate for one in several]
        best = [min(each, key=lambda one: one.errors) for each in zip(*several, strict=True)]
        result["samplings"] = {
            "wer": [round(rate, 6) for rate in rates],
            "mean": round(fmean(rates), 6),
            "deviation": round(stdev(rates), 6),
            # Differs from the paper, whose best of 3 is over runs of vocoder and ASR.
            "best_of_wer": round(total_errors(best).rate, 6),
        }
    result["per_utterance"] = entries(rows, found)
    return result, [segments[-1] for segments, _ in samplings[0]]


def evaluate_chain(
    chain: str,
    model: MultimodalModel,
    dataset: EncodedDataset,
    statistics: DatasetStatistics,
    cfg: RunConfig,
    origin: Origin,
    scorer: Scorer,
    kept: Journal | None = None,
) -> Result:
    """Evaluates a chain of three or more modalities, such as speech>text>speech: the first is the prompt,
    each other is generated from the one before it, and the last is scored. Returns the content of a
    result file.

    reread_wer: if the last modality is generated from a waveform, also the score from the decoded waveform,
    encoded again.
    """
    order, batch = modalities_of(chain), cfg.evaluate.batch
    rows = chosen_rows(dataset, cfg, chain)[: cfg.evaluate.spoken]
    work = partial(
        answer_rows, model, dataset, statistics, scorer, order=order, batch=batch, decode=cfg.decode,
        seed=cfg.seed, kept=kept, name=chain,
    )  # fmt: skip
    answers = map_over_ranks(rows, work)
    found = [score for _, score in answers]
    ended = sum(all(one.finish_reason == "stop" for one in segments) for segments, _ in answers)
    result: Result = {
        **describe_run(chain, model, dataset, statistics, cfg, origin),
        **error_rate([one.counts for one in found]),
        **finish_reasons([one.stopped for one in found]),
        "share_ended": ended / len(rows),
        "decoding": {name: cfg.decode[name].describe() for name in dict.fromkeys(order[1:])},
        "normaliser": dataset.info["fingerprint"]["normaliser"],
    }
    result |= cast(Result, scorer.identity)
    if dataset.modalities[order[-2]].sample_rate and not scorer.costly:

        def again(pairs: list[tuple[Row, list[GenerationOutput]]]) -> list[Score]:
            parts = [pairs[start : start + batch] for start in range(0, len(pairs), batch)]
            read = [one for part in parts for one in from_decoded(model, dataset, cfg, statistics, part)]
            return scorer.score([row for row, _ in pairs], read, dataset.fingerprint)

        segments = [several for several, _ in answers]
        reread = map_over_ranks(list(zip(rows, segments, strict=True)), again)
        result["reread_wer"] = round(total_errors(reread).rate, 6)
    result["per_utterance"] = entries(rows, found)
    return result


def entries(rows: Sequence[Row], found: Sequence[Score]) -> list[UtteranceResult]:
    """Scores as they stand in a result, with the speaker if there are several."""
    several = len({row["speaker"] for row in rows}) > 1
    return [
        cast(UtteranceResult, {**one.entry(), **({"speaker": row["speaker"]} if several else {})})
        for row, one in zip(rows, found, strict=True)
    ]


def from_decoded(
    model: MultimodalModel,
    dataset: EncodedDataset,
    cfg: RunConfig,
    statistics: DatasetStatistics,
    chains: list[tuple[Row, list[GenerationOutput]]],
) -> list[GenerationOutput]:
    """Generates the last segment of each chain again, from the segment before it, decoded and encoded.

    A chain whose segment before the last is empty keeps its own last segment.
    """
    found = [segments[-1] for _, segments in chains]
    given = [i for i, (_, segments) in enumerate(chains) if segments[-2].content.numel()]
    prompts = []
    for row, segments in (chains[i] for i in given):
        modality = dataset.modalities[segments[-2].modality]
        (content,) = modality.encode([modality.decode(segments[-2].content)])
        prompts.append(Document(row["id"], [segment(modality, content)], multimodal=True))
    if prompts:
        read = generate(model, prompts, [found[0].modality], statistics, cfg.decode, cfg.seed)
        for i, (last,) in zip(given, read, strict=True):
            found[i] = last
    return found


def summary_line(result: Result, file: Path | str) -> str:
    """Summary line that a command prints."""
    if "perplexity" in result:
        return f"perplexity {result['perplexity']:.2f} per scored token on {result['split']} -> {file}"
    task, wer = result["task"], f"{result['wer']:.1%}"
    counts = f"{result['errors']} errors, {result['words']} words, {result['utterances']} utterances"
    if "share_ended" in result:
        again = f", {result['reread_wer']:.1%} from the decoded waveform" if "reread_wer" in result else ""
        text = f"{task}: WER {wer}{again} ({counts}, {result['share_ended']:.1%} ended)"
    elif "resynthesis_wer" in result:
        text = (
            f"{task.upper()} WER via ASR: {wer} vs reference, {result['target_wer']:.1%} vs resynthesis "
            f"(recordings {result['original_wer']:.1%}, codec resynthesis {result['resynthesis_wer']:.1%}; "
            f"{result['utterances']} utterances, {truncation_text(result)})"
        )
    else:
        control = f"; mismatched audio {result['mismatched_wer']:.0%}" if "mismatched_wer" in result else ""
        text = f"{task.upper()} WER {wer} ({counts}{control})"
    return f"{text.replace('%', ' %')} -> {file}"


def mismatched_pairs(rows: list[Row]) -> list[tuple[Row, Row]]:
    """Rows with the row whose audio they are given in the mismatched-audio control. Where that is a recording
    of the same text, the pair is left out: reading it right would be no error."""
    pairs = zip(rows, mismatched_rows(rows), strict=True)
    return [(own, other) for own, other in pairs if own["text"] != other["text"]]


def mismatched_rows(rows: list[Row], seed: int = 0) -> list[Row]:
    """Permutation of rows in which no row keeps its place, for the mismatched-audio control."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    other = dict(zip(order, order[1:] + order[:1], strict=True))
    return [rows[other[at]] for at in range(len(rows))]
