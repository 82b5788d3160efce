"""`zipper evaluate`: a trained run on any split."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from zipper.commit import commit
from zipper.errors import ConfigError
from zipper.evaluate.journal import journal, journal_name, read_pieces, work_of
from zipper.evaluate.result import Origin, write_predictions, write_result
from zipper.evaluate.tasks import evaluate_tasks, last_lines, load_listener
from zipper.report.clock import Clock
from zipper.schema import RunConfig
from zipper.train.engine import first_process
from zipper.train.folder import check_store, finished, result_files
from zipper.train.module import load_module
from zipper.units.prepare import prepare


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
    module = load_module(checkpoint)
    # As it was trained; how it is decoded and judged is the caller's.
    asked = {
        key: getattr(cfg, key) for key in ("evaluate", "decode", "judge", "name", "build", "result", "seed")
    }
    machine = {key: getattr(cfg.train, key) for key in ("accelerator", "devices", "nodes")}
    data = replace(
        module.cfg.data, folder=cfg.data.folder or module.cfg.data.folder
    )  # it may have moved, too
    cfg = replace(module.cfg, **asked, data=data, train=replace(module.cfg.train, **machine))
    listener = load_listener(cfg)
    clock = Clock()
    store = prepare(cfg, clock)
    check_store(checkpoint, store)
    if not first_process():
        return
    work = work_of(checkpoint, cfg, listener.judge.name if listener else None)
    suffix = _suffix(folder, cfg.evaluate.split, work)
    ended = folder / finished(cfg).name
    trained = json.loads(ended.read_text(encoding="utf-8")) if ended.exists() else {}
    origin = Origin(command, commit(), trained.get("steps", 0), trained.get("wall_seconds", 0.0))
    with journal(folder / journal_name(suffix), work) as kept:
        with clock.stage("evaluate"):
            results = evaluate_tasks(module, store, cfg, origin, listener, [], kept, suffix, folder)
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
