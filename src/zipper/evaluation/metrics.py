"""Reader of the metrics.csv files of a run."""

import csv
from pathlib import Path

Series = list[tuple[int, float]]  # (step, value), by step


def read_metrics(run: Path) -> dict[str, Series]:
    """All metrics of a run folder. A resumed run has several files."""
    parts = sorted(run.glob("metrics-*.csv"), key=lambda file: int(file.stem.split("-")[1]))
    found: dict[str, dict[int, float]] = {}
    last = run / "metrics.csv"  # absent if a run was resumed after its last step
    for file in [*parts, *([last] if last.exists() else [])]:  # later files override repeated steps
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                for name, value in row.items():
                    if value and name not in ("step", "epoch"):
                        found.setdefault(name, {})[int(row["step"])] = float(value)
    return {name: sorted(values.items()) for name, values in found.items()}


def curves(run: Path) -> dict[str, Series]:
    """Series for a comparison: dev WER and loss, training loss (means of 10), every fifth gate value."""
    metrics = read_metrics(run)
    found: dict[str, Series] = {}
    for name in ("dev/asr_wer", "dev/tts_wer", "dev/loss_text", "dev/loss_speech"):
        if name in metrics:
            found[name] = metrics[name]
    for name in ("train/loss_text", "train/loss_speech"):
        found[name] = [(step, round(value, 4)) for step, value in smooth(metrics.get(name, []))[9::10]]
    gates = {name: series for name, series in metrics.items() if name.startswith("gate/")}
    return found | {name: [(step, round(value, 4)) for step, value in gates[name][4::5]] for name in gates}


def smooth(series: Series, window: int = 10) -> Series:
    """Moving average over the last `window` points, or fewer at the start."""
    out = []
    for i in range(1, len(series) + 1):
        part = series[max(i - window, 0) : i]
        out.append((part[-1][0], sum(value for _, value in part) / len(part)))
    return out
