"""`zipper ablate`: a sweep (`reproduce.sweep_file`), run by run; the same file becomes a W&B sweep or
a SLURM array."""

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
    """Runs what is not finished, `jobs` at a time, each with its share of the cores. only: the name of one
    run, or a pattern of several ("*-seed0"). settings: key=value words for all.

    A run that fails is noted, and the others go on. Raises TrainingError in the end where some did; the log
    of each stands in build/ablations/.
    """
    ablation = read_checked_ablation(file)
    points = ablation.runs()
    if jobs < 1:
        raise ConfigError(f"--jobs {jobs} must be at least 1.")
    chosen = [one for one in points if only is None or fnmatchcase(one.name, only)]
    if not chosen:
        known = ", ".join(point.name for point in points)
        raise ConfigError(f"--only {only}: {file} has no such run. There are: {known}.")
    todo = [one for one in chosen if not is_finished(ablation, one, settings)]
    print(f"{ablation.title}: {len(chosen)} runs, {len(todo)} to do")
    _prepare(todo, settings)
    failed = _run_all([(one, command(ablation, one, settings)) for one in todo], ablation, jobs)
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(todo)} runs failed: {'; '.join(failed)}. The others are finished; "
            "what is mended goes on by the same command."
        )


def list_runs(file: Path, settings: Sequence[str]) -> None:
    """Prints every run: finished, unfinished or to do, its name, and its command."""
    ablation = read_checked_ablation(file)
    points = ablation.runs()
    wide = max(len(point.name) for point in points)
    for point in points:
        run = config_of(ablation, point, settings).run_dir
        done = is_finished(ablation, point, settings)
        state = "finished" if done else "unfinished" if run.exists() else "to do"
        words = " ".join(shlex.quote(word) for word in command(ablation, point, settings)[3:])
        print(f"{state:<11}{point.name:<{wide}}  zipper {words}")


def command(ablation: Ablation, point: Point, settings: Sequence[str]) -> list[str]:
    """What trains a point. A trial, with settings of the caller, has a name and results of its own."""
    trial = f"-{hashlib.sha256(' '.join(settings).encode()).hexdigest()[:6]}" if settings else ""
    results = Path("build" if trial else "results") / "ablations" / f"{ablation.name}{trial}"
    words = [*point.overrides, *settings, f"name={ablation.name}{trial}-{point.name}"]
    words.append(f"result={results / point.name}.json")
    return [sys.executable, "-m", "zipper", "train", point.config, *words]


def is_finished(ablation: Ablation, point: Point, settings: Sequence[str]) -> bool:
    """Whether its run folder holds a finished run. Raises ConfigError where that had other settings."""
    cfg = config_of(ablation, point, settings)
    if not (cfg.run_dir / "result.json").exists():
        return False
    changed = differences(yaml.safe_load((cfg.run_dir / "config.yaml").read_text(encoding="utf-8")), cfg)
    if changed:
        raise ConfigError(
            f"{cfg.run_dir} is finished with {'; '.join(changed)}, which the grid now has otherwise. Move "
            "that folder away, or give the grid file another name."
        )
    return True


def config_of(ablation: Ablation, point: Point, settings: Sequence[str]) -> RunConfig:
    """As `zipper train` will read it."""
    return load_config(asset(point.config), command(ablation, point, settings)[5:])


def _prepare(points: list[Point], settings: Sequence[str]) -> None:
    """The stores of all points, one after the other: runs that start together would all make theirs."""
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
    """Those that failed, with their logs."""
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
                point, words = waiting.pop()
                log = folder / f"{ablation.name}-{point.name}.log"
                with log.open("ab") as out:
                    environment = {**os.environ, "OMP_NUM_THREADS": threads}
                    process = subprocess.Popen(words, stdout=out, stderr=out, env=environment)
                running.append((process, log))
            time.sleep(0.2)
            for process, log in [one for one in running if one[0].poll() is not None]:
                running.remove((process, log))
                bar.update()
                if process.returncode:
                    last = log.read_text(errors="replace", encoding="utf-8").strip().splitlines()[-1:]
                    failed.append(f"{log} ({' '.join(last)[:200]})")
    except BaseException:  # a signal: the runs are saved, and end
        for process, _ in running:
            process.terminate()
        for process, _ in running:
            process.wait()
        raise
    finally:
        bar.close()
    return failed


def write_slurm(file: Path, settings: Sequence[str] = ()) -> Path:
    """The grid as a SLURM array, a run a task: build/ablations/NAME.sbatch."""
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
    """The grid as a W&B sweep, a run a point: build/ablations/NAME-sweep.yaml."""
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
