"""The campaign of `make faults`, in short: three faults in real processes, and that it would see a loss."""

import random
from pathlib import Path

import pytest

from reproduce import ROOT
from reproduce.bench import faults as faults_module
from reproduce.bench.faults import FAULTS, Campaign, damage_file, faults
from zipper.config import load_config

pytestmark = pytest.mark.slow

SHORT = ("full disk", "SIGKILL, a checkpoint cut off", "SIGKILL, a shard cut off")


def test_three_faults_are_recovered_from_without_a_difference(in_tmp, monkeypatch, capsys):
    chosen = [next(fault for fault in FAULTS if fault.name == name) for name in SHORT]
    monkeypatch.setattr(faults_module, "FAULTS", chosen)
    monkeypatch.setattr(faults_module, "CHAIN", 1)
    ends = Campaign.differences
    monkeypatch.setattr(Campaign, "differences", lambda *args: seen.append(ends(*args)) or seen[-1])
    seen: list[list[str]] = []
    config = ROOT / "configs" / "faults.yaml"
    result = faults(load_config(config, ["result=faults.json"]), config, len(SHORT), 2, "x")
    assert result["faults"] == [one | {"wrong": []} for one in result["faults"]]
    assert (result["times"], result["recovered"], result["identical"], result["lost"]) == (3, 3, 3, 0)
    assert len(seen) >= 3
    assert Path("faults.json").is_file()
    assert "| SIGKILL, a shard cut off | 1 | 1 | 1 | 0 |" in capsys.readouterr().out
    # The comparison is one: what has been harmed differs.
    folder = Path("build/faults/unbroken-train").resolve()
    campaign = Campaign(config, folder.parent, 0)
    campaign.expected["train"] = faults_module.contents(folder, "train")
    assert ends(campaign, folder, "train") == []
    result_file = folder / "runs" / "faults" / "asr.json"
    worse = result_file.read_text(encoding="utf-8").replace('"wer": ', '"wer": 1')
    result_file.write_text(worse, encoding="utf-8")
    (folder / "runs" / "faults" / "checkpoints" / "best.ckpt").unlink()
    assert ends(campaign, folder, "train") == ["asr.json", "best.ckpt"]
    assert faults_module.damaged_checkpoints(folder) == []
    damage_file(chosen[1], folder, random.Random(0))
    assert faults_module.damaged_checkpoints(folder)
