"""`zipper evaluate`: a trained run on any split."""

import itertools
import json
from dataclasses import replace
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


def evaluate_run(cfg: RunConfig, command: str) -> None:
    """Writes TASK-SPLIT.json, TASK-SPLIT.tsv and samples-SPLIT into the run folder; the second time
    TASK-SPLIT-2.json, and so on: nothing is written over. One that was cut off goes on.

    Raises ConfigError where the run has no such checkpoint, or its store is not the one it was trained on.
    """
    checkpoint = cfg.run_dir / "checkpoints" / f"{cfg.evaluate.checkpoint}.ckpt"
    if not checkpoint.is_file():
        raise ConfigError(f"{checkpoint} does not exist. Train the run first, or name another (name=...).")
    module = load_module(checkpoint)
    # As it was trained; how it is decoded and judged is the caller's.
    asked = {
        key: getattr(cfg, key) for key in ("evaluate", "decode", "judge", "name", "build", "result", "seed")
    }
    machine = {key: getattr(cfg.train, key) for key in ("accelerator", "devices", "nodes")}
    cfg = replace(module.cfg, **asked, train=replace(module.cfg.train, **machine))
    listener = load_listener(cfg)
    clock = Clock()
    store = prepare(cfg, clock)
    check_store(checkpoint, store)
    if not first_process():
        return
    work = work_of(checkpoint, cfg, listener.judge.name if listener else None)
    suffix = _suffix(cfg, work)
    trained = json.loads(finished(cfg).read_text(encoding="utf-8")) if finished(cfg).exists() else {}
    origin = Origin(command, commit(), trained.get("steps", 0), trained.get("wall_seconds", 0.0))
    with journal(cfg.run_dir / journal_name(suffix), work) as kept:
        with clock.stage("evaluate"):
            results = evaluate_tasks(module, store, cfg, origin, listener, [], kept, suffix)
        copies = result_files(cfg, list(results))
        for task, result in results.items():
            result["stage_seconds"] = clock.rounded()
            write_predictions(result, cfg.run_dir / f"{task}{suffix}.tsv")
            write_result(result, cfg.run_dir / f"{task}{suffix}.json", *copies[task])
    print("\n".join(last_lines(results, cfg.run_dir, suffix)))


def _suffix(cfg: RunConfig, work: dict[str, Any]) -> str:
    """The first that is free, or whose evaluation is this one, unfinished."""
    first = f"-{cfg.evaluate.split}"
    for suffix in itertools.chain([first], (f"{first}-{turn}" for turn in itertools.count(2))):
        begun, _ = read_pieces(cfg.run_dir / journal_name(suffix))
        if begun and begun[0] == json.loads(json.dumps(work)):
            return suffix
        if not begun and not any(cfg.run_dir.glob(f"[!.]*{suffix}.*")):
            return suffix
    raise AssertionError  # there is always another number
