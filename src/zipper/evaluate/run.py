"""`zipper evaluate`: a trained run on any split."""

import json
from dataclasses import replace

from zipper.commit import commit
from zipper.errors import ConfigError
from zipper.evaluate.result import Origin, evaluate_asr, last_line, write_result
from zipper.report.clock import Clock
from zipper.schema import RunConfig
from zipper.train.run import check_store, load_module, recognises, write_predictions
from zipper.units.prepare import prepare


def evaluate_run(cfg: RunConfig, command: str) -> None:
    """Writes evaluation-SPLIT.json and predictions-SPLIT.tsv into the run folder.

    Raises ConfigError where the run has no such checkpoint, or its store is not the one it was trained on.
    """
    checkpoint = cfg.run_dir / "checkpoints" / f"{cfg.evaluate.checkpoint}.ckpt"
    if not checkpoint.is_file():
        raise ConfigError(f"{checkpoint} does not exist. Train the run first, or name another (name=...).")
    module = load_module(checkpoint)
    cfg = replace(module.cfg, evaluate=cfg.evaluate, name=cfg.name, build=cfg.build)  # as it was trained
    if not recognises(cfg):
        raise ConfigError(
            f"{cfg.run_dir} was trained on {sorted(cfg.train.tasks.shares())}: there is no text to score."
        )
    clock = Clock()
    store = prepare(cfg, clock)
    check_store(checkpoint, store)
    finished = cfg.run_dir / "result.json"
    trained = json.loads(finished.read_text()) if finished.exists() else {}
    origin = Origin(command, commit(), trained.get("steps", 0), trained.get("wall_seconds", 0.0))
    with clock.stage("evaluate"):
        result = evaluate_asr(module.model, store, cfg, origin)
    result["stage_seconds"] = clock.rounded()
    file = cfg.run_dir / f"evaluation-{cfg.evaluate.split}.json"
    write_result(result, file)
    write_predictions(cfg.run_dir / f"predictions-{cfg.evaluate.split}.tsv", result)
    print(last_line(result, file))
