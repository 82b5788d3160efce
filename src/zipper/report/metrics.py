"""metrics.csv of a run, read back: one series a metric."""

import csv
from pathlib import Path

Series = list[tuple[int, float]]  # (step, value), in the order of steps


def read_metrics(run: Path) -> dict[str, Series]:
    """All metrics of a run folder; those of a run that was resumed stand in several files."""
    parts = sorted(run.glob("metrics-*.csv"), key=lambda file: int(file.stem.split("-")[1]))
    found: dict[str, dict[int, float]] = {}
    last = run / "metrics.csv"  # absent where a run was taken up again with nothing left to train
    for file in [*parts, *([last] if last.exists() else [])]:  # what was done again after a resume wins
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines):
                for name, value in row.items():
                    if value and name not in ("step", "epoch"):
                        found.setdefault(name, {})[int(row["step"])] = float(value)
    return {name: sorted(values.items()) for name, values in found.items()}
