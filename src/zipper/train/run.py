"""`zipper train` and `zipper pretrain`: config to run folder.

build/runs/NAME/  config.yaml  metrics.csv  checkpoints/{last,best}.ckpt  predictions.tsv  result.json
                  figures/*.png  wandb/
"""

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from zipper.commit import commit
from zipper.config import asset, flat, save_config, to_dict
from zipper.data.module import ZipperData
from zipper.errors import ConfigError
from zipper.evaluate.loss import split_loss
from zipper.evaluate.result import Origin, describe_run, evaluate_asr, last_line, write_result
from zipper.model.pretrained import load_weights, save_tower
from zipper.model.zipper import Zipper
from zipper.report.clock import Clock
from zipper.report.figures import draw_run
from zipper.report.summary import summary_text
from zipper.schema import RunConfig
from zipper.train.callbacks import GateMonitor, RecognitionMonitor, Throughput, log_figures, log_samples
from zipper.train.module import ZipperModule
from zipper.train.resolve import rates, reads, resolve
from zipper.units.prepare import prepare
from zipper.units.store import Row, Store


def train(cfg: RunConfig, command: str) -> dict[str, Any]:
    """Prepares, trains, evaluates. Returns the result, which stands in the run folder as well.

    A run folder with an unfinished run of the same config is taken up again; any other is refused.
    """
    check_run_dir(cfg)
    if cfg.export and len(cfg.model.modalities) > 1:
        raise ConfigError(
            f"export={cfg.export} writes one tower, but model.modalities={cfg.model.modalities}."
        )
    code = commit()  # what trains, not what the checkout holds once it is done
    clock = Clock()
    store = prepare(cfg, clock)
    cfg = resolve(cfg, store)
    data = ZipperData(cfg, store)
    checkpoint = claim_run_dir(cfg)
    if checkpoint:
        check_store(checkpoint, store)
    with clock.stage("train"):
        module, trainer = fit(cfg, store, data, checkpoint)
    origin = Origin(command, code, trainer.global_step, clock.seconds["train"])
    module = load_module(cfg.run_dir / "checkpoints" / f"{cfg.evaluate.checkpoint}.ckpt")
    file = cfg.run_dir / "result.json"
    shown: Row | None = None
    with clock.stage("evaluate"):
        if recognises(cfg):
            result = evaluate_asr(module.model, store, cfg, origin)
            write_predictions(cfg.run_dir / "predictions.tsv", result)
            rows = store.splits[cfg.evaluate.split]
            log_samples(trainer.loggers, cfg.evaluate.split, result["per_utterance"], rows, origin.steps)
            line = last_line(result, file)
            shown = rows[0]
        else:
            result = evaluate_loss(module.model, store, cfg, origin)
            line = f"perplexity {result['perplexity']:.2f} a scored token on {result['split']} -> {file}"
    with clock.stage("draw"):
        log_figures(trainer.loggers, draw_run(cfg.run_dir, module.model, store, shown), origin.steps)
    result["stage_seconds"] = clock.rounded()
    figures = {f"test/{key}": result[key] for key in ("wer", "shuffled_wer", "perplexity") if key in result}
    for logger in trainer.loggers:
        logger.log_metrics(figures, step=origin.steps)
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()  # or the next run of this process would be logged into this one
    if cfg.export:
        export(cfg, module, store, result)
    # Last: with a result, a run is finished.
    write_result(result, file, *([Path(cfg.result)] if cfg.result else []))
    print("\n" + summary_text(result, cfg.run_dir))
    print(line)
    return result


def check_run_dir(cfg: RunConfig) -> None:
    """Refuses a run folder that holds a finished run, before any work."""
    if (cfg.run_dir / "result.json").exists():
        raise ConfigError(
            f"{cfg.run_dir} holds a finished run. Choose another name (name=...), "
            "or move that folder away; it is not overwritten."
        )


def claim_run_dir(cfg: RunConfig) -> Path | None:
    """Makes the run folder, saves the resolved config; returns the checkpoint to go on from, if any."""
    saved = cfg.run_dir / "config.yaml"
    if saved.exists():
        old, new = flat(yaml.safe_load(saved.read_text())), flat(json.loads(json.dumps(to_dict(cfg))))
        changed = [
            f"{key}: {old.get(key)} -> {new.get(key)}"
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
        ]
        if changed:
            raise ConfigError(
                f"{cfg.run_dir} holds an unfinished run of another config ({'; '.join(changed)}). Choose "
                "another name (name=...), or give that run's settings to go on with it."
            )
    elif cfg.run_dir.exists() and any(cfg.run_dir.iterdir()):
        raise ConfigError(f"{cfg.run_dir} exists and is no run's folder. Choose another name (name=...).")
    cfg.run_dir.mkdir(parents=True, exist_ok=True)
    save_config(cfg, saved)
    metrics = cfg.run_dir / "metrics.csv"
    if metrics.exists():  # the logger would begin it anew
        metrics.rename(cfg.run_dir / f"metrics-{len(list(cfg.run_dir.glob('metrics-*.csv'))) + 1}.csv")
    last = cfg.run_dir / "checkpoints" / "last.ckpt"
    return last if last.exists() else None


def check_store(checkpoint: Path, store: Store) -> None:
    """Refuses to go on with weights that were learnt on other units."""
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)["hyper_parameters"]["store"]
    if saved != store.fingerprint:
        raise ConfigError(
            f"{checkpoint} was trained on the store {saved}, but its config now leads to "
            f"{store.fingerprint}: corpus, "
            "codec or tokenizer have changed. Restore them, or train again under another name."
        )


def fit(
    cfg: RunConfig, store: Store, data: ZipperData, checkpoint: Path | None
) -> tuple[ZipperModule, L.Trainer]:
    """Builds module and Trainer, and trains to the last step."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    # The run folder holds its config before the training, and the order of batches follows from the step.
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    module = ZipperModule.of(cfg, rates(store), store.fingerprint)
    for name in module.model.names:
        init = cfg.model.towers[name].init
        if init:
            load_weights(module.model.tower(name), asset(init))
    if module.idle:
        print(f"idle in this run, neither computed nor trained: {', '.join(module.idle)}")
    trainer = L.Trainer(
        max_steps=cfg.train.steps,
        accumulate_grad_batches=cfg.train.accumulate,
        gradient_clip_val=cfg.train.clip,
        precision=cfg.train.precision,
        accelerator=cfg.train.accelerator,
        devices=cfg.train.devices,
        num_nodes=cfg.train.nodes,
        strategy=cfg.train.strategy,
        val_check_interval=min(cfg.train.validate_every, cfg.train.steps) * cfg.train.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=cfg.log.every,
        logger=loggers(cfg),
        callbacks=callbacks(cfg, store),
        enable_model_summary=False,
    )
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module, trainer


def callbacks(cfg: RunConfig, store: Store) -> list[L.Callback]:
    """Recognition first: the checkpoint looks at what it logs."""
    watch = (
        [RecognitionMonitor(store, cfg.evaluate.dev_utterances, cfg.evaluate.batch)]
        if recognises(cfg)
        else []
    )
    folder = cfg.run_dir / "checkpoints"
    # Two of them: Lightning's own save_last only follows when the best is saved anew.
    last = ModelCheckpoint(folder, filename="last", enable_version_counter=False)
    monitor = "dev/wer" if watch else "dev/loss"
    best = ModelCheckpoint(folder, filename="best", monitor=monitor, enable_version_counter=False)
    bar = TQDMProgressBar(refresh_rate=10)
    return [*watch, GateMonitor(), Throughput(), LearningRateMonitor("step"), best, last, bar]


def loggers(cfg: RunConfig) -> list[Logger]:
    """CSV in the run folder is the truth; W&B mirrors it, offline unless it is told otherwise."""
    out: list[Logger] = [CSVLogger(cfg.run_dir.parent, name=cfg.name, version="")]
    if cfg.log.wandb != "disabled":
        # Tables with audio are staged as files until they are sent: here, and not in the home folder.
        os.environ["WANDB_DATA_DIR"] = str((cfg.run_dir / "wandb").resolve())
        out.append(
            WandbLogger(
                name=cfg.name,
                project=cfg.log.project,
                save_dir=cfg.run_dir,
                offline=cfg.log.wandb == "offline",
                config=to_dict(cfg),
            )
        )
    return out


def load_module(checkpoint: Path) -> ZipperModule:
    """A trained module, from tensors and plain dicts alone."""
    return ZipperModule.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True).eval()


def recognises(cfg: RunConfig) -> bool:
    """Whether the run learns to write what it hears."""
    return cfg.train.tasks.asr > 0


def evaluate_loss(model: Zipper, store: Store, cfg: RunConfig, origin: Origin) -> dict[str, Any]:
    """Perplexity a scored (token, codebook) pair on the split to report on."""
    loss = split_loss(model, store, cfg)
    result = describe_run(model, store, cfg, origin)
    task = "+".join(cfg.train.tasks.shares())
    return {**result, "task": task, "split": cfg.evaluate.split, "loss": loss, "perplexity": math.exp(loss)}


def export(cfg: RunConfig, module: ZipperModule, store: Store, result: dict[str, Any]) -> None:
    """A pre-trained tower, into a folder that `init` can name."""
    (name,) = module.model.names
    folder = Path(cfg.export or "")
    facts = {
        "modality": name,
        "reads": reads(store, name),
        "trained_on": store.facts["trained_on"],
        "perplexity": {result["split"]: round(result["perplexity"], 4)},
        "command": result["command"],
        "commit": result["commit"],
        "steps": result["steps"],
        "minutes": round(result["wall_seconds"] / 60, 1),
    }
    save_tower(folder, module.model.tower(name), facts)
    if name == "text":
        store.subwords.save(folder / "tokenizer.json")


def write_predictions(file: Path, result: dict[str, Any]) -> None:
    """One utterance a line: id, errors, words, stop reason, reference, hypothesis."""
    keys = ("id", "errors", "words", "stopped", "reference", "hypothesis")
    rows = ["\t".join(keys), *("\t".join(str(one[key]) for key in keys) for one in result["per_utterance"])]
    file.write_text("\n".join(rows) + "\n")


def pretrain(cfg: RunConfig, command: str) -> dict[str, Any]:
    """One tower on one modality, exported where cfg.export says."""
    if len(cfg.model.modalities) != 1 or list(cfg.train.tasks.shares()) != cfg.model.modalities:
        raise ConfigError(
            f"pretrain trains one tower alone: model.modalities={cfg.model.modalities} and "
            f"train.tasks={cfg.train.tasks.shares()} must "
            "name the same single modality."
        )
    return train(cfg, command)
