"""The result file of a run: every figure, and what it takes to make it again."""

import json
import platform
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch

from zipper.config import to_dict
from zipper.evaluate.asr import Recognised, recognise, shuffled, total
from zipper.model.zipper import Zipper
from zipper.schema import RunConfig
from zipper.units.store import Row, Store
from zipper.units.text import NORMALISER


@dataclass(frozen=True)
class Origin:
    """How a result came to be: command, commit, steps and seconds of training."""

    command: str
    commit: str
    steps: int
    wall_seconds: float


def evaluate_asr(model: Zipper, store: Store, cfg: RunConfig, origin: Origin) -> dict[str, Any]:
    """Decodes a split and describes what came out."""
    split = store.splits[cfg.evaluate.split]
    # Of the training split, only what the run has trained on: a check of the wiring, never a result.
    only = cfg.data.only if cfg.evaluate.split == "train" else None
    rows: list[Row] = [split[i] for i in range(min(only or len(split), len(split)))]
    found = recognise(model, store, rows, cfg.evaluate.batch)
    result = {
        **describe_run(model, store, cfg, origin),
        "task": "asr",
        "split": cfg.evaluate.split,
        **summary(found),
        "decoding": "greedy",
        "normaliser": NORMALISER,
    }
    if cfg.evaluate.shuffled:
        control = total(recognise(model, store, rows, cfg.evaluate.batch, heard=shuffled(rows)))
        result["shuffled_wer"] = round(control.rate, 6)
    return {**result, "per_utterance": [one.entry() for one in found]}


def summary(found: list[Recognised]) -> dict[str, Any]:
    """Counts added up over the corpus, divided once."""
    counts = total(found)
    stops = Counter(one.stopped for one in found)
    return {
        "wer": round(counts.rate, 6),
        "errors": counts.errors,
        "words": counts.words,
        "utterances": len(found),
        "stopped": dict(stops),
        "share_at_cap": round(stops["cap"] / max(len(found), 1), 6),
    }


def describe_run(model: Zipper, store: Store, cfg: RunConfig, origin: Origin) -> dict[str, Any]:
    """Everything about a run but its figures."""
    parameters = list(model.parameters())
    return {
        "name": cfg.name,
        "model": "zipper" if len(model.names) > 1 else "tower",
        "parameters_total": sum(p.numel() for p in parameters),
        "parameters_trained": sum(p.numel() for p in parameters if p.requires_grad),
        "steps": origin.steps,
        "wall_seconds": round(origin.wall_seconds, 1),
        "seed": cfg.seed,
        "commit": origin.commit,
        "command": origin.command,
        "checkpoint": cfg.evaluate.checkpoint,
        "data_fingerprint": store.fingerprint,
        "data": store.facts["fingerprint"],
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "config": to_dict(cfg),
    }


def versions() -> dict[str, str]:
    """Of what a figure depends on most."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
    }


def write_result(result: dict[str, Any], *files: Path) -> None:
    """JSON, whole or absent."""
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".part")
        aside.write_text(json.dumps(result, indent=1) + "\n")
        aside.rename(file)


def last_line(result: dict[str, Any], file: Path | str) -> str:
    """What a training ends with."""
    control = f"; shuffled speech {result['shuffled_wer']:.0%}" if "shuffled_wer" in result else ""
    return (
        f"ASR WER {result['wer']:.1%} ({result['errors']} errors, {result['words']} words, "
        f"{result['utterances']} utterances{control}) -> {file}"
    ).replace("%", " %")
