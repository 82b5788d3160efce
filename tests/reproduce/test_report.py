"""Figures, summary, clock, and that RESULTS.md is what the result files say."""

import csv
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from reproduce import ROOT
from reproduce.bench.memory import pss_of_tree, watch
from reproduce.report import dashboard as board
from reproduce.report.dashboard import dashboard
from reproduce.report.plots import PAIRS, draw_shipped
from reproduce.report.records import Results
from reproduce.report.results import render
from zipper.clock import Clock
from zipper.evaluation.attention import diagonal
from zipper.evaluation.figures import spectrograms
from zipper.evaluation.metrics import read_metrics, smooth


def test_results_md_is_what_the_result_files_say():
    report = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    assert report == render(Results(ROOT / "results")), "run `make report`"


def test_metrics_of_a_resumed_run_are_one_series(tmp_path):
    def write(name: str, rows: list[tuple[int, str]]) -> None:
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(["epoch", "step", "a", "b"])
            out.writerows([[0, step, a, ""] for step, a in rows])

    write("metrics-1.csv", [(1, "1.0"), (3, "3.0")])
    write("metrics-2.csv", [(3, "3.5"), (10, "4.0")])
    write("metrics.csv", [(12, "5.0")])
    assert read_metrics(tmp_path) == {"a": [(1, 1.0), (3, 3.5), (10, 4.0), (12, 5.0)]}


@pytest.mark.rendered
def test_a_title_may_hold_dollars(tmp_path):
    title = "it cost $20% of $5"
    assert spectrograms({"model": torch.randn(4000)}, 16000, title, tmp_path / "x.png").is_file()


def test_smoothing_keeps_a_constant_and_begins_at_the_beginning():
    assert smooth([(step, 2.0) for step in range(5)], 3) == [(step, 2.0) for step in range(5)]
    assert smooth([(0, 0.0), (1, 2.0), (2, 4.0), (3, 6.0)], 2) == [(0, 0.0), (1, 1.0), (2, 3.0), (3, 5.0)]


def test_every_picture_and_file_that_the_report_names_is_there():
    named = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "RESULTS.md").read_text(encoding="utf-8"))
    assert any(name.endswith((".svg", ".png")) for name in named)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_diagonal_is_walked_by_who_looks_ever_further():
    steps = torch.eye(6).repeat_interleave(2, dim=1) / 2  # each row looks at the next two places
    assert diagonal(steps) == pytest.approx(1)
    assert diagonal(steps.flip(0)) == pytest.approx(-1)
    assert abs(diagonal(steps[[2, 5, 0, 3, 1, 4]])) < 0.5


def test_the_shipped_model_shows_where_it_looks_both_ways(tmp_path):
    files = draw_shipped(Results(ROOT / "results"), tmp_path)
    assert [file.name for file in files] == [f"attention-{a}-{b}.svg" for a, b in PAIRS]
    assert draw_shipped(Results(tmp_path), tmp_path) == []


def test_the_clock_adds_up_and_counts_a_stage_that_fails(monkeypatch):
    ticks = iter([0.0, 2.0, 10.0, 13.0, 20.0, 20.5])
    monkeypatch.setattr("time.monotonic", lambda: next(ticks))
    clock = Clock()
    for name in ("x", "x", "y"):
        with pytest.raises(KeyError), clock.stage(name):
            raise KeyError
    assert clock.seconds == {"x": 5.0, "y": 0.5}


def test_memory_counts_this_process_and_its_children(tmp_path):
    alone = pss_of_tree()
    assert alone > 10e6
    held = "x = bytearray(b'1' * 50_000_000); import time; time.sleep(1.5)"
    child = subprocess.Popen([sys.executable, "-c", held])
    grown = 0
    while child.poll() is None:
        grown = max(grown, pss_of_tree() - alone)
    assert grown > 45e6
    measured = watch([sys.executable, "-c", held])
    assert 50 <= float(measured["peak_pss_mb"]) < 500
    with pytest.raises(subprocess.CalledProcessError):
        watch([sys.executable, "-c", "raise SystemExit(3)"])


def test_the_dashboard_says_which_panels_no_run_fills(in_tmp, capsys, monkeypatch):
    monkeypatch.setattr("wandb.login", lambda **_: False)
    folder = Path("build/runs/some")
    folder.mkdir(parents=True)
    metrics = "step,train/loss,gate/zips.0.text_from_speech.attention_gate\n1,2,3\n"
    (folder / "metrics.csv").write_text(metrics, encoding="utf-8")
    dashboard("", "zipper", Path("build/runs"))
    told = capsys.readouterr().out
    empty = re.search(r"no run in build/runs has (.*): these panels stay empty", told).group(1).split(", ")
    assert {"train/units_per_second", "dev/asr_wer", "test/tts/wer"} < {*empty}
    assert not {"train/loss", "gate/zips..*text_from_speech.attention_gate"} & {*empty}
    saved = []
    monkeypatch.setattr("wandb.login", lambda **_: True)
    monkeypatch.setattr("wandb.Api", lambda: SimpleNamespace(default_entity="me"))
    monkeypatch.setattr(board.ws.Workspace, "save", lambda self: saved.append(self))
    dashboard("", "mine", Path("build/runs"))
    assert (saved[0].entity, saved[0].project) == ("me", "mine")


def test_attention_is_diagonal_by_its_mean_position():
    """However flat it is."""
    at = torch.arange(30.0)
    flat = torch.stack(
        [(-((at - 5 - 2 * i) / 20).square()).exp() + 0.3 * (at == 0) for i in range(10)]
    ).double()
    assert diagonal(flat / flat.sum(1, keepdim=True)) == pytest.approx(1)
    assert diagonal(torch.eye(5).flip(0)) == pytest.approx(-1)
