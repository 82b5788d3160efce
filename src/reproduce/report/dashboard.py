"""`zipper dashboard`: creates a W&B workspace that compares all runs of a project."""

import re
from pathlib import Path
from typing import Any

import wandb

from zipper.errors import ConfigError
from zipper.evaluation.metrics import read_metrics

try:
    from wandb_workspaces import workspaces as ws
    from wandb_workspaces.reports import v2 as wr
except ImportError as error:
    raise ConfigError(f"The dashboard needs wandb-workspaces ({error}). Run `make dashboard`.") from error

STEP = "trainer/global_step"
GATES = {
    "Text attends to speech: attention, tanh(a)": r"gate/zips\..*text_from_speech\.attention_gate",
    "Text attends to speech: feed-forward, tanh(b)": r"gate/zips\..*text_from_speech\.feed_forward_gate",
    "Speech attends to text: attention, tanh(a)": r"gate/zips\..*speech_from_text\.attention_gate",
    "Speech attends to text: feed-forward, tanh(b)": r"gate/zips\..*speech_from_text\.feed_forward_gate",
    "Input projections": r"gate/projections\..*",
}


def workspace(entity: str, project: str) -> ws.Workspace:
    """Workspace with sections for training, zips and gates, ASR, TTS, throughput and comparison."""
    # The seeds of a point of a sweep are one group.
    by_group: Any = {
        "groupby": wr.Config("log.group"), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax",
    }  # fmt: skip
    return ws.Workspace(
        entity=entity, project=project, name="Zipper", sections=[
            _section("Training", [
                _lines("Loss (nats per scored token)", "train/loss", "dev/loss"),
                _lines("Loss of text", "train/loss_text", "dev/loss_text"),
                _lines("Loss of speech", "train/loss_speech", "dev/loss_speech"),
                _lines("Gradient norm, and its maximum", "train/grad_norm", "train/grad_norm_max"),
                wr.LinePlot(title="Learning rates", x=STEP, metric_regex="lr-.*"),
            ]),
            _section("Zips and gates", [
                *[wr.LinePlot(title=title, x=STEP, metric_regex=keys) for title, keys in GATES.items()],
                _pictures("Cross-attention maps", "attention-text-speech", "attention-speech-text", "gates"),
            ]),
            _section("ASR", [
                _lines("WER on dev", "dev/asr_wer"),
                wr.BarPlot(title="WER on test", metrics=["test/asr/wer"]),
                wr.BarPlot(title="WER on test, mismatched audio", metrics=["test/asr/mismatched_wer"]),
                wr.WeavePanelSummaryTable(table_name="test/recognised"),
            ]),
            _section("TTS", [
                _lines("WER on dev, scored by ASR", "dev/tts_wer"),
                wr.BarPlot(title="WER on test vs reference", metrics=["test/tts/wer"]),
                wr.BarPlot(title="WER on test vs resynthesis", metrics=["test/tts/target_wer"]),
                wr.BarPlot(title="Topline: codec resynthesis", metrics=["test/tts/resynthesis_wer"]),
                wr.WeavePanelSummaryTable(table_name="test/spoken"),
                _pictures("WER by length", "wer-by-length"),
            ]),
            _section("Throughput", [
                _lines("Units per second", "train/units_per_second"),
                _lines("Share of padding", "train/padding"),
            ]),
            _section("Comparison", [
                wr.BarPlot(title="ASR, mean over seeds", metrics=["test/asr/wer"], **by_group),
                wr.BarPlot(title="TTS, mean over seeds", metrics=["test/tts/wer"], **by_group),
                wr.LinePlot(title="WER on dev, mean over seeds", x=STEP, y=["dev/wer"], **by_group),
                wr.RunComparer(diff_only=True),
            ]),
        ],
    )  # fmt: skip


def _section(name: str, panels: list[Any]) -> ws.Section:
    return ws.Section(name=name, panels=panels, is_open=True)


def _lines(title: str, *metrics: str) -> wr.LinePlot:
    return wr.LinePlot(title=title, x=STEP, y=list(metrics))


def _pictures(title: str, *figures: str) -> wr.MediaBrowser:
    return wr.MediaBrowser(title=title, media_keys=[f"figures/{name}" for name in figures])


def metrics_of(board: ws.Workspace) -> list[str]:
    """Metrics of all panels, as regular expressions."""
    found = []
    for section in board.sections:
        for panel in section.panels:
            if isinstance(panel, wr.LinePlot) and panel.metric_regex:
                found.append(panel.metric_regex)
            drawn = getattr(panel, "y", None) or getattr(panel, "metrics", None) or []
            found += [re.escape(one if isinstance(one, str) else one.name) for one in drawn]
    return found


def dashboard(entity: str, project: str, runs: Path) -> None:
    """Saves the workspace to the user's project; without a W&B key, validates it and prints instructions.

    runs: folder of local runs, used to report panels without data.
    """
    board = workspace(entity or "you", project)
    board._to_model()  # validates the workspace
    logged = {name for run in sorted(runs.glob("*")) if run.is_dir() for name in read_metrics(run)}
    empty = [one for one in metrics_of(board) if not any(re.fullmatch(one, name) for name in logged)]
    for section in board.sections:
        print(f"{section.name:<15} {len(section.panels)} panels")
    if logged and empty:
        lacking = ", ".join(sorted({*empty})).replace("\\", "")
        print(f"no run in {runs} has {lacking}: these panels stay empty")
    if not wandb.login(prompt=False):
        print(
            "\nThe dashboard is valid, but there is no W&B key. Run `wandb login`, upload the runs with "
            f"`wandb sync {runs}/NAME/wandb/offline-run-*`, and run this command again with --entity and "
            "--project."
        )
        return
    if not entity:
        board.entity = wandb.Api().default_entity
    board.save()  # prints the URL
