"""Zipper and Single Decoder on the same footing: same examples, fair tests, what fusing costs each."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from conftest import config
from zipper.cli import main
from zipper.config import load_config
from zipper.data.statistics import measure_statistics
from zipper.errors import DataError
from zipper.evaluation.result_archive import pack
from zipper.evaluation.result_file import write_result
from zipper.evaluation.significance import (
    RESAMPLES,
    bootstrap,
    compare,
    crossed,
    describe,
    different_data,
    over_seeds,
    p_value,
)
from zipper.models.pretrained import save_tower
from zipper.models.resolve import resolve
from zipper.training import run as run_module
from zipper.training.data import ZipperData
from zipper.training.run import train

JOINT = ["train.tasks={asr: 1, tts: 1.26}", "train.tokens=300"]
SINGLE = [*JOINT, "model.kind=single_decoder", "model.towers.speech.width=16"]
ROOT = Path(__file__).parents[2]


def result(errors: list[int], words: list[int], **changes) -> dict:
    rows = [
        {"id": f"u{i}", "reference": "a " * w, "errors": e, "words": w}
        for i, (e, w) in enumerate(zip(errors, words, strict=True))
    ]
    whole = {"name": "x", "task": "asr", "split": "test", "data_fingerprint": "d", "utterances": len(rows)}
    return {**whole, **changes, "per_utterance": rows}


def some(count: int, seed: int, rate: float) -> tuple[list[int], list[int]]:
    draw = np.random.default_rng(seed)
    words = np.random.default_rng(0).integers(3, 12, count)
    return draw.binomial(words, rate).tolist(), words.tolist()


def test_wilcoxon_equals_a_slow_loop_and_scipy_with_equal_utterances_left_out():
    (a, words), (b, _) = some(60, 1, 0.2), some(60, 2, 0.35)
    found = compare([result(a, words)], [result(b, words)])
    rates = [(x - y) / w for x, y, w in zip(a, b, words, strict=True) if x != y]
    sizes = sorted(abs(one) for one in rates)
    plus = minus = 0.0
    for one in rates:  # mean rank of those of one size
        rank = np.mean([i + 1 for i, size in enumerate(sizes) if np.isclose(size, abs(one), atol=1e-12)])
        plus, minus = plus + rank * (one > 0), minus + rank * (one < 0)
    slow = scipy.stats.wilcoxon((np.array(a) - b) / words)
    assert slow.statistic == pytest.approx(min(plus, minus))
    assert found.p == pytest.approx(slow.pvalue)
    assert found.different == len(rates) < found.utterances == 60
    assert found.better == sum(one < 0 for one in rates)


@pytest.mark.parametrize("different", [1, 4, 5, 13])
def test_p_is_exact_where_few_utterances_differ(different):
    words, one, other = [10] * 400, [0] * 400, [0] * 400
    other[:different] = range(1, different + 1) if different > 5 else [1] * different
    found = compare([result(one, words)], [result(other, words)])
    assert found.different == different
    assert found.p == pytest.approx(2 / 2**different)  # both signs of all differences alike
    assert found.verdict() == ("better" if different > 5 else "open")


def test_speakers_are_resampled_whole():
    """One speaker who is much better is no evidence for others, however many utterances there are."""
    a, b = [0] * 60 + [5] * 60, [8] * 60 + [5] * 60
    sides = [result(errors, [8] * 120) for errors in (a, b)]
    for side in sides:
        for i, one in enumerate(side["per_utterance"]):
            one["speaker"] = f"s{i // 60}" if i < 60 else f"s{i // 20}"
    found = compare([sides[0]], [sides[1]])
    assert found.high < -0.3
    assert (found.speakers, found.speakers_better) == (4, 1)
    assert found.speakers_low == pytest.approx(-0.9)  # three of the four drawn are the better one
    assert found.speakers_high == 0
    assert "1 of 4 speakers" in describe(found, "a", "b")
    assert compare([result(a, [8] * 120)], [result(b, [8] * 120)]).speakers == 0


def test_the_bootstrap_equals_scipys_and_draws_utterances_in_pairs():
    (a, words), (b, _) = some(80, 3, 0.2), some(80, 4, 0.3)
    errors, words = np.array(a) - np.array(b), np.array(words)
    low, high = bootstrap(errors, words)
    theirs = scipy.stats.bootstrap(
        (errors, words), lambda e, w, axis: e.sum(axis) / w.sum(axis), paired=True, vectorized=True,
        n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(5),
    ).confidence_interval  # fmt: skip
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.004)
    found = compare([result(a, list(words))], [result(b, list(words))])
    assert found.difference == pytest.approx(errors.sum() / words.sum())
    assert found.low <= found.difference <= found.high


def test_a_few_runaways_do_not_turn_a_verdict_round():
    """A is better by one error on most utterances, and runs away on some: neither better nor worse."""
    a, b = [1] * 180 + [3] * 100 + [40] * 20, [2] * 180 + [3] * 100 + [2] * 20
    found = compare([result(a, [8] * 300)], [result(b, [8] * 300)])
    assert found.p < 1e-4
    assert found.difference > 0 > found.leaning
    assert found.verdict() == "open"
    clear = compare([result(b[:180], [8] * 180)], [result([5] * 180, [8] * 180)])
    assert clear.verdict() == "better"
    assert compare([result([5] * 180, [8] * 180)], [result(b[:180], [8] * 180)]).verdict() == "worse"


def test_utterances_with_other_targets_are_left_out_and_many_of_them_refused():
    sides = [result(*some(20, seed, 0.3)) for seed in (1, 2)]
    for side in sides:
        for one in side["per_utterance"]:
            one.update(target="x", target_errors=one["errors"], target_words=one["words"])
    assert compare([sides[0]], [sides[1]], "target_errors").left_out == 0
    sides[1]["per_utterance"][3].update(target="y", target_errors=99)  # judged on another machine
    found = compare([sides[0]], [sides[1]], "target_errors")
    assert (found.left_out, found.utterances) == (1, 19)
    shorter = [{**one, "per_utterance": one["per_utterance"][:3] + one["per_utterance"][4:]} for one in sides]
    alone = compare([shorter[0]], [shorter[1]], "target_errors")
    assert (found.a, found.b, found.low, found.p) == (alone.a, alone.b, alone.low, alone.p)
    assert "left out: 1, whose targets differ" in describe(found, "a", "b")
    assert compare([sides[0]], [sides[1]]).left_out == 0
    for one in sides[1]["per_utterance"][:3]:
        one["target"] = "y"
    with pytest.raises(DataError, match=r"targets of 4 of 20 utterances differ"):
        compare([sides[0]], [sides[1]], "target_errors")


def test_seeds_are_averaged_utterance_by_utterance():
    (a, words), (b, _), (c, _) = some(40, 1, 0.2), some(40, 2, 0.3), some(40, 3, 0.3)
    several = compare([result(a, words), result(b, words)], [result(c, words)])
    assert several.a == pytest.approx((sum(a) + sum(b)) / 2 / sum(words))
    assert several.utterances == 40


def test_two_equal_results_are_not_told_apart():
    a, words = some(20, 1, 0.2)
    found = compare([result(a, words)], [result(a, words)])
    assert (found.p, found.difference, found.verdict()) == (1.0, 0.0, "open")


@pytest.mark.parametrize(
    "change",
    [{"data_fingerprint": "e"}, {"split": "dev"}, {"task": "tts"}, {"asr_scorer": "j"}, {"normaliser": "n"}],
)
def test_results_of_other_data_split_or_scorer_are_refused(change):
    a, words = some(20, 1, 0.2)
    with pytest.raises(DataError, match=next(iter(change))):
        compare([result(a, words)], [result(a, words, **change)])


def test_the_command_compares_files_and_patterns(tmp_path, capsys):
    for seed in (1, 2):
        write_result(result(*some(50, seed, 0.1)), tmp_path / f"a-{seed}.json")
    # As it was written before, the utterances inside.
    (tmp_path / "b.json").write_text(json.dumps(result(*some(50, 9, 0.5))), encoding="utf-8")
    main(["compare", f"{tmp_path}/a-*.json", f"{tmp_path}/b.json"])
    out = capsys.readouterr().out
    assert "A is better, p < 0.0001" in out
    assert "50 utterances" in out
    pack(tmp_path.glob("*"))
    main(["compare", f"{tmp_path}/a-*.json", f"{tmp_path}/b.json"])
    assert capsys.readouterr().out == out


def test_zipper_and_single_decoder_see_the_same_examples_in_the_same_order(dataset):
    """By the settings that `make compare` uses, at tiny sizes."""
    orders = []
    for words in (JOINT, SINGLE):
        data = ZipperData.of(resolve(config(*words), dataset), dataset)
        steps = [data.steps.batch(step, 0, data.codebooks) for step in range(30)]
        orders.append([(batch.ids, batch.total) for batch in steps])
    assert orders[0] == orders[1]


def test_the_four_configs_differ_in_the_model_and_what_was_searched_for_it_alone():
    files = sorted((ROOT / "configs").glob("compare-*.yaml"))
    configs = [load_config(file) for file in files]
    assert len(configs) == 4
    for cfg in configs[1:]:
        for key in ("seed", "data", "evaluate", "decode", "asr_scorer", "codec"):
            assert getattr(cfg, key) == getattr(configs[0], key), key
        searched = {"lr", "history_mask", "prompt_weight"}  # each for itself, by the same trials
        for key in set(vars(cfg.train)) - searched:
            assert getattr(cfg.train, key) == getattr(configs[0].train, key), key


def test_a_single_decoder_trains_and_tells_its_cost(listening):
    results = train(config(*SINGLE, "model.towers.text.dropout=0.2", "train.history_mask=0.3"), "test")
    assert set(results) == {"asr", "tts"}
    for result in results.values():
        assert result["model"] == "single_decoder"
        cost = result["flops_per_token"]
        assert cost["training"] == pytest.approx(3 * cost["forward"], abs=3)  # nothing is frozen
        assert result["curves"]["dev/asr_wer"]


@pytest.mark.slow
def test_frozen_towers_keep_their_perplexity_to_the_last_bit_and_a_decoder_does_not(listening, prepared):
    for name in ("text", "speech"):
        cfg = resolve(config(*JOINT), prepared)
        module = run_module.ZipperModule.of(cfg, measure_statistics(prepared))
        statistics = {"modality": name, "reads": prepared.modalities[name].fingerprint, "perplexity": {}}
        statistics["trained_on"] = prepared.info["trained_on"]
        save_tower(Path(name), module.model.tower(name), statistics)
    frozen = [
        f"model.towers.{name}={{init: {name}, frozen: true, interval: 1}}" for name in ("text", "speech")
    ]
    kept = train(config(*JOINT, *frozen, "name=frozen"), "test")["asr"]["alone"]
    assert kept["text"]["before"] == kept["text"]["after"]
    assert kept["speech"]["before"] == kept["speech"]["after"]
    lost = train(config(*SINGLE, "model.towers.text={init: text}", "train.lr=0.01", "name=single"), "test")
    lost = lost["asr"]["alone"]
    assert lost["text"]["before"] == pytest.approx(kept["text"]["before"], rel=1e-5)
    assert lost["text"]["after"] != lost["text"]["before"]
    assert lost["speech"]["before"] is None


def test_a_decoder_pre_trained_on_both_alone_is_gone_on_with(listening, prepared):
    words = [*SINGLE, "train.tasks={asr: 0, tts: 0, speech: 1, text: 1}", "export=grown", "name=pre"]
    run_module.pretrain(config(*words), "test")
    cfg = config(*SINGLE, "model.towers.text={init: grown}", "name=on", "train.lr=0.01")
    found = train(cfg, "test")["asr"]["alone"]
    again = load_config(cfg.run_dir / "config.yaml", ["name=again"])
    assert resolve(again, prepared).model == resolve(cfg, prepared).model
    assert found["speech"]["before"] is not None
    assert found["text"]["before"] != found["text"]["after"]


@pytest.mark.parametrize(
    ("errors", "words"), [([], []), ([1], [3]), ([0, 0], [0, 0]), ([None, 1], [3, 3])], ids=str
)
def test_what_has_too_little_to_compare_is_refused(errors, words):
    one = result(errors, [3] * len(words)) | {"per_utterance": []}
    one["per_utterance"] = [
        {"id": f"u{i}", "reference": "", "errors": e, "words": w}
        for i, (e, w) in enumerate(zip(errors, words, strict=True))
    ]
    for ask in (compare, over_seeds):
        with pytest.raises(DataError, match=r"^x has \d utterances .* cannot be compared"):
            ask([one], [one])


def test_a_p_that_is_no_number_is_not_a_small_one():
    assert p_value(float("nan")) == "= nan"


def test_with_one_seed_the_interval_is_that_of_a_ratio():
    """Utterances of many words weigh more: the variance is that of errors less what their words expect."""
    draw = np.random.default_rng(0)
    words = draw.integers(3, 40, 60)
    a, b = draw.binomial(words, 0.5), draw.binomial(words, 0.2)
    apart = (a - b).sum() / words.sum()
    error = (((a - b - apart * words) ** 2).sum() * 60 / 59) ** 0.5 / words.sum()
    width = scipy.stats.t.ppf(0.975, 59) * error
    found = crossed(a[None].astype(float), b[None].astype(float), words)
    assert found[:2] == pytest.approx((apart - width, apart + width))


def test_means_over_seeds_that_are_equal_share_a_rank():
    """2/3 - 1/3 is another float than 1/3."""
    draw, words = np.random.default_rng(0), [9] * 60
    sides = [draw.integers(0, 4, (3, 60)) for _ in range(2)]
    a, b = ([result(errors.tolist(), words) for errors in side] for side in sides)
    found, sums = compare(a, b), sides[0].sum(0) - sides[1].sum(0)  # in thirds
    ranked = sums[sums != 0]
    assert found.different == len(ranked)
    assert found.leaning == (np.sign(ranked) * scipy.stats.rankdata(abs(ranked))).sum()
    assert found.p == pytest.approx(scipy.stats.wilcoxon(ranked, method="asymptotic").pvalue)


def test_recordings_of_the_synthetic_voice_may_differ_between_machines_and_others_may_not():
    differing = ["data.audio"]
    for folder, parts in (
        ("spoken-1f", []), ("manifest+spoken", []), ("mini-librispeech", differing), ("manifest", differing)
    ):  # fmt: skip
        one, other = (result([1, 2], [3, 3], data={"corpus_folder": folder, "audio": a}) for a in "xy")
        assert [part for part, *_ in different_data(one, other)] == parts
