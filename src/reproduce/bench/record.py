"""Result file of a benchmark, and its section of RESULTS.md for the terminal."""

import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from reproduce.report.records import Results
from reproduce.report.results import section
from zipper.commit import commit
from zipper.config import RunConfig, to_dict
from zipper.evaluation.result import versions
from zipper.evaluation.result_file import write_result


def record(cfg: RunConfig, task: str, command: str, code: str, content: dict[str, Any]) -> dict[str, Any]:
    """Result with its origin, written to build/benchmarks/ and cfg.result. code: commit before the
    measurement. content: figures and settings."""
    more = {"name": cfg.name, "commit": code, "threads": torch.get_num_threads(), **content}
    file, copies = f"{task.removeprefix('bench-')}.json", [Path(cfg.result)] if cfg.result else []
    return write_record(task, command, more, _folder(cfg) / file, *copies, cfg=cfg)


def write_record(
    task: str, command: str, content: Mapping[str, Any], *files: Path, cfg: RunConfig | None = None
) -> dict[str, Any]:
    """Result with its origin, written to files. content: figures and settings, whose keys replace those of
    the origin. cfg: None if the benchmark has no config, with seed 0."""
    config = {"seed": 0} if cfg is None else to_dict(cfg)
    origin = {"task": task, "seed": config["seed"], "commit": commit(), "command": command}
    result = {**origin, "versions": versions(), "config": config, **content}
    write_result(result, *files)
    print(f"-> {files[0]}")
    return result


def peak_mb() -> float:
    """Peak memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def show(cfg: RunConfig, name: str) -> None:
    """Prints a section of RESULTS.md, from the files in build/benchmarks/."""
    print(section(name, Results(_folder(cfg))))


def _folder(cfg: RunConfig) -> Path:
    return Path(cfg.build) / "benchmarks"
