"""What a process holds of a sharded model, counted without memory."""

from dataclasses import replace

import pytest

from reproduce.bench import shards
from zipper.config import TowerConfig

SMALL = TowerConfig(4, 16, 2, 2, 32, vocabulary=64, codebooks=1, specials=[0, 1], interval=2)


@pytest.fixture
def towers(monkeypatch):
    monkeypatch.setattr(shards, "FLOAT", 10**9)  # so that a gigabyte is a weight
    monkeypatch.setattr(shards, "GRADIENT", 10**9)
    monkeypatch.setattr(shards, "MOMENTS", 0)
    return {"text": SMALL, "speech": replace(SMALL, width=24)}


def test_one_process_holds_all_and_four_a_quarter(towers):
    alone, four = shards.count(towers, 1), shards.count(towers, 4)
    assert alone["weights_gb"] == alone["gradients_and_moments_gb"] == alone["parameters"]
    assert alone["weights_gb"] / 4 <= four["weights_gb"] < 1.3 * alone["weights_gb"] / 4
    assert alone["checkpoint_gb"] == alone["parameters"]
    assert four["checkpoint_gb"] == four["weights_gb"]  # moments take no bytes here
    assert four["largest_unit_gb"] == alone["largest_unit_gb"] < alone["parameters"] / 2


def test_a_frozen_tower_has_no_gradients(towers):
    towers["text"] = replace(towers["text"], frozen=True)
    found = shards.count(towers, 2)
    assert 0 < found["gradients_and_moments_gb"] < found["weights_gb"]
