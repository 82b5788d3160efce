"""The benchmark of a training's start, on a small simulated corpus."""

from reproduce.bench import scale


def test_a_start_is_measured_on_a_corpus_that_can_be_opened(in_tmp, monkeypatch):
    monkeypatch.setattr(scale, "SHARD", 100)
    scale.simulate(in_tmp / "150", 150)
    found = scale.measure(in_tmp / "150")
    assert found.keys() == {
        "open_first", "open", "statistics", "first_batch", "resume", "peak_gb", "files_gb"
    }  # fmt: skip
    assert len(list((in_tmp / "150").glob("train-*"))) == 2
