"""`zipper sweep`: runs a sweep file, or converts it to a W&B sweep or a SLURM array."""

import hashlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from reproduce.sweep_file import Point, Sweep, differences, read_checked_sweep, slug
from zipper.config import RunConfig, asset, load_config
from zipper.disk import file_lock
from zipper.errors import ConfigError, TrainingError
from zipper.processors import cores

FOLDER = Path("build") / "ablations"  # logs, scripts, and results of trials
SLURM = """#!/bin/bash
# {count} runs of {file}: sbatch --cpus-per-task=8 --gpus-per-task=1 --time=8:00:00 {script}
#SBATCH --job-name={job}
#SBATCH --array=0-{last}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=SIGUSR1@300
#SBATCH --output={folder}/%x-%a.log
set -euo pipefail
RUNS=({runs})
srun {python} -m zipper sweep {file} --only "${{RUNS[$SLURM_ARRAY_TASK_ID]}}" {settings}
"""


def run_sweep(
    file: Path, only: str | None, jobs: int, settings: Sequence[str], prepare_only: bool = False
) -> None:
    """Runs the unfinished runs of a sweep, `jobs` in parallel, which share the cores.

    Pre-trains missing towers and prepares the datasets first. only: name of one run, or a pattern
    ("*-seed0"). settings: overrides for all runs. prepare_only: no runs. The log of each run is in FOLDER. A
    failed run does not stop the others; raises TrainingError at the end if a run failed.
    """
    sweep = read_checked_sweep(file, settings)
    chosen = chosen_runs(sweep, only)
    todo = [one for one in chosen if not is_finished(sweep, one, settings)]
    print(f"{sweep.title}: {len(chosen)} runs, {len(todo)} to do")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with file_lock(FOLDER / ".towers.lock", "missing towers", wait=True):  # of two sweeps, one pre-trains
        towers = missing_towers(sweep, todo, settings)
        _prepare(towers, [])
        _run_all([(one, pretrain_command(one)) for one in towers], sweep, jobs, has_tower)
    _prepare(todo, settings)
    if not prepare_only:
        commands = [(one, command(sweep, one, settings)) for one in todo]
        _run_all(commands, sweep, jobs, lambda point: is_finished(sweep, point, settings))


def chosen_runs(sweep: Sweep, only: str | None) -> list[Point]:
    """Runs of a sweep: all, or those of a name or a pattern. Raises ConfigError if there are none."""
    points = sweep.runs()
    chosen = [one for one in points if only is None or fnmatchcase(one.name, only)]
    if not chosen:
        known = ", ".join(point.name for point in points)
        raise ConfigError(f"--only {only}: {sweep.file} has no such run. Available: {known}.")
    return chosen


def list_runs(file: Path, only: str | None, settings: Sequence[str]) -> None:
    """Prints state (finished, finished with other settings, unfinished, to do), name and command of runs, and
    of towers."""
    sweep = read_checked_sweep(file, settings)
    towers, points = sweep.pretrainings(), chosen_runs(sweep, only)
    wide = max(len(point.name) for point in (*towers, *points))
    rows = [(one, _tower_config(one), has_tower(one), pretrain_command(one)) for one in towers]
    for one in points:
        cfg = config_of(sweep, one, settings)
        rows.append((one, cfg, cfg.summary_file.exists(), command(sweep, one, settings)))
    for point, cfg, done, arguments in rows:
        state = "finished" if done else "unfinished" if cfg.run_dir.exists() else "to do"
        apart = changed_settings(cfg) if done and point in points else []
        state = f"finished with {'; '.join(apart)}" if apart else state
        print(f"{state:<11} {point.name:<{wide}}  zipper {shlex.join(arguments[3:])}")


def command(sweep: Sweep, point: Point, settings: Sequence[str]) -> list[str]:
    """Command that trains a point. With `settings`, its name and result paths get a hash of them. What the
    config exports gets a folder for each run. Where a run is logged (`log`) makes no trial of it."""
    name, result = sweep.name, sweep.result_file(point)
    cfg = load_config(asset(point.config), [*point.overrides, *settings])
    if trial := [one for one in settings if not one.startswith("log.")]:
        name += f"-{hashlib.sha256(' '.join(trial).encode()).hexdigest()[:6]}"
        result = FOLDER / name / f"{point.name}.json"
    overrides = [*point.overrides, *settings, f"name={name}-{point.name}", f"result={result}"]
    group = slug(f"{name}-{point.name.removesuffix(f'-seed{cfg.seed}')}")[-128:]  # W&B's limit
    overrides += [] if cfg.log.group else [f"log.group={group}"]
    overrides += [f"export={Path(cfg.export) / f'{name}-{point.name}'}"] if cfg.export else []
    return [sys.executable, "-m", "zipper", "train", point.config, *overrides]


def pretrain_command(point: Point) -> list[str]:
    """Command that pre-trains a tower."""
    return [sys.executable, "-m", "zipper", "pretrain", point.config, *point.overrides]


def missing_towers(sweep: Sweep, points: list[Point], settings: Sequence[str]) -> list[Point]:
    """Pre-trainings of towers that points start from and that do not exist."""
    configs = [config_of(sweep, point, settings) for point in points]
    used = {tower.init for cfg in configs for tower in cfg.model.towers.values()}
    return [one for one in sweep.pretrainings() if _tower_config(one).export in used and not has_tower(one)]


def has_tower(point: Point) -> bool:
    """Whether a pre-trained tower exists; its run folder may have been deleted."""
    cfg = _tower_config(point)
    unfinished = cfg.run_dir.exists() and not cfg.summary_file.exists()
    return (Path(cfg.export or "") / "tower.json").exists() and not unfinished


def _tower_config(point: Point) -> RunConfig:
    return load_config(asset(point.config), point.overrides)


def is_finished(sweep: Sweep, point: Point, settings: Sequence[str]) -> bool:
    """Whether the run of a point is finished. Raises ConfigError if it has other settings."""
    cfg = config_of(sweep, point, settings)
    if not cfg.summary_file.exists():
        return False
    if changed := changed_settings(cfg):
        raise ConfigError(
            f"{cfg.run_dir} is finished with {'; '.join(changed)}, unlike the sweep file. Move that "
            "folder away, or rename the sweep file."
        )
    return True


def changed_settings(cfg: RunConfig) -> list[str]:
    """Differences between the recipe of a run folder and a config."""
    return differences(yaml.safe_load((cfg.run_dir / "config.yaml").read_text(encoding="utf-8")), cfg)


def config_of(sweep: Sweep, point: Point, settings: Sequence[str]) -> RunConfig:
    """Config of a point, as `zipper train` trains it."""
    return _with_model(load_config(asset(point.config), command(sweep, point, settings)[5:]))


def _with_model(cfg: RunConfig) -> RunConfig:
    """Config with what the model of `train.init` or `model.init` brings."""
    if not (cfg.train.init or cfg.model.init):
        return cfg
    from zipper.generation.extended import extended  # seconds, which other sweeps do without
    from zipper.training.fine_tuning import fine_tuned

    return extended(fine_tuned(cfg))


def _prepare(points: list[Point], settings: Sequence[str]) -> None:
    """Prepares the datasets of all points one by one, so that parallel runs do not prepare the same one."""
    from zipper.clock import Clock
    from zipper.data.prepare import prepare
    from zipper.distributed import check_trainer
    from zipper.modalities.base import load_modalities
    from zipper.models.resolve import check_towers
    from zipper.training.fine_tuning import units_folder

    known: list[Any] = []
    configs = [load_config(asset(point.config), [*point.overrides, *settings]) for point in points]
    for cfg in configs:
        check_trainer(cfg.train)
    whole = [_with_model(cfg) for cfg in configs]
    for cfg in whole:
        check_towers(cfg)
    for cfg in whole:
        text = cfg.model.towers.get("text")
        cfg.data.only = None
        if (key := (cfg.data, cfg.codec, text.init if text else None, cfg.train.init)) not in known:
            known.append(key)
            prepare(cfg, Clock(), load_modalities(cfg, units_folder(cfg)))


def _run_all(
    todo: list[tuple[Point, list[str]]], sweep: Sweep, jobs: int, is_done: Callable[[Point], bool]
) -> None:
    """Runs all commands but those whose point another sweep has finished meanwhile. Raises TrainingError with
    the log file and the reason of each failed one."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // jobs))
    failed: list[str] = []
    running: list[tuple[subprocess.Popen[bytes], Point, Path, int]] = []
    waiting = list(reversed(todo))
    bar = tqdm(total=len(todo), desc=sweep.name, unit="run", mininterval=1.0, disable=not todo)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                point, arguments = waiting.pop()
                if is_done(point):
                    bar.update()
                    continue
                log = FOLDER / f"{sweep.name}-{point.name}.log"
                with log.open("ab") as out:
                    start = out.tell()
                    environment = {**os.environ, "OMP_NUM_THREADS": threads}
                    process = subprocess.Popen(arguments, stdout=out, stderr=out, env=environment)
                running.append((process, point, log, start))
            time.sleep(0.2)
            for one in [one for one in running if one[0].poll() is not None]:
                running.remove(one)
                bar.update()
                process, point, log, start = one
                if process.returncode and not is_done(point):
                    failed.append(f"{log} ({_reason(log, start, process.returncode)})")
    except BaseException:  # a signal: the runs save and exit
        for process, *_ in running:
            process.terminate()
        for process, *_ in running:
            process.wait()
        raise
    finally:
        bar.close()
    if failed:
        rest = " The others are finished." if len(failed) < len(todo) else ""
        raise TrainingError(
            f"{len(failed)} of {len(todo)} runs failed: {'; '.join(failed)}.{rest} Correct the cause and run "
            "the same command to resume."
        )


def _reason(log: Path, start: int, code: int) -> str:
    """Why a run failed: the last error in its log from byte `start` on, else the signal that ended it, else
    the last line."""
    said = log.read_bytes()[start:].decode(errors="replace").replace("\r", "\n").splitlines()
    if errors := [line[line.index("error: ") :] for line in said if "error: " in line]:
        return errors[-1][:300]
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return said[-1][:200] if said else f"exit status {code}"


def write_slurm(file: Path, only: str | None = None, settings: Sequence[str] = ()) -> Path:
    """Writes build/ablations/NAME.sbatch, a SLURM array with one task per run."""
    sweep = read_checked_sweep(file, settings)
    runs, script = [point.name for point in chosen_runs(sweep, only)], FOLDER / f"{sweep.name}.sbatch"
    return _write(script, SLURM.format(
        count=len(runs), file=shlex.quote(str(file)), script=shlex.quote(str(script)),
        job=shlex.quote(f"zipper-{sweep.name}"), last=len(runs) - 1, folder=FOLDER, runs=shlex.join(runs),
        python=shlex.quote(sys.executable), settings=shlex.join(settings),
    ))  # fmt: skip


def write_wandb_sweep(file: Path, only: str | None = None, settings: Sequence[str] = ()) -> Path:
    """Writes build/ablations/NAME-sweep.yaml, a W&B sweep over the runs, which are logged online."""
    sweep = read_checked_sweep(file, settings)
    settings = ["log.wandb=online", *settings]
    content = {
        "name": sweep.title, "method": "grid",
        "parameters": {"only": {"values": [point.name for point in chosen_runs(sweep, only)]}},
        "command": [sys.executable, "-m", "zipper", "sweep", str(file), *settings, "${args}"],
    }  # fmt: skip
    return _write(FOLDER / f"{sweep.name}-sweep.yaml", yaml.safe_dump(content, sort_keys=False))


def _write(file: Path, content: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")
    return file
