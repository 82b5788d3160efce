"""`zipper evaluate`: a trained run on any split."""

from zipper.config import RunConfig
from zipper.errors import ConfigError
from zipper.evaluate.result import evaluate_asr, last_line, write_result
from zipper.train.run import load_module, write_predictions
from zipper.units.prepare import prepare


def evaluate_run(cfg: RunConfig, command: str) -> None:
    """Writes evaluation-SPLIT.json and predictions-SPLIT.tsv into the run folder.

    Raises ConfigError where the run has no such checkpoint, or its store is not the one it was trained on.
    """
    checkpoint = cfg.run_dir / "checkpoints" / f"{cfg.evaluate.checkpoint}.ckpt"
    if not checkpoint.is_file():
        raise ConfigError(f"{checkpoint} does not exist. Train the run first, or name another (name=...).")
    store = prepare(cfg)
    module = load_module(checkpoint)
    if module.hparams["store"] != store.fingerprint:
        raise ConfigError(
            f"{cfg.run_dir} was trained on the store {module.hparams['store']}, but its config now leads to "
            f"{store.fingerprint}: corpus, codec or tokenizer have changed. Restore them, or train again."
        )
    result = evaluate_asr(module.model, store, cfg, command, 0.0, cfg.train.steps)
    file = cfg.run_dir / f"evaluation-{cfg.evaluate.split}.json"
    write_result(result, file)
    write_predictions(cfg.run_dir / f"predictions-{cfg.evaluate.split}.tsv", result)
    print(last_line(result, file))
