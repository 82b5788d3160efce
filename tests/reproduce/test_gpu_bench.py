"""`gpu` in miniature, on whatever device there is."""

import json

import pytest

from reproduce.bench import generation, gpu
from zipper.cli import main


@pytest.mark.slow
def test_both_stages_are_measured_and_written(in_tmp, monkeypatch):
    for module in (generation, gpu):
        monkeypatch.setattr(module, "FRAMES", 20)
    main(["gpu", "--small", "--out", "out", "--tokens", "1300", "--turns", "1", "--batches", "1", "2"])
    for stage, rows in (("throughput", {"eager"}), ("decode", {"batch 1", "batch 2"})):
        result = json.loads((in_tmp / "out" / f"{stage}.json").read_text(encoding="utf-8"))
        assert {*result["figures"]} == {"135M + 128M", "362M + 125M"}
        for found in result["figures"].values():
            assert rows <= {*found}
            measured = [
                value for row in rows for value in found[row].values() if isinstance(value, float | int)
            ]
            assert min(measured) > 0
