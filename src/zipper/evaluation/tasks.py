"""Evaluation of all tasks of a run: tasks between modalities, chains, or perplexity."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from lightning.pytorch.loggers import Logger

from zipper.config import RunConfig, modalities_of
from zipper.data.dataset import EncodedDataset
from zipper.distributed import first_process
from zipper.evaluation.perplexity import split_loss
from zipper.evaluation.result import Origin, describe_run
from zipper.evaluation.result_file import Results
from zipper.evaluation.samples import show_samples
from zipper.evaluation.task import evaluate_chain, evaluate_task, summary_line
from zipper.generation import native_step
from zipper.modalities.base import Modality
from zipper.modalities.scoring import Journal, Scorer
from zipper.models.building import TrainedModel

HEADLINES = (
    "wer", "mismatched_wer", "target_wer", "resynthesis_wer", "original_wer", "reread_wer", "perplexity",
    "share_at_limit", "share_repeated", "share_ended",
)  # fmt: skip


def load_scorers(cfg: RunConfig, modalities: Mapping[str, Modality]) -> dict[str, Scorer]:
    """Scorers of the modalities that a run generates, by modality, loaded first so that missing parts raise
    at once, a compiler for `decode.NAME.compile` among them."""
    answers = {modalities_of(task)[-1] for task in [*cfg.evaluated_tasks, *cfg.evaluate.chains]}
    if not torch.cuda.is_available() and any(
        name in answers and how.compile for name, how in cfg.decode.items()
    ):
        native_step.library()
    return {name: modalities[name].scorer(cfg) for name in sorted(answers)}


def scorer_name(scorers: Mapping[str, Scorer]) -> str | None:
    """Name of the models that score; None if there is none."""
    return ", ".join(one.name for one in scorers.values() if one.name) or None


def evaluate_tasks(
    trained: TrainedModel,
    dataset: EncodedDataset,
    cfg: RunConfig,
    origin: Origin,
    scorers: Mapping[str, Scorer],
    loggers: list[Logger],
    kept: Journal,
    suffix: str = "",
    folder: Path | None = None,
) -> Results:
    """Results by task, on every rank; the ranks share the work.

    Writes samples to the run folder (samplesSUFFIX) and logs them. kept: journal from which an interrupted
    evaluation resumes.
    """
    model, statistics, split = trained.network, trained.statistics, cfg.evaluate.split
    results: Results = {}
    for task in cfg.evaluated_tasks:
        scorer = scorers[modalities_of(task)[-1]]
        result, segments = evaluate_task(task, model, dataset, statistics, cfg, origin, scorer, kept)
        results[task.replace(">", "-")] = result  # part of file names
        if first_process():
            samples = (folder or cfg.run_dir) / f"samples{suffix}"
            scores = result["per_utterance"]
            show_samples(loggers, samples, cfg, task, split, dataset, scores, segments, origin.steps)
    for chain in cfg.evaluate.chains:
        scorer = scorers[modalities_of(chain)[-1]]
        results[chain.replace(">", "-")] = evaluate_chain(
            chain, model, dataset, statistics, cfg, origin, scorer, kept
        )
    if not results:
        loss = split_loss(model, dataset, cfg)
        results["loss"] = {
            **describe_run("+".join(cfg.train.tasks), model, dataset, statistics, cfg, origin),
            "loss": loss,
            "perplexity": math.exp(loss),
        }
    return results


def headlines(results: Results) -> dict[str, float]:
    """Main figures of each task, by metric name (test/asr/wer, ...)."""
    return {
        f"{result['split']}/{task}/{key}": cast(dict[str, float], result)[key]
        for task, result in results.items()
        for key in HEADLINES
        if key in result
    }


def summary_lines(results: Results, folder: Path, suffix: str = "") -> list[str]:
    """Summary line of each task, with its file in the run folder."""
    return [summary_line(result, folder / f"{task}{suffix}.json") for task, result in results.items()]
