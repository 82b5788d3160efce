"""Ways of joining towers: intervals that know seeds, corrected p-values, and what RESULTS.md says of them."""

import numpy as np
import pytest
from test_compare import result
from test_comparison import run, text_of

from reproduce.report.bake_off import BakeOff, fall
from reproduce.report.plots import draw_bake_off
from reproduce.report.records import Results
from zipper.evaluation.result_file import write_result
from zipper.evaluation.significance import compare, holm, over_seeds

WORDS = [10] * 200


def of_seeds(*rates: float, by: float = 0.0) -> list[dict]:
    """A result of a seed per rate: errors at that rate of ten words, which differ by utterance in `by`."""
    harder = by * (np.arange(200) % 3 - 1)
    return [
        {**result([round(10 * rate + x) for x in harder], WORDS), "seed": i} for i, rate in enumerate(rates)
    ]


def test_an_interval_over_seeds_is_wider_than_one_over_utterances_if_seeds_differ():
    a, b = of_seeds(0.2, 0.3, 0.4), of_seeds(0.4, 0.4, 0.4)
    one = compare(a, b)
    low, high, p = over_seeds(a, b)
    assert (round(one.low, 3), round(one.high, 3)) == (-0.1, -0.1)  # every utterance differs alike
    assert low == pytest.approx(-0.2)
    assert high == pytest.approx(0.0)
    assert p == pytest.approx(2 / 27, abs=0.02)  # 1 draw in 27 takes the worst seed three times


def test_without_differences_between_seeds_both_intervals_agree():
    a, b = of_seeds(0.3, 0.3, by=2.0), of_seeds(0.4, 0.4)
    one = compare(a, b)
    low, high, p = over_seeds(a, b)
    assert (low, high) == pytest.approx((one.low, one.high), abs=2e-3)
    assert p < 1e-3
    low, high, p = over_seeds(b, b)
    assert (low, high, p) == (0, 0, 1)


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def way(seed: int, rate: float, curve: list[tuple[int, float]], per_token: int) -> dict:
    one = run("zipper", "asr", seed, rate)
    one |= {"steps": 8, "flops_per_token": {"forward": 1, "training": per_token}}
    one["curves"]["dev/asr_wer"] = curve
    return one


@pytest.fixture
def folder(tmp_path):
    flat, falling = [(1, 0.9), (3, 0.5), (5, 0.32), (7, 0.3)], [(1, 0.9), (3, 0.8), (5, 0.7), (7, 0.35)]
    for seed in range(3):
        for name, one in {
            "zipper": way(seed, 0.1, flat, 200),
            "single-decoder": way(seed, 0.5, falling, 100),
        }.items():
            write_result(one, tmp_path / f"bake-off/{name}-seed{seed}-asr.json")
    trial = way(0, 0.4, flat, 200)
    for rate, errors in (("as-it-is", 0.5), ("half-the-rate", 0.2), ("twice-the-rate", 0.6)):
        write_result(
            {**trial, **run("zipper", "asr", 0, errors), "split": "dev"},
            tmp_path / f"bake-off-search/zipper-{rate}-seed0-asr.json",
        )
    return tmp_path


def test_the_section_says_what_the_results_do(folder):
    text = text_of("bake_off", folder)
    assert "| 10.0 % ± 0.0 | 10.0, 10.0, 10.0 | 50.0 % | 6.2 % |" in text
    # At equal FLOPs Zipper, which costs twice as much, has had half of its steps. The other's curve falls.
    found = BakeOff.of(Results(folder))
    assert found.at_equal_flops(found.ways["Zipper"][0]) == 0.5
    assert found.at_equal_flops(found.ways["Single Decoder"][0]) == 0.35
    assert fall(found.ways["Zipper"][0]) == pytest.approx(1 - 0.3 / 0.32)
    assert fall(found.ways["Single Decoder"][0]) == pytest.approx(0.5)
    assert "| Zipper | Single Decoder | -40.0 (" in text
    as_it_is, half, twice = next(line for line in text.splitlines() if "**" in line).split(" | ")[1:]
    assert half.startswith("**")
    assert half.endswith("** (0.001)")
    assert as_it_is.endswith(" (0.001)")
    assert "**" not in as_it_is + twice
    assert draw_bake_off(Results(folder), folder / "figures")[0].is_file()


def test_no_results_no_section(tmp_path):
    assert "##" not in text_of("bake_off", tmp_path)
    assert draw_bake_off(Results(tmp_path), tmp_path) == []
