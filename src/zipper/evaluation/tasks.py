"""Evaluation of all tasks of a run: ASR, TTS, chains, or perplexity."""

import math
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from zipper.codecs.load import load_codec
from zipper.config import RunConfig
from zipper.data.dataset import EncodedDataset
from zipper.distributed import first_process
from zipper.evaluation import asr, chains, tts
from zipper.evaluation.journal import Journal
from zipper.evaluation.loss import split_loss
from zipper.evaluation.result import Origin, chosen_rows, describe_run
from zipper.evaluation.samples import log_speech, log_transcripts, write_samples
from zipper.evaluation.scorer import load_asr_scorer
from zipper.evaluation.tts import SpeechScorer
from zipper.models.building import TrainedModel

HEADLINES = (
    "wer", "shuffled_wer", "target_wer", "oracle_wer", "original_wer", "reread_wer", "perplexity",
    "share_at_cap", "share_looping", "share_ended",
)  # fmt: skip
Results = dict[str, dict[str, Any]]  # by task: asr, tts, a chain (speech-text-speech), or loss


def load_speech_scorer(cfg: RunConfig) -> SpeechScorer | None:
    """Codec and ASR scorer if the run needs them, loaded first so that missing parts raise at once."""
    if not cfg.evaluates("tts") and not cfg.evaluate.chains:
        return None
    return SpeechScorer(load_codec(cfg.codec), load_asr_scorer(cfg.judge), cfg.build)


def evaluate_tasks(
    trained: TrainedModel,
    dataset: EncodedDataset,
    cfg: RunConfig,
    origin: Origin,
    speech_scorer: SpeechScorer | None,
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
    if cfg.evaluates("asr"):
        results["asr"] = asr.evaluate_asr(model, dataset, statistics, cfg, origin, kept)
        log_transcripts(
            loggers, split, results["asr"]["per_utterance"], chosen_rows(dataset, cfg, "asr"), origin.steps
        )
    if speech_scorer and cfg.evaluates("tts"):
        results["tts"], segments = tts.evaluate_tts(
            model, dataset, statistics, cfg, origin, speech_scorer, kept
        )
        if first_process():
            spoken = results["tts"]["per_utterance"]
            samples = (folder or cfg.run_dir) / f"samples{suffix}"
            shown = write_samples(samples, cfg, speech_scorer, dataset, spoken, segments)
            log_speech(loggers, split, spoken, shown, origin.steps)
    for chain in cfg.evaluate.chains:
        assert speech_scorer is not None
        results[chain.replace(">", "-")] = chains.evaluate_chain(
            chain, model, dataset, statistics, cfg, origin, speech_scorer, kept
        )
    if not results:
        loss = split_loss(model, dataset, cfg)
        results["loss"] = {
            **describe_run(model, dataset, statistics, cfg, origin),
            "task": "+".join(cfg.train.tasks.shares()),
            "split": split,
            "loss": loss,
            "perplexity": math.exp(loss),
        }
    return results


def headlines(results: Results) -> dict[str, float]:
    """Main figures of each task, by metric name (test/asr/wer, ...)."""
    return {
        f"{result['split']}/{task}/{key}": result[key]
        for task, result in results.items()
        for key in HEADLINES
        if key in result
    }


def summary_lines(results: Results, folder: Path, suffix: str = "") -> list[str]:
    """Summary line of each task, with its file in the run folder."""
    lines = []
    for task, result in results.items():
        file = folder / f"{task}{suffix}.json"
        if task == "loss":
            lines.append(
                f"perplexity {result['perplexity']:.2f} per scored token on {result['split']} -> {file}"
            )
        else:
            lines.append({"asr": asr, "tts": tts}.get(task, chains).summary_line(result, file))
    return lines
