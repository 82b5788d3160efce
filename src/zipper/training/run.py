"""`zipper train` and `zipper pretrain`: from a config to a run folder."""

import os
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from zipper.clock import Clock
from zipper.commit import commit
from zipper.config import RunConfig, modalities_of, to_dict
from zipper.data.dataset import EncodedDataset
from zipper.data.prepare import prepare
from zipper.data.statistics import measure_statistics
from zipper.disk import check_output_paths
from zipper.distributed import AtomicCheckpointIO, check_trainer, first_process, lightning_precision, strategy
from zipper.errors import ConfigError
from zipper.evaluation.cost import flops_per_token
from zipper.evaluation.figures import draw_run
from zipper.evaluation.journal import Journal, evaluation_identity, journal_name, open_journal
from zipper.evaluation.metrics import curves
from zipper.evaluation.perplexity import unimodal_scores
from zipper.evaluation.result import Origin, chosen_rows, write_predictions
from zipper.evaluation.result_file import Result, Results, write_result
from zipper.evaluation.samples import log_figures
from zipper.evaluation.summary import summary_text
from zipper.evaluation.tasks import evaluate_tasks, headlines, load_scorers, scorer_name, summary_lines
from zipper.generation.exported import load_kept, load_trained, save_exported
from zipper.generation.extended import extended, kept_statistics
from zipper.hashes import KEPT
from zipper.modalities.base import load_modalities
from zipper.modalities.scoring import Scorer
from zipper.models.building import TrainedModel, load_pretrained
from zipper.models.pretrained import save_tower, tower_hashes
from zipper.models.resolve import check_towers, joint_fingerprint, resolve
from zipper.models.single_decoder import SingleDecoderModel
from zipper.models.whiten import start_zips
from zipper.run_folder import check_dataset, claim_run_dir, hold_run_dir, result_files
from zipper.training.callbacks import GateMonitor, MeanWer, Patience, Spikes, TaskMonitor, Throughput
from zipper.training.checkpoints import Best, Save
from zipper.training.data import ZipperData
from zipper.training.fine_tuning import continued, fine_tuned, started_from, units_folder
from zipper.training.module import ZipperModule
from zipper.training.precision import BFloat16Products


def train(cfg: RunConfig, command: str) -> Results:
    """Prepare the data, train, evaluate. Returns the results by task, which are also written to the run
    folder.

    An unfinished run of the same config is resumed. Any other existing run folder raises ConfigError.
    """
    cfg = extended(fine_tuned(cfg))
    if not cfg.train.ctc and (asked := [name for name, how in cfg.decode.items() if how.ctc]):
        raise ConfigError(f"decode.{asked[0]}.ctc scores with the head that train.ctc=0.3 trains. Set both.")
    check_trainer(cfg.train)
    check_output_paths(cfg)
    check_towers(cfg)
    with hold_run_dir(cfg):
        return _train(cfg, command)


def _train(cfg: RunConfig, command: str) -> Results:
    code = commit()  # at the start; the checkout may change during the run
    modalities = load_modalities(cfg, units_folder(cfg))
    old = started_from(cfg, modalities)
    scorers = load_scorers(cfg, modalities)
    clock = Clock()
    dataset = prepare(cfg, clock, modalities)
    cfg = resolve(cfg, dataset)
    data = ZipperData.of(cfg, dataset)
    for task in [*cfg.evaluated_tasks, *cfg.evaluate.chains]:
        scorers[modalities_of(task)[-1]].check(chosen_rows(dataset, cfg, task))
    checkpoint = claim_run_dir(cfg)
    chosen = {name: cfg.model.towers[name] for name in cfg.model.modalities}
    towers = tower_hashes(chosen, Path(cfg.build) / KEPT)
    if checkpoint:
        check_dataset(checkpoint, dataset, towers)
    if first_process():
        for one in modalities.values():  # for `zipper generate`
            one.save(cfg.run_dir)
    with clock.stage("train"):
        module, trainer = fit(cfg, dataset, data, checkpoint, scorers, towers, old)
    origin = Origin(command, code, trainer.global_step, module.train_seconds(), cfg.seed)
    trainer.strategy.barrier("the last checkpoint is written")
    checkpoint = cfg.run_dir / "checkpoints" / f"{cfg.evaluate.checkpoint}.ckpt"
    with open_journal(
        cfg.run_dir / journal_name(rank=trainer.global_rank),
        evaluation_identity(checkpoint, cfg, scorer_name(scorers)),
    ) as kept:
        trained = load_trained(checkpoint)
        trained.network.to(trainer.strategy.root_device)
        return _finish(cfg, trained, dataset, data, origin, scorers, trainer, clock, kept)


def _finish(
    cfg: RunConfig, trained: TrainedModel, dataset: EncodedDataset, data: ZipperData, origin: Origin,
    scorers: Mapping[str, Scorer], trainer: L.Trainer, clock: Clock, kept: Journal,
) -> Results:  # fmt: skip
    """Evaluate, draw figures, and write the results and the file that marks the run as finished."""
    with clock.stage("evaluate"):
        results = evaluate_tasks(trained, dataset, cfg, origin, scorers, trainer.loggers, kept)
        if not trainer.is_global_zero:  # rank 0 writes
            return {}
        if len(trained.network.names) > 1:
            more: Result = {
                "flops_per_token": flops_per_token(trained.network, data.steps),
                "alone": unimodal_scores(trained.network, dataset, trained.statistics, cfg),
                "curves": curves(cfg.run_dir),
            }
            for result in results.values():
                result.update(more)
    with clock.stage("draw"):
        task = next(iter(results.values()))["task"]
        drawn = (
            dataset.splits[cfg.evaluate.split][0] if "loss" in results else chosen_rows(dataset, cfg, task)[0]
        )
        pictures = draw_run(cfg.run_dir, trained.network, dataset, drawn, results)
        log_figures(trainer.loggers, pictures, origin.steps)
    for logger in trainer.loggers:
        logger.log_metrics(headlines(results), step=origin.steps)
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()  # so that the next run of this process starts a new one
    for result in results.values():
        result["stage_seconds"] = clock.rounded()
    if cfg.export:
        export(cfg, trained, dataset, results)
    copies = result_files(cfg, list(results))
    for task, result in results.items():
        write_result(result, cfg.run_dir / f"{task}.json", *copies[task])
        write_predictions(result, cfg.run_dir / f"{task}.tsv")
    # Written last, because it marks the run as finished.
    made = {"name": cfg.name, "command": origin.command, "commit": origin.commit}
    seconds = {"steps": origin.steps, "wall_seconds": origin.wall_seconds, "stage_seconds": clock.rounded()}
    write_result({**made, **headlines(results), **seconds}, cfg.summary_file)
    print("\n" + summary_text(results, cfg.run_dir))
    print("\n".join(summary_lines(results, cfg.run_dir)))
    return results


def fit(
    cfg: RunConfig,
    dataset: EncodedDataset,
    data: ZipperData,
    checkpoint: Path | None,
    scorers: Mapping[str, Scorer],
    towers: dict[str, str] | None = None,
    old: TrainedModel | None = None,
) -> tuple[ZipperModule, L.Trainer]:
    """Build module and Trainer, and train to the last step. towers: `tower_hashes`, stored in the
    statistics. old: the model of `train.init`."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    # Expected: the run folder already holds the config, and batches follow from the step.
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
    torch.backends.cuda.matmul.allow_tf32 = True  # products that a mixed precision leaves in float32
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    statistics = measure_statistics(dataset, cfg.data.only, towers)
    statistics = continued(old.statistics, statistics) if old else kept_statistics(cfg, statistics)
    module = ZipperModule.of(cfg, statistics)
    load_pretrained(module.model)
    load_kept(module.model, cfg)
    if old:
        module.start_from(old.network)
    elif checkpoint is None:
        start_zips(module.model, cfg.model.zip, data.steps)
    if module.idle:
        print(f"unused zips, neither computed nor trained: {', '.join(module.idle)}")
    own = [BFloat16Products()] if cfg.train.precision == "bf16-products" else []
    trainer = L.Trainer(
        default_root_dir=cfg.run_dir,  # where Lightning saves and resumes under SLURM
        max_steps=cfg.train.steps,
        accumulate_grad_batches=cfg.train.accumulate,
        gradient_clip_val=cfg.train.clip,
        precision=lightning_precision(cfg.train),
        accelerator=cfg.train.accelerator,
        devices=cfg.train.devices,
        num_nodes=cfg.train.nodes,
        strategy=strategy(cfg.train),
        val_check_interval=min(cfg.train.validate_every, cfg.train.steps) * cfg.train.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=cfg.log.every,
        logger=loggers(cfg),
        callbacks=callbacks(cfg, dataset, scorers),
        plugins=[AtomicCheckpointIO(), *own],
        enable_model_summary=False,
    )
    if cfg.train.precision == "64-true":
        module.double()  # Lightning does it only after loading the checkpoint in float32
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module, trainer


def callbacks(cfg: RunConfig, dataset: EncodedDataset, scorers: Mapping[str, Scorer]) -> list[L.Callback]:
    """Callbacks of a training. The WER monitors come first, because the checkpoint depends on their
    metrics."""
    watch = [TaskMonitor(task, dataset, cfg, scorers) for task in cfg.evaluated_tasks]
    folder = cfg.run_dir / "checkpoints"
    monitor = "dev/wer" if watch else "dev/loss"
    best = Best(folder, monitor)
    validated = min(cfg.train.validate_every, cfg.train.steps)
    last = Save(folder, cfg.train.save_every, validated, cfg.log.every)
    bar = TQDMProgressBar(refresh_rate=10)
    mean = [MeanWer()] if watch else []
    patience = [Patience(monitor, cfg.train.patience)] if cfg.train.patience else []
    rate = LearningRateMonitor("step")
    return [*watch, *mean, *patience, GateMonitor(), Spikes(), Throughput(), rate, best, last, bar]


def loggers(cfg: RunConfig) -> list[Logger]:
    """CSV logger in the run folder, and W&B, offline unless configured otherwise."""
    out: list[Logger] = [CSVLogger(cfg.run_dir.parent, name=cfg.name, version="")]
    if cfg.log.wandb != "disabled":
        # W&B stages tables with audio as files. Keep them out of the home folder.
        os.environ["WANDB_DATA_DIR"] = str((cfg.run_dir / "wandb").resolve())
        out.append(
            WandbLogger(
                name=cfg.name,
                project=cfg.log.project,
                group=cfg.log.group,
                save_dir=cfg.run_dir.resolve(),  # the W&B service has its own working folder
                offline=cfg.log.wandb == "offline",
                config=to_dict(cfg),
                **_kept_id(cfg),
            )
        )
    return out


def _kept_id(cfg: RunConfig) -> dict[str, Any]:
    """W&B id of the run. Online, a resumed run keeps its id. Offline it gets a new one, because of two
    parts with one id the later upload replaces the earlier."""
    if cfg.log.wandb != "online":
        return {}
    file = cfg.run_dir / "wandb-id"
    if first_process() and not file.exists():
        cfg.run_dir.mkdir(parents=True, exist_ok=True)
        file.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return {"id": file.read_text(encoding="utf-8"), "resume": "allow"} if file.exists() else {}


def export(cfg: RunConfig, trained: TrainedModel, dataset: EncodedDataset, results: Results) -> None:
    """Export a tower into a folder for `init`, or the whole model into a folder for generation."""
    folder, first = Path(cfg.export or ""), next(iter(results.values()))
    made = {
        "command": first["command"],
        "commit": first["commit"],
        "steps": first["steps"],
        "minutes": round(first["wall_seconds"] / 60, 1),
    }
    model = trained.network
    if len(model.names) > 1 and model.used:
        save_exported(folder, trained, dataset.modalities, {**made, **headlines(results)})
        return
    learnt = [dataset.modalities[name] for name in model.names]
    pattern = next((one.layout.pattern for one in learnt if one.layout.filler is not None), None)
    tower = model.decoder if isinstance(model, SingleDecoderModel) else model.tower(model.names[0])
    statistics = {
        "modality": "+".join(model.names),
        "reads": joint_fingerprint(learnt),
        "trained_on": dataset.info["trained_on"],
        **({"pattern": pattern} if pattern else {}),
        "perplexity": {first["split"]: round(first["perplexity"], 4)},
        **made,
    }
    save_tower(folder, tower, statistics, cfg.export_bits)
    for one in learnt:
        one.save(folder)


def pretrain(cfg: RunConfig, command: str) -> Results:
    """Pre-train one tower on one modality (or a single decoder on several, each separately), and export it
    if `cfg.export` is set."""
    several = cfg.model.kind == "single_decoder"
    trained, known = list(cfg.train.tasks), cfg.model.modalities
    if (len(known) != 1 and not several) or not trained or not {*trained} <= {*known}:
        raise ConfigError(
            f"pretrain trains one tower: model.modalities={known} and train.tasks={trained} must "
            "name the same single modality (or several, with model.kind=single_decoder)."
        )
    if cfg.train.quantise and (few := [name for name in known if cfg.model.towers[name].lora]):
        raise ConfigError(
            f"train.quantise=true with model.towers.{few[0]}.lora: the exported tower has LoRA merged, and "
            "is rounded after that, not as it was trained. Leave one of both out."
        )
    return train(cfg, command)
