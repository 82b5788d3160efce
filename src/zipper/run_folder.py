"""The folder of a run: whose it is, what it may go on from, and where its results are copied to.

build/runs/NAME/  config.yaml  tokenizer.json  metrics.csv  checkpoints/{last,last-before,best}.ckpt
                  figures/*.png  {asr,tts,loss}.json  {asr,tts}.utterances.jsonl.xz  {asr,tts}.tsv
                  samples/*.{wav,png}  wandb/  result.json
"""

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import yaml

from zipper.checkpoint_files import BEST, LAST, PREVIOUS, find_damage, read_checkpoint
from zipper.config import RunConfig, flat, save_config, to_dict
from zipper.data.dataset import EncodedDataset
from zipper.data.statistics import saved_statistics
from zipper.disk import file_lock
from zipper.distributed import first_process
from zipper.errors import ConfigError

# Settings that an unfinished run may be resumed with otherwise: no step's batch depends on them.
FREE = {"resume", "train.devices", "train.nodes", "train.workers"}


def finished(cfg: RunConfig) -> Path:
    """The file that ends a run."""
    return cfg.run_dir / "result.json"


def result_files(cfg: RunConfig, tasks: list[str]) -> dict[str, list[Path]]:
    """Where cfg.result wants each task's result: x.json, or x-TASK.json where there are several."""
    if not cfg.result:
        return {task: [] for task in tasks}
    file = Path(cfg.result)
    return {task: [file if len(tasks) == 1 else file.with_stem(f"{file.stem}-{task}")] for task in tasks}


def hold_run_dir(cfg: RunConfig) -> AbstractContextManager[None]:
    """For as long as the run lasts, before any work. Raises ConfigError where it is finished, or where
    another process is at it."""
    if finished(cfg).exists():
        raise ConfigError(
            f"{cfg.run_dir} holds a finished run. Choose another name (name=...), "
            "or move that folder away; it is not overwritten."
        )
    if not first_process():
        return nullcontext()
    cfg.run_dir.parent.mkdir(parents=True, exist_ok=True)
    return file_lock(cfg.run_dir.with_name(f".{cfg.run_dir.name}.lock"), str(cfg.run_dir))


def claim_run_dir(cfg: RunConfig) -> Path | None:
    """Makes the run folder, saves the resolved config; returns the checkpoint to go on from, if any."""
    saved = cfg.run_dir / "config.yaml"
    if saved.exists():
        old, new = (
            flat(yaml.safe_load(saved.read_text(encoding="utf-8"))),
            flat(json.loads(json.dumps(to_dict(cfg)))),
        )
        changed = [
            f"{key}: {old.get(key)} -> {new.get(key)}"
            for key in sorted({*old, *new} - FREE)
            if old.get(key) != new.get(key)
        ]
        if changed:
            raise ConfigError(
                f"{cfg.run_dir} holds an unfinished run of another config ({'; '.join(changed)}). Choose "
                "another name (name=...), or give that run's settings to go on with it."
            )
        if cfg.resume == "never":
            raise ConfigError(
                f"{cfg.run_dir} holds an unfinished run, and resume=never. Choose another name (name=...), "
                "move "
                "that folder away, or leave resume out to go on with it."
            )
    elif first_process() and any(one.suffix != ".part" for one in cfg.run_dir.glob("*")):
        raise ConfigError(f"{cfg.run_dir} exists and is no run's folder. Choose another name (name=...).")
    if first_process():
        cfg.run_dir.mkdir(parents=True, exist_ok=True)
        save_config(cfg, saved)
        for left in [*cfg.run_dir.glob("*.part"), *cfg.run_dir.glob("checkpoints/*.part")]:
            left.unlink()  # of a process that was killed while it saved
        metrics = cfg.run_dir / "metrics.csv"
        if metrics.exists():  # the logger would begin it anew
            metrics.rename(cfg.run_dir / f"metrics-{len(list(cfg.run_dir.glob('metrics-*.csv'))) + 1}.csv")
    return newest(cfg.run_dir)


def check_dataset(
    checkpoint: Path, dataset: EncodedDataset, towers: dict[str, str] | None = None, anew: bool = False
) -> None:
    """Refuses to go on with weights that were learnt on other units; or, where `towers` are given
    (`tower_hashes`), from other pre-trained ones than those that now lie there. anew: the synthetic corpus
    may have been made again, on a CPU that rounds its audio otherwise; good enough for an evaluation."""
    statistics = saved_statistics(read_checkpoint(checkpoint)["hyper_parameters"])
    known = {statistics.fingerprint}
    if anew and dataset.info["fingerprint"].get("corpus_folder", "").startswith("spoken-"):
        known.add(statistics.fingerprint_without_audio)
    if not known & {dataset.fingerprint, dataset.fingerprint_without_audio}:
        raise ConfigError(
            f"{checkpoint} was trained on the store {statistics.fingerprint}, but its config now leads to "
            f"{dataset.fingerprint}: corpus, recordings, codec or tokenizer have changed. Restore them, or "
            "train again under another name."
        )
    for name, digest in statistics.towers.items():  # none in checkpoints of before they were kept
        if towers is not None and towers.get(name) != digest:
            raise ConfigError(
                f"{checkpoint} started from the {name} tower {digest}, but model.towers.{name}.init now "
                f"holds {towers.get(name)}: its weights have changed. Restore them, or train again under "
                "another name."
            )


def newest(run: Path) -> Path | None:
    """The checkpoint with the most steps that is whole, and whose best one is there as well; None: start
    anew. What is damaged is set aside as *.damaged, and said."""
    folder = run / "checkpoints"
    found: dict[str, tuple[int, float | None]] = {}  # steps, and the best score known
    for name in (LAST, PREVIOUS, BEST):
        file = folder / name
        if not file.exists():
            continue
        if why := find_damage(file):
            if first_process():
                file.replace(file.with_name(f"{name}.damaged"))
                print(f"{file} is damaged ({why}): set aside as {name}.damaged")
            continue
        saved = read_checkpoint(file)
        found[name] = (saved["global_step"], _best_score(saved))
    best = found.get(BEST)
    newest_first = sorted(found, key=lambda name: found[name][0], reverse=True)
    chosen = next((name for name in newest_first if _fits(found[name], best)), None)
    if newest_first and chosen != newest_first[0]:
        where = f"step {found[chosen][0]}" if chosen else "the start"
        print(f"{folder / BEST} is gone: going on from {where}, so that it is made again")
    return folder / chosen if chosen else None


def _fits(one: tuple[int, float | None], best: tuple[int, float | None] | None) -> bool:
    """Whether the best checkpoint that this one knows of is the one there, or comes after it once more."""
    step, score = one
    return score is None or (best is not None and (best[1] == score or best[0] > step))


def _best_score(saved: dict[str, Any]) -> float | None:
    scores = [
        state["best_model_score"]
        for name, state in saved.get("callbacks", {}).items()
        if name.startswith("ModelCheckpoint") and state.get("best_model_score") is not None
    ]
    return float(scores[0]) if scores else None
