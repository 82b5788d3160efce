"""`zipper evaluate`: a trained run on any split."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from zipper.clock import Clock
from zipper.commit import commit
from zipper.config import RunConfig, TrainConfig, changed
from zipper.data.dataset import EncodedDataset
from zipper.data.prepare import prepare
from zipper.data.statistics import reads
from zipper.distributed import MACHINE, first_process, leave_group
from zipper.errors import ConfigError, DataError
from zipper.evaluation.journal import journal, journal_name, read_pieces, work_of
from zipper.evaluation.result import Origin, write_predictions
from zipper.evaluation.result_file import read_result, write_result
from zipper.evaluation.tasks import evaluate_tasks, last_lines, load_speech_scorer
from zipper.evaluation.tts import SpeechScorer
from zipper.generation.exported import WEIGHTS, load_exported, load_trained
from zipper.models.building import TrainedModel
from zipper.run_folder import check_dataset, finished, result_files


def evaluate_run(cfg: RunConfig, command: str, folder: Path | None = None) -> None:
    """Writes TASK-SPLIT.json, TASK-SPLIT.tsv and samples-SPLIT into the run folder; the second time
    TASK-SPLIT-2.json, and so on: nothing is written over. One that was cut off goes on. folder: the run's,
    where it is not the one that cfg names.

    Raises ConfigError where the run has no such checkpoint, or its store is not the one it was trained on.
    """
    folder = folder or cfg.run_dir
    checkpoint = folder / "checkpoints" / f"{cfg.evaluate.checkpoint}.ckpt"
    if not checkpoint.is_file():
        raise ConfigError(f"{checkpoint} does not exist. Train the run first, or name another (name=...).")
    trained = load_trained(checkpoint)
    # As it was trained; how it is decoded and judged is the caller's.
    asked = {
        key: getattr(cfg, key)
        for key in ("evaluate", "decode", "judge", "name", "build", "result", "export", "seed")
    }
    machine = {key: getattr(cfg.train, key) for key in ("accelerator", "devices", "nodes")}
    places = ("folder", "text_folder")  # which may have moved, too
    moved = {key: getattr(cfg.data, key) or getattr(trained.config.data, key) for key in places}
    data = replace(trained.config.data, **moved)
    cfg = replace(trained.config, **asked, data=data, train=replace(trained.config.train, **machine))
    speech_scorer, clock = load_speech_scorer(cfg), Clock()
    dataset = prepare(cfg, clock)
    check_dataset(checkpoint, dataset, anew=True)
    ended = folder / finished(cfg).name
    training = read_result(ended, utterances=False) if ended.exists() else {}
    origin = Origin(command, commit(), training.get("steps", 0), training.get("wall_seconds", 0.0))
    _evaluate(cfg, trained, dataset, checkpoint, origin, speech_scorer, clock, folder)


def evaluate_exported(exported: Path, words: Sequence[str], command: str) -> None:
    """As `evaluate_run`, of a folder that `export` wrote. Results go to build/runs/NAME, of its own name if
    no other is given. words: key=value, over the settings that it was trained with, but for those of the
    machine.

    Raises ConfigError where NAME is a training run's, and DataError where the store that those lead to holds
    other units than the model reads.
    """
    trained, saved = load_exported(exported)
    machine = {key: getattr(TrainConfig(), key) for key in MACHINE}
    cfg = replace(trained.config, train=replace(trained.config.train, **machine))
    cfg = changed(cfg, [f"name={exported.resolve().name}", "result=null", "export=null", *words])
    for part in ("checkpoints", "result.json", "config.yaml"):
        if (cfg.run_dir / part).exists():
            raise ConfigError(
                f"{cfg.run_dir} holds {part} of a training run: no place for results of {exported}. Choose "
                "another name (name=...)."
            )
    speech_scorer, clock = load_speech_scorer(cfg), Clock()
    dataset = prepare(cfg, clock)
    for name in trained.network.names:
        if trained.statistics.reads[name] != reads(dataset, name):
            raise DataError(
                f"{exported} reads {name} units of {trained.statistics.reads[name]!r}, but the store holds "
                f"{reads(dataset, name)!r}. Name the codec and the tokenizer that it was trained with."
            )
    origin = Origin(command, commit(), saved.get("steps", 0), 60 * saved.get("minutes", 0.0))
    cfg.run_dir.mkdir(parents=True, exist_ok=True)
    _evaluate(cfg, trained, dataset, exported / WEIGHTS, origin, speech_scorer, clock, cfg.run_dir)


def _evaluate(
    cfg: RunConfig, trained: TrainedModel, dataset: EncodedDataset, weights: Path, origin: Origin,
    speech_scorer: SpeechScorer | None, clock: Clock, folder: Path,
) -> None:  # fmt: skip
    leave_group()  # of `prepare`: the first process evaluates, and must not wait for those that are done
    if not first_process():
        return
    trained.network.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    work = work_of(weights, cfg, speech_scorer.judge.name if speech_scorer else None)
    suffix = _suffix(folder, cfg.evaluate.split, work)
    with journal(folder / journal_name(suffix), work) as kept:
        with clock.stage("evaluate"):
            results = evaluate_tasks(trained, dataset, cfg, origin, speech_scorer, [], kept, suffix, folder)
        copies = result_files(cfg, list(results))
        for task, result in results.items():
            result["stage_seconds"] = clock.rounded()
            write_predictions(result, folder / f"{task}{suffix}.tsv")
            write_result(result, folder / f"{task}{suffix}.json", *copies[task])
    print("\n".join(last_lines(results, folder, suffix)))


def _suffix(folder: Path, split: str, work: dict[str, Any]) -> str:
    """The first that is free, or whose evaluation is this one, unfinished."""
    first = f"-{split}"
    for suffix in itertools.chain([first], (f"{first}-{turn}" for turn in itertools.count(2))):
        begun, _ = read_pieces(folder / journal_name(suffix))
        if begun and begun[0] == json.loads(json.dumps(work)):
            return suffix
        if not begun and not any(folder.glob(f"[!.]*{suffix}.*")):
            return suffix
    raise AssertionError  # there is always another number
