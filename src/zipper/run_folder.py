"""Folder of a run: ownership, the checkpoint to resume from, and where results are copied to.

build/runs/NAME/  config.yaml  tokenizer.json  metrics.csv  checkpoints/{last,last-before,best}.ckpt
                  figures/*.png  {asr,tts,loss}.json  {asr,tts}.utterances.jsonl.xz  {asr,tts}.tsv
                  samples/*.{wav,png}  wandb/  hparams.yaml  result.json
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import yaml

from zipper.checkpoint_files import BEST, LAST, PREVIOUS, find_damage, read_checkpoint
from zipper.config import RunConfig, flat, from_dict, save_config, to_dict
from zipper.data.dataset import EncodedDataset, has_synthetic_speech
from zipper.data.statistics import saved_statistics
from zipper.disk import file_lock
from zipper.distributed import first_process
from zipper.errors import ConfigError

# Settings that may change on resume: no batch depends on them.
RESUMABLE_KEYS = {
    "name", "resume", "result", "export", "train.devices", "train.nodes", "train.workers", "train_codec.out",
    "log.wandb", "log.project", "log.group", "log.every",
}  # fmt: skip


def result_files(cfg: RunConfig, tasks: list[str]) -> dict[str, list[Path]]:
    """Copies of each task's result that cfg.result names: x.json, or x-TASK.json for several tasks."""
    if not cfg.result:
        return {task: [] for task in tasks}
    file = Path(cfg.result)
    return {task: [file if len(tasks) == 1 else file.with_stem(f"{file.stem}-{task}")] for task in tasks}


def hold_run_dir(cfg: RunConfig) -> AbstractContextManager[None]:
    """Lock on the run folder, to hold for the whole run.

    Raises ConfigError if the run is finished or another process holds the lock.
    """
    if cfg.summary_file.exists():
        raise ConfigError(
            f"{cfg.run_dir} holds a finished run. Choose another name (name=...), or move that folder away."
        )
    if not first_process():
        return nullcontext()
    cfg.run_dir.parent.mkdir(parents=True, exist_ok=True)
    return file_lock(cfg.run_dir.with_name(f".{cfg.run_dir.name}.lock"), str(cfg.run_dir))


def claim_run_dir(cfg: RunConfig) -> Path | None:
    """Creates the run folder and saves the resolved config; returns the checkpoint to resume from, if any."""
    saved = cfg.run_dir / "config.yaml"
    if saved.exists():
        before = from_dict(yaml.safe_load(saved.read_text(encoding="utf-8")))
        old, new = flat(to_dict(before)), flat(to_dict(cfg))
        changed = [
            f"{key}: {old.get(key)} -> {new.get(key)}"
            for key in sorted({*old, *new} - RESUMABLE_KEYS)
            if old.get(key) != new.get(key)
        ]
        if changed:
            raise ConfigError(
                f"{cfg.run_dir} holds an unfinished run of another config ({'; '.join(changed)}). Choose "
                "another name (name=...), or use that run's settings to resume it."
            )
        if cfg.resume == "never":
            raise ConfigError(
                f"{cfg.run_dir} holds an unfinished run, and resume=never. Choose another name (name=...), "
                "move that folder away, or leave resume out to resume it."
            )
    elif first_process() and any(one.suffix != ".part" for one in cfg.run_dir.glob("*")):
        raise ConfigError(
            f"{cfg.run_dir} exists and is not the folder of a run. Choose another name (name=...)."
        )
    if first_process():
        cfg.run_dir.mkdir(parents=True, exist_ok=True)
        save_config(cfg, saved)
        for left in [*cfg.run_dir.glob("*.part"), *cfg.run_dir.glob("checkpoints/*.part")]:
            left.unlink()  # from a process that was killed while saving
        metrics = cfg.run_dir / "metrics.csv"
        if metrics.exists():  # the logger would overwrite it
            metrics.rename(cfg.run_dir / f"metrics-{len(list(cfg.run_dir.glob('metrics-*.csv'))) + 1}.csv")
    return newest(cfg.run_dir)


def check_dataset(
    checkpoint: Path,
    dataset: EncodedDataset,
    towers: dict[str, str] | None = None,
    allow_other_audio: bool = False,
) -> None:
    """Raises ConfigError if a checkpoint was trained on another encoded dataset or from other towers.

    towers: `tower_hashes` of the current pre-trained towers; None skips that check. allow_other_audio: accept
    synthetic speech that was made again on a CPU with other rounding, which is enough for an evaluation.
    """
    statistics = saved_statistics(read_checkpoint(checkpoint, whole=False)["hyper_parameters"])
    known = {statistics.fingerprint}
    if allow_other_audio and has_synthetic_speech(dataset.info["fingerprint"]):
        known.add(statistics.fingerprint_without_audio)
    if not known & {dataset.fingerprint, dataset.fingerprint_without_audio}:
        raise ConfigError(
            f"{checkpoint} was trained on the encoded dataset {statistics.fingerprint}, not "
            f"{dataset.fingerprint}: corpus, recordings (or the names of the three folders above them), "
            "codec or tokenizer have changed. Restore them, or train again under another name."
        )
    for name, digest in statistics.towers.items():  # older checkpoints have none
        if towers is not None and towers.get(name) != digest:
            raise ConfigError(
                f"{checkpoint} started from the {name} tower {digest}, but model.towers.{name}.init now is "
                f"{towers.get(name)}: its weights have changed. Restore them, or train under another name."
            )


def newest(run: Path) -> Path | None:
    """Intact checkpoint with the most steps that is consistent with best.ckpt; None starts from scratch.

    A damaged checkpoint is renamed to *.damaged, with a message.
    """
    folder = run / "checkpoints"
    found: dict[str, tuple[int, float | None]] = {}  # (steps, best score so far)
    for name in (LAST, PREVIOUS, BEST):
        file = folder / name
        if not file.exists():
            continue
        if why := find_damage(file):
            if first_process():
                file.replace(file.with_name(f"{name}.damaged"))
                print(f"{file} is damaged ({why}): renamed to {name}.damaged")
            continue
        saved = read_checkpoint(file, whole=False)
        found[name] = (saved["global_step"], _best_score(saved))
    best = found.get(BEST)
    newest_first = sorted(found, key=lambda name: found[name][0], reverse=True)
    chosen = next((name for name in newest_first if _fits(found[name], best)), None)
    if newest_first and chosen != newest_first[0]:
        where = f"step {found[chosen][0]}" if chosen else "the start"
        print(f"{folder / BEST} is missing: resuming from {where} to create it again")
    return folder / chosen if chosen else None


def _fits(one: tuple[int, float | None], best: tuple[int, float | None] | None) -> bool:
    """Whether `best` is the best checkpoint recorded in `one`, or is written again after it."""
    step, score = one
    return score is None or (best is not None and (best[1] == score or best[0] > step))


def _best_score(saved: dict[str, Any]) -> float | None:
    for name, state in saved.get("callbacks", {}).items():
        if name.startswith("ModelCheckpoint") and state.get("best_model_score") is not None:
            return float(state["best_model_score"])
    return None
