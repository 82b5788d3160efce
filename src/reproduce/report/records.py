"""Result files of a folder in one data frame, and the selections that tables, claims and figures share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from reproduce import ROOT
from reproduce.sweep_file import Point, Sweep, differences, read_sweep
from zipper.config import asset, load_config
from zipper.errors import DataError
from zipper.evaluation.result_archive import result_files
from zipper.evaluation.result_file import Result, UtteranceResult, read_result

Runs = dict[str, dict[str, list[Result]]]  # model, task: results by seed
Found = dict[tuple[str, ...], dict[str, list[Result]]]  # labels of a point of a sweep, task: results by seed

SWEEPS = ROOT / "configs" / "ablations"
TASKS = {"asr": "ASR", "tts": "TTS, scored by ASR"}
CHAINS = ("tts", "speech-text-speech", "asr", "text-speech-text")
AUDIO = Path("samples") / "test-00000-original.flac"
CHOICES = "choices"  # sweep of the training objective for each model
SAID: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text(encoding="utf-8"))
NAMES: dict[str, str] = SAID["names"]  # models of the comparison


@dataclass(frozen=True)
class Record:
    """Row of the data frame: one result file. result: its content, with utterances if it has a WER."""

    folder: str  # relative to results/; "." for results/ itself
    file: str  # name without .json
    run: str  # name without the task
    task: str  # as in file names: speech-text-speech
    split: str
    result: Result


def _read(folder: Path, file: Path) -> Record:
    result = read_result(file, utterances=False)
    if "wer" in result:
        result = read_result(file)
    task, split = result.get("task", "").replace(">", "-"), result.get("split", "")
    where = file.parent.relative_to(folder).as_posix()
    return Record(where, file.stem, file.stem.removesuffix(f"-{task}"), task, split, result)


class Results:
    """Result files of a folder (results/), read once, and the sweeps that the report shows."""

    def __init__(self, folder: Path, sweeps: Sequence[Sweep] | None = None) -> None:
        self.folder = folder
        self.sweeps = sweeps or [read_sweep(one) for one in sorted(SWEEPS.rglob("*.yaml"))]
        rows = [vars(_read(folder, file)) for file in result_files(folder)]  # pandas would copy them deeply
        self.frame = pd.DataFrame(rows, columns=[one.name for one in fields(Record)])

    def select(self, **equal: str) -> pd.DataFrame:
        """Rows with the given values, in the order of file names."""
        frame = self.frame
        for column, value in equal.items():
            frame = frame[frame[column] == value]
        return frame

    def get(self, file: str, folder: str = ".") -> Result:
        """Content of one file; empty without it."""
        found = self.select(folder=folder, file=file)
        return found.result.iloc[0] if len(found) else {}

    def tasks(self, folder: str, run: str) -> dict[str, Result]:
        """Results of a run by task."""
        found = self.select(folder=folder, run=run)
        return dict(zip(found.task, found.result, strict=True))

    def compared(self) -> Runs:
        """Results of the comparison by model and task, in the order of seeds; of the seeds that all models
        have, so that means and paired differences are of the same runs."""
        rows = self.select(folder="compare")
        runs: Runs = {}
        for model in NAMES:
            found = rows[rows.run.str.fullmatch(rf"{model}-seed\d+")]
            if len(found):
                runs[model] = {task: [*part.result] for task, part in found.groupby("task")}
        for task in TASKS:
            seeds = [{one["seed"] for one in tasks[task]} for tasks in runs.values() if task in tasks]
            for tasks in runs.values():
                if task in tasks:
                    tasks[task] = [one for one in tasks[task] if all(one["seed"] in of for of in seeds)]
        return runs

    def papers(self) -> Runs:
        """Longer runs of Zipper with the paper's settings, and of the Single Decoder."""
        longer = {
            model: self.tasks("longer", name)
            for model, name in (("single-decoder",) * 2, ("zipper", "paper"))
        }
        return {
            model: {task: [one] for task, one in found.items()} for model, found in longer.items() if found
        }

    def longer(self) -> dict[str, dict[str, Result]]:
        """Longer runs with both tasks by name; empty with fewer than two, as `joint` has its own section."""
        runs = {name: self.tasks("." if name == "joint" else "longer", name) for name in SAID["longer"]}
        found = {name: tasks for name, tasks in runs.items() if tasks.keys() >= TASKS.keys()}
        return found if len(found) > 1 else {}

    def chains(self) -> dict[str, dict[str, Result]]:
        """Results of models with all chains, by task."""
        runs = {run: self.tasks("chains", run) for run in self.select(folder="chains", task="tts").run}
        return {run: tasks for run, tasks in runs.items() if tasks.keys() >= {*CHAINS}}

    def shipped(self) -> UtteranceResult | None:
        """First test utterance of the shipped model; None if its files are missing."""
        found = self.get("joint-asr").get("per_utterance", [])
        return found[0] if found and (self.folder / AUDIO).is_file() else None

    def sweep(self, sweep: Sweep) -> Found:
        """Results of a sweep in results/; points without a result are left out."""
        found: Found = {}
        for point, task, result in self._points(sweep):
            found.setdefault(tuple(point.labels.values()), {}).setdefault(task, []).append(result)
        return found

    def check_sweeps(self) -> None:
        """Raises DataError if a result has other settings than its point of a shipped sweep."""
        files = [file for folder in (SWEEPS, SWEEPS.with_name("sweeps")) for file in folder.rglob("*.yaml")]
        for sweep in map(read_sweep, sorted(files)):
            for point, _, result in self._points(sweep):
                if apart := differences(result["config"], load_config(asset(point.config), point.overrides)):
                    raise DataError(
                        f"{sweep.file}: the result of {point.name} is of another run ({'; '.join(apart)}). "
                        "Run it again, or give the sweep another folder of results."
                    )

    def _points(self, sweep: Sweep) -> Iterator[tuple[Point, str, Result]]:
        """Results of a sweep with their points and tasks, in its order."""
        folder = sweep.result_file(sweep.runs()[0]).parent
        if not folder.is_relative_to("results"):
            return
        rows = self.select(folder=folder.relative_to("results").as_posix())
        own = dict(zip(zip(rows.run, rows.task, strict=True), rows.result, strict=True))
        for point in sweep.runs():
            for task in TASKS:
                if (point.name, task) in own:
                    yield point, task, own[point.name, task]

    def sweep_named(self, name: str) -> Found:
        """Results of the sweep with a name."""
        return next((self.sweep(one) for one in self.sweeps if one.name == name), {})


def percent(share: float, digits: int = 1) -> str:
    """Formats a share as percent: 0.0423 -> 4.2 %."""
    return f"{100 * share:.{digits}f} %"
