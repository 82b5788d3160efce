"""Several samplings of an answer."""

from statistics import fmean, stdev
from types import SimpleNamespace

import pytest

from conftest import JOINT, config, module_for
from zipper.evaluation.result import Origin
from zipper.evaluation.task import evaluate_task
from zipper.modalities.scoring import Score
from zipper.models.resolve import resolve


def test_samplings_have_seeds_of_their_own_and_the_best_is_chosen_by_utterance(prepared, monkeypatch):
    words = [*JOINT, "decode.speech.temperature=1.0", "evaluate.samplings=3", "seed=5"]
    module, cfg, seeds = module_for(prepared, *words), resolve(config(*words), prepared), []

    def errors(at: int, seed: int) -> int:
        return at * seed % 4

    def answers(*given, seed: int, **how):
        seeds.append(seed)
        rows = given[4]
        return [([None], Score(r["id"], errors(i, seed), 4, 1.0, "", "", "stop")) for i, r in enumerate(rows)]

    monkeypatch.setattr("zipper.evaluation.task.answer_rows", answers)
    scorer = SimpleNamespace(costly=True, identity={}, describe=lambda *_: {})
    origin = Origin("x", "y", 0, 0.0, 0)
    result, _ = evaluate_task("tts", module.model, prepared, module.statistics, cfg, origin, scorer)
    assert seeds == [5, 6, 7]
    rates = [sum(errors(at, seed) for at in range(6)) / 24 for seed in seeds]
    best = sum(min(errors(at, seed) for seed in seeds) for at in range(6)) / 24
    found = result["samplings"]
    assert found["wer"] == pytest.approx(rates, abs=1e-6)
    assert (found["mean"], found["deviation"]) == pytest.approx((fmean(rates), stdev(rates)), abs=1e-6)
    assert found["best_of_wer"] == pytest.approx(best, abs=1e-6)
    assert result["wer"] == pytest.approx(rates[0], abs=1e-6)
