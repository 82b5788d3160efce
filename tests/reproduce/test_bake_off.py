"""Ways of joining towers: intervals that know seeds, corrected p-values, and what RESULTS.md says of them."""

import numpy as np
import pytest
import scipy.stats
from test_compare import result
from test_comparison import run, text_of

from reproduce.report.bake_off import BakeOff, fall, flat
from reproduce.report.plots import draw_bake_off
from reproduce.report.records import Results
from zipper.errors import DataError
from zipper.evaluation.result_file import write_result
from zipper.evaluation.significance import compare, crossed, holm, over_seeds

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
    wide = 4.3027 * 0.1 / 3**0.5  # Student's t of two degrees of freedom: one side alone varies
    assert (low, high) == pytest.approx((-0.1 - wide, -0.1 + wide), abs=1e-5)
    assert p == pytest.approx(0.2254, abs=1e-4)  # Welch's test of the seeds' WERs


@pytest.mark.parametrize(("differ", "seeds"), [(0.0, (3, 3)), (0.3, (3, 3)), (0.3, (2, 5)), (0.1, (1, 1))])
def test_of_equal_ways_few_are_told_apart_however_much_seeds_differ(differ, seeds):
    draw = np.random.default_rng(7)
    words = draw.integers(4, 30, 120)
    hard = draw.gamma(2, 0.5, 120)  # a sentence's share of errors

    def seed() -> dict:
        rate = 0.15 * np.exp(differ * draw.standard_normal() - differ**2 / 2) if max(seeds) > 1 else 0.15
        return result([*map(int, draw.binomial(words, np.clip(rate * hard, 0, 1)))], [*map(int, words)])

    ps = [over_seeds(*([seed() for _ in range(count)] for count in seeds))[2] for _ in range(300)]
    assert np.mean([p < 0.05 for p in ps]) < 0.085  # 0.05 and 2.8 deviations of 300 trials
    assert np.mean([p < 0.0056 for p in ps]) < 0.018  # Holm's first threshold of nine


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
    level, falling = [(1, 0.9), (3, 0.5), (5, 0.32), (7, 0.3)], [(1, 0.9), (3, 0.8), (5, 0.7), (7, 0.35)]
    ways = {
        "zipper": (0.1, level, 200),
        "token-insertion": (0.3, level, 200),
        "single-decoder": (0.5, falling, 100),
    }
    for seed in range(3):
        for name, (rate, curve, per_token) in ways.items():
            one = way(seed, rate, curve, per_token)
            if name == "zipper":
                shares = {"last_word": 0.2, "continuation": 0.6}
                cloze = {test: {"before": share, "after": share} for test, share in shares.items()}
                one["alone"]["text"]["cloze"] = cloze
            else:
                one["alone"]["text"]["after"] = 6.0
            write_result(one, tmp_path / f"bake-off/{name}-seed{seed}-asr.json")
    for choice, rate, errors in (
        ("as-it-is", 2e-3, 0.5),
        ("half-the-rate", 1e-3, 0.2),
        ("twice-the-rate", 4e-3, 0.6),
    ):
        trial = {**run("zipper", "asr", 0, errors), "split": "dev"}
        trial["config"]["train"]["lr"] = rate
        write_result(trial, tmp_path / f"bake-off-search/zipper-{choice}-seed0-asr.json")
    return tmp_path


def row(text: str, start: str) -> list[str]:
    """Cells of the first row that begins with these, after the first one."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return line.strip("| ").split(" | ")[1:]


def test_the_section_says_what_the_results_do(folder):
    text = text_of("bake_off", folder)
    assert "| 10.0 % ± 0.0 | 10.0, 10.0, 10.0 | 50.0 % | 6.2 % |" in text
    # At equal FLOPs Zipper, which costs twice as much, has had half of its steps. The other's curve falls.
    found = BakeOff.of(Results(folder), "bake-off")
    assert found.at_equal_flops(found.ways["Zipper"][0]) == 0.5
    assert found.at_equal_flops(
        {**found.ways["Zipper"][0], "flops_per_token": {"training": 160}}
    ) == pytest.approx(0.41)
    assert found.at_equal_flops({**found.ways["Zipper"][0], "flops_per_token": {"training": 900}}) is None
    assert found.at_equal_flops(found.ways["Single Decoder"][0]) == 0.35
    assert fall(found.ways["Zipper"][0]) == pytest.approx(1 - 0.3 / 0.32)
    assert fall(found.ways["Single Decoder"][0]) == pytest.approx(0.5)
    assert row(text, "Zipper | Token insertion")[1:][-1] == "Zipper"
    # Zipper keeps what it knows; the other results are of a time before the cloze tests.
    assert "| 5.00, identical | 20.0 %, identical | 60.0 %, identical |" in text
    assert "| 5.00, 6.00 |  |  |" in text
    assert row(text, "Zipper | Single Decoder")[-1] == "not ranked: a curve still falls"
    low = [way(seed, 0.01, [(1, 0.9), (5, 0.012), (7, last)], 200) for seed, last in enumerate((0.006, 0.01))]
    assert [flat(low[:1]), flat(low[1:]), flat(low)] == [False, True, True]  # by 0.6, 0.2 and 0.4 points
    as_it_is, half, twice = row(text, "Zipper")
    assert (as_it_is[-8:], half[:2], half[-10:], twice[-8:]) == (" (0.002)", "**", "** (0.001)", " (0.004)")
    assert draw_bake_off(Results(folder), folder / "figures")[0].is_file()


def test_unfinished_sweeps_decide_nothing_and_shift_no_column(folder):
    (folder / "bake-off-search/zipper-as-it-is-seed0-asr.json").unlink()
    for file in folder.glob("bake-off/zipper-seed[12]*"):
        file.unlink()
    text = text_of("bake_off", folder)
    as_it_is, half, twice = row(text, "Zipper")
    assert as_it_is == ""
    assert "**" not in half + twice
    assert row(text, "Zipper | Token insertion")[1] == "1, 3"
    assert row(text, "Zipper | Token insertion")[-1] == "not decided: too few seeds"


def test_p_is_corrected_for_the_claims_of_the_terms_not_for_those_that_have_results(folder, monkeypatch):
    monkeypatch.setattr("reproduce.report.bake_off.over_seeds", lambda a, b: (-0.2, -0.1, 0.01))
    assert row(text_of("bake_off", folder), "Zipper | Token insertion")[-2:] == ["0.09", "not decided"]


def test_two_seeds_are_too_few(folder):
    (folder / "bake-off/zipper-seed2-asr.json").unlink()
    assert row(text_of("bake_off", folder), "Zipper | Token insertion")[-1] == "not decided: too few seeds"


def test_ways_on_other_terms_are_refused(folder):
    file = folder / "bake-off/zipper-seed1-asr.json"
    write_result({**way(1, 0.1, [], 200), "decoding": "beam search, 5 beams"}, file)
    with pytest.raises(DataError, match=r"differ in decoding.*beam search"):
        text_of("bake_off", folder)


def test_no_results_no_section(tmp_path):
    assert "##" not in text_of("bake_off", tmp_path)
    assert draw_bake_off(Results(tmp_path), tmp_path) == []


def test_the_variance_over_seeds_and_utterances_is_that_of_crossed_random_effects():
    """Mean squares of a two-way analysis of variance; the other side does not vary."""
    draw, seeds, count = np.random.default_rng(0), 4, 50
    words = np.full(count, 10)
    errors = 3 + draw.normal(0, 1, (seeds, 1)) + draw.normal(0, 1, count) + draw.normal(0, 1, (seeds, count))
    rates, mean = errors / 10, errors.mean() / 10
    by_seed, by_utterance = rates.mean(1) - mean, rates.mean(0) - mean
    left = rates - mean - by_seed[:, None] - by_utterance
    squares = (
        count * (by_seed**2).sum() / (seeds - 1),
        seeds * (by_utterance**2).sum() / (count - 1),
        (left**2).sum() / (seeds - 1) / (count - 1),
    )
    assert squares[2] < min(squares[:2])
    variance = (squares[0] + squares[1] - squares[2]) / (seeds * count)
    freedom = (variance * seeds * count) ** 2 / (
        squares[0] ** 2 / (seeds - 1) + squares[1] ** 2 / (count - 1)
    )
    low, high, p = crossed(errors, np.full((2, count), 2.0), words)
    width = scipy.stats.t.ppf(0.975, freedom) * variance**0.5
    assert (low, high) == pytest.approx((mean - 0.2 - width, mean - 0.2 + width))
    assert p == pytest.approx(2 * scipy.stats.t.sf((mean - 0.2) / variance**0.5, freedom))


def test_a_variance_is_never_less_than_that_of_seeds_or_of_utterances():
    """Where seeds differ in utterances alone, what both hold would take more away than there is."""
    words, apart = np.full(40, 10), np.tile([1.0, -1.0], 20)
    errors = np.stack([3 + apart, 3 - apart]) + np.array([[0.01], [-0.01]])
    low, high, _ = crossed(errors, np.full((2, 40), 2.0), words)
    assert high - low >= 2 * scipy.stats.t.ppf(0.975, 1) * 0.001 - 1e-9
