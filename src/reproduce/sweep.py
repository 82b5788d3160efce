"""`zipper ablate`: runs a sweep file, or converts it to a W&B sweep or a SLURM array."""

import hashlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from reproduce.sweep_file import Ablation, Point, differences, read_checked_ablation
from zipper.config import RunConfig, asset, load_config
from zipper.errors import ConfigError, TrainingError

SLURM = """#!/bin/bash
# {count} runs of {file}: sbatch {script}
#SBATCH --job-name={job}
#SBATCH --array=0-{last}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=SIGUSR1@300
#SBATCH --output={folder}/%x-%a.log
set -euo pipefail
RUNS=({runs})
srun {python} -m zipper ablate {file} --only "${{RUNS[$SLURM_ARRAY_TASK_ID]}}" {settings}
"""


def ablate(file: Path, only: str | None, jobs: int, settings: Sequence[str]) -> None:
    """Runs the unfinished runs of a sweep, `jobs` in parallel, which share the cores.

    only: name of one run, or a pattern ("*-seed0"). settings: overrides for all runs. The log of each run is
    in build/ablations/. A failed run does not stop the others; raises TrainingError at the end if a run
    failed.
    """
    ablation = read_checked_ablation(file)
    points = ablation.runs()
    if jobs < 1:
        raise ConfigError(f"--jobs {jobs} must be at least 1.")
    chosen = [one for one in points if only is None or fnmatchcase(one.name, only)]
    if not chosen:
        known = ", ".join(point.name for point in points)
        raise ConfigError(f"--only {only}: {file} has no such run. Available: {known}.")
    todo = [one for one in chosen if not is_finished(ablation, one, settings)]
    print(f"{ablation.title}: {len(chosen)} runs, {len(todo)} to do")
    _prepare(todo, settings)
    failed = _run_all([(one, command(ablation, one, settings)) for one in todo], ablation, jobs)
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(todo)} runs failed: {'; '.join(failed)}. The others are finished; "
            "correct the cause and run the same command to resume."
        )


def list_runs(file: Path, settings: Sequence[str]) -> None:
    """Prints state (finished, unfinished, to do), name and command of every run."""
    ablation = read_checked_ablation(file)
    points = ablation.runs()
    wide = max(len(point.name) for point in points)
    for point in points:
        run = config_of(ablation, point, settings).run_dir
        done = is_finished(ablation, point, settings)
        state = "finished" if done else "unfinished" if run.exists() else "to do"
        arguments = shlex.join(command(ablation, point, settings)[3:])
        print(f"{state:<11}{point.name:<{wide}}  zipper {arguments}")


def command(ablation: Ablation, point: Point, settings: Sequence[str]) -> list[str]:
    """Command that trains a point. With `settings`, its name and result paths get a hash of them."""
    trial = f"-{hashlib.sha256(' '.join(settings).encode()).hexdigest()[:6]}" if settings else ""
    results = Path("build" if trial else "results") / "ablations" / f"{ablation.name}{trial}"
    overrides = [*point.overrides, *settings, f"name={ablation.name}{trial}-{point.name}"]
    overrides.append(f"result={results / point.name}.json")
    return [sys.executable, "-m", "zipper", "train", point.config, *overrides]


def is_finished(ablation: Ablation, point: Point, settings: Sequence[str]) -> bool:
    """Whether the run of a point is finished. Raises ConfigError if it has other settings."""
    cfg = config_of(ablation, point, settings)
    if not (cfg.run_dir / "result.json").exists():
        return False
    changed = differences(yaml.safe_load((cfg.run_dir / "config.yaml").read_text(encoding="utf-8")), cfg)
    if changed:
        raise ConfigError(
            f"{cfg.run_dir} is finished with {'; '.join(changed)}, unlike the sweep file. Move that "
            "folder away, or rename the sweep file."
        )
    return True


def config_of(ablation: Ablation, point: Point, settings: Sequence[str]) -> RunConfig:
    """Config of a point, as `zipper train` loads it."""
    return load_config(asset(point.config), command(ablation, point, settings)[5:])


def _prepare(points: list[Point], settings: Sequence[str]) -> None:
    """Prepares the datasets of all points one by one, so that parallel runs do not prepare the same one."""
    from zipper.clock import Clock
    from zipper.data.prepare import prepare
    from zipper.distributed import check_trainer

    known: list[Any] = []
    configs = [load_config(asset(point.config), [*point.overrides, *settings]) for point in points]
    for cfg in configs:
        check_trainer(cfg.train)
    for cfg in configs:
        text = cfg.model.towers.get("text")
        cfg.data.only = None
        if (key := (cfg.data, cfg.codec, text.init if text else None)) not in known:
            known.append(key)
            prepare(cfg, Clock())


def _run_all(todo: list[tuple[Point, list[str]]], ablation: Ablation, jobs: int) -> list[str]:
    """Runs all commands; returns the log file and last line of each failed run."""
    folder = Path("build") / "ablations"
    folder.mkdir(parents=True, exist_ok=True)
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // jobs))
    failed: list[str] = []
    running: list[tuple[subprocess.Popen[bytes], Path]] = []
    waiting = list(reversed(todo))
    bar = tqdm(total=len(todo), desc=ablation.name, unit="run", mininterval=1.0)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                point, arguments = waiting.pop()
                log = folder / f"{ablation.name}-{point.name}.log"
                with log.open("ab") as out:
                    environment = {**os.environ, "OMP_NUM_THREADS": threads}
                    process = subprocess.Popen(arguments, stdout=out, stderr=out, env=environment)
                running.append((process, log))
            time.sleep(0.2)
            for process, log in [one for one in running if one[0].poll() is not None]:
                running.remove((process, log))
                bar.update()
                if process.returncode:
                    last = log.read_text(errors="replace", encoding="utf-8").strip().splitlines()[-1:]
                    failed.append(f"{log} ({' '.join(last)[:200]})")
    except BaseException:  # a signal: the runs save and exit
        for process, _ in running:
            process.terminate()
        for process, _ in running:
            process.wait()
        raise
    finally:
        bar.close()
    return failed


def write_slurm(file: Path, settings: Sequence[str] = ()) -> Path:
    """Writes build/ablations/NAME.sbatch, a SLURM array with one task per run."""
    ablation = read_checked_ablation(file)
    folder = Path("build") / "ablations"
    folder.mkdir(parents=True, exist_ok=True)
    runs, script = [point.name for point in ablation.runs()], folder / f"{ablation.name}.sbatch"
    script.write_text(SLURM.format(
        count=len(runs), file=shlex.quote(str(file)), script=shlex.quote(str(script)),
        job=shlex.quote(f"zipper-{ablation.name}"), last=len(runs) - 1, folder=folder, runs=shlex.join(runs),
        python=shlex.quote(sys.executable), settings=shlex.join(settings),
    ), encoding="utf-8")  # fmt: skip
    return script


def write_wandb_sweep(file: Path, settings: Sequence[str] = ()) -> Path:
    """Writes build/ablations/NAME-sweep.yaml, a W&B sweep over the runs."""
    ablation = read_checked_ablation(file)
    folder = Path("build") / "ablations"
    folder.mkdir(parents=True, exist_ok=True)
    sweep = {
        "name": ablation.title,
        "method": "grid",
        "parameters": {"only": {"values": [point.name for point in ablation.runs()]}},
        "command": [sys.executable, "-m", "zipper", "ablate", str(file), *settings, "${args}"],
    }
    out = folder / f"{ablation.name}-sweep.yaml"
    out.write_text(yaml.safe_dump(sweep, sort_keys=False), encoding="utf-8")
    return out
