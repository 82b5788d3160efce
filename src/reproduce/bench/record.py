"""Result file of a benchmark, and its section of RESULTS.md for the terminal."""

from pathlib import Path
from typing import Any

import torch

from reproduce.report.records import Results
from reproduce.report.results import section
from zipper.config import RunConfig, to_dict
from zipper.evaluation.result import versions
from zipper.evaluation.result_file import write_result


def record(cfg: RunConfig, task: str, command: str, commit: str, content: dict[str, Any]) -> dict[str, Any]:
    """Result with its origin, written to build/benchmarks/ and cfg.result. content: figures and settings."""
    result = {
        "name": cfg.name, "task": task, "seed": cfg.seed, "commit": commit, "command": command,
        "threads": torch.get_num_threads(), "versions": versions(), "config": to_dict(cfg), **content,
    }  # fmt: skip
    file = _folder(cfg) / f"{task.removeprefix('bench-')}.json"
    write_result(result, file, *([Path(cfg.result)] if cfg.result else []))
    print(f"-> {file}")
    return result


def show(cfg: RunConfig, name: str) -> None:
    """Prints a section of RESULTS.md, from the files in build/benchmarks/."""
    print(section(name, Results(_folder(cfg))))


def _folder(cfg: RunConfig) -> Path:
    return Path(cfg.build) / "benchmarks"
