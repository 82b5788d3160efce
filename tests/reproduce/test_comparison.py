"""What RESULTS.md says of a comparison follows from its result files."""

import itertools
from pathlib import Path

import pytest
from test_compare import ROOT, result, some

from reproduce.report.choosing import best_choice, best_rate, capped
from reproduce.report.plots import draw_comparison, draw_longer
from reproduce.report.records import CHOICES, NAMES, SAID, Results, percent
from reproduce.report.results import section
from zipper.config import load_config, to_dict
from zipper.errors import DataError
from zipper.evaluation.result_file import read_result, write_result


def text_of(name: str, folder: Path) -> str:
    """A section of RESULTS.md."""
    return section(name, Results(folder))


def run(model: str, task: str, seed: int, rate: float, **changes) -> dict:
    """A result as `zipper train` writes it, with errors at a rate."""
    errors, words = some(120, 10 * seed + len(model), rate)
    zipper = model.startswith("zipper")
    statistics = {
        "name": f"compare-{model}-seed{seed}", "task": task, "seed": seed, "steps": 8,
        "decoding": "greedy", "checkpoint": "last",
        "command": f"train {model}", "commit": "c", "threads": 1, "wall_seconds": 60.0, "wer": rate,
        "target_wer": rate, "stopped": {"stop": 118, "repetition": 2},
        "resynthesis_wer": 0.1, "original_wer": 0.05, "share_at_limit": 0.0, "asr_scorer": "j",
        "normaliser": "n", "parameters_total": 5_000_000, "parameters_trained": 3_000_000,
        "flops_per_token": {"forward": 1, "training": 3},
        "alone": {
            "text": {"before": 5.0, "after": 5.0 if zipper else 6.0},
            "speech": {"before": 200.0 if zipper else None, "after": 300.0},
        },
        "curves": {"dev/asr_wer": [(4, 0.9), (8, rate)], "dev/tts_wer": [(4, 0.9), (8, rate)],
                   "train/loss_text": [(4, 2.0)], "train/loss_speech": [(4, 9.0)]},
        "by_length": [{"characters": 30, "utterances": 60, "wer": rate, "wer_up_to": rate},
                      {"characters": 60, "utterances": 60, "wer": rate, "wer_up_to": rate}],
        "config": to_dict(load_config(ROOT / f"configs/compare-{model}.yaml", ["train.lr=1e-3"])),
    }  # fmt: skip
    if zipper:
        statistics["curves"]["gate/zips.0.text_from_speech.attention_gate"] = [(4, 0.1), (8, -0.2)]
    made = result(errors, words)
    for i, one in enumerate(made["per_utterance"]):
        one.update(
            target="t", target_errors=one["errors"], target_words=one["words"], reference="a " * (3 + i % 40)
        )
    return {**made, **statistics, **changes}


@pytest.fixture
def folder(tmp_path):
    rates = {"single-decoder": 0.5, "single-decoder-speech": 0.45, "zipper-frozen": 0.3, "zipper": 0.1}
    for (model, rate), seed, task in itertools.product(rates.items(), (0, 1), ("asr", "tts")):
        write_result(run(model, task, seed, rate), tmp_path / f"compare/{model}-seed{seed}-{task}.json")
    return tmp_path


def claims(folder: Path) -> dict[str, list[str]]:
    """Cells of the table of claims, by claim."""
    rows = [line.strip("| ").split(" | ") for line in text_of("claims", folder).splitlines()]
    return {claim: cells for claim, *cells in rows if cells}


def test_both_tables_name_every_model_with_its_seeds_tests_and_the_papers_figures(folder):
    text = text_of("comparison", folder)
    for model in NAMES.values():
        assert text.count(f"| {model} |") >= 3
    assert "3.54 / 8.34**" in text
    assert "20.14* / 19.45*" in text
    assert "| 10.0 % ± 0.0 | 10.0, 10.0 |" in text
    assert "p < 0.0001" in text
    assert "identical" in text


def test_claims_follow_from_the_results(folder):
    told = claims(folder)
    assert told["ASR on par with a frozen text tower (Zipper)"][0] == "held: better"
    assert told["TTS better than the Single Decoder, speech tower unfrozen"][0] == "held"
    assert told["TTS better with the speech tower unfrozen than frozen"][0] == "held"
    assert told["TTS better on long sentences, worse on short ones"][0] == "not held: better on both"
    assert told["Text is preserved"][0] == "held"


def test_the_papers_own_settings_are_judged_beside_ours(folder):
    """They may say the contrary: nothing of the one column follows from the other."""
    for name, model, speech in (("paper", "zipper", 0.7), ("single-decoder", "single-decoder", 0.4)):
        write_result(run(model, "asr", 0, 0.1), folder / f"longer/{name}-asr.json")
        write_result(run(model, "tts", 0, speech), folder / f"longer/{name}-tts.json")
    told = claims(folder)
    assert told["TTS better than the Single Decoder, speech tower unfrozen"][::2] == ["held", "not held"]
    assert told["Text is preserved"][2] == "held"
    assert "".join(told["TTS better with the speech tower unfrozen than frozen"][2:]).strip() == ""


def test_chains_stand_beside_their_pairs(tmp_path):
    rates = {"tts": 0.2, "speech-text-speech": 0.21, "asr": 0.01, "text-speech-text": 0.03}
    for name in ("a", "half"):
        for task, rate in rates.items():
            made = run("zipper", task, 0, rate, share_ended=0.99, reread_wer=0.04, split="test")
            if (name, task) != ("half", "asr"):
                write_result(made, tmp_path / "chains" / f"{name}-{task}.json")
    text = text_of("chains", tmp_path)
    assert "| a | 0 | 8 | 20.0 % | 21.0 % (99.0 %) | 1.0 % | 3.0 % (99.0 %) | 4.0 % |" in text
    assert "| half |" not in text
    assert text_of("chains", tmp_path / "nowhere") == ""


def test_claims_may_fail(folder):
    for seed, task in itertools.product((0, 1), ("asr", "tts")):
        worse = run("zipper", task, seed, 0.7)
        worse["alone"]["text"]["after"] = 5.0001
        write_result(worse, folder / f"compare/zipper-seed{seed}-{task}.json")
    told = claims(folder)
    assert told["ASR on par with a frozen text tower (Zipper)"][0] == "not held: worse"
    assert told["Text is preserved"][0] == "not held"
    assert told["TTS better with the speech tower unfrozen than frozen"][0] == "not held"


def test_a_model_with_fewer_seeds_shows_those_it_has(folder):
    (folder / "compare" / "zipper-seed1-tts.json").unlink()
    assert "| Zipper | 10.0 % / 10.0 % | 10.0 |" in text_of("comparison", folder)


def test_a_seed_that_one_model_alone_has_moves_no_mean(folder):
    before = text_of("comparison", folder)
    write_result(run("zipper", "asr", 2, 0.9), folder / "compare/zipper-seed2-asr.json")
    assert text_of("comparison", folder) == before


def test_worse_by_less_than_a_point_is_on_par(folder):
    for seed in (0, 1):
        file = folder / "compare" / f"single-decoder-seed{seed}-asr.json"
        zipper = folder / "compare" / f"zipper-seed{seed}-asr.json"
        slightly = read_result(zipper)
        for one in slightly["per_utterance"]:
            one["words"] *= 10
        for one in slightly["per_utterance"][:8]:
            one["errors"] += 1
        write_result(slightly, zipper)
        for one in slightly["per_utterance"][:8]:
            one["errors"] -= 1
        write_result({**slightly, "name": "compare-single-decoder"}, file)
    assert claims(folder)["ASR on par with a frozen text tower (Zipper)"][0] == "held"


OTHER = load_config(ROOT / "configs/compare-zipper.yaml", ["train.warmup=3"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 9}, "steps"),
        ({"data_fingerprint": "other"}, "data_fingerprint"),
        ({"config": to_dict(OTHER)}, "warmup"),
    ],
)
def test_runs_on_other_terms_are_refused(folder, change, words):
    file = folder / "compare" / "zipper-seed1-asr.json"
    write_result(run("zipper", "asr", 1, 0.1, **change), file)
    with pytest.raises(DataError, match=words):
        text_of("comparison", folder)


def test_the_search_shows_every_rate_and_chooses_by_loss_what_errors_cannot_tell_apart(folder):
    tried = {"5e-5": (0.99, 2.0), "1e-3": (0.5, 1.2), "2e-3": (0.5, 1.1), "4e-3": (0.9, 1.0)}
    shown = []
    for rate, (wer, loss) in tried.items():
        one = run("zipper", "asr", 0, wer)
        one["config"]["train"]["lr"] = float(rate)
        one["curves"]["dev/loss_text"] = [[8, loss]]
        shown.append(percent(capped(one)["wer"]))
        write_result(one, folder / "search" / f"zipper-lr{rate}.json")
    write_result(one, folder / "search" / "zipper-adafactor.json")
    text = text_of("tuning", folder)
    assert shown[1] == shown[2] < shown[3] < shown[0]
    row = f"{shown[0]} (2.000) | {shown[1]} (1.200) | **{shown[2]}** (1.100) | {shown[3]} (1.000)"
    assert f"| Zipper | {row} |" in text
    assert "0.002 (ours)" in text
    assert f"| zipper-adafactor | {shown[3]} (1.000) |" in text


def test_one_sentence_that_repeats_itself_does_not_choose():
    """75 errors on a sentence of 8 words once chose the baseline's recipe."""
    worse, better = run("zipper", "tts", 0, 0.5), run("zipper", "tts", 0, 0.3)
    better["per_utterance"][5].update(errors=5000)
    plain = [sum(one[key] for one in better["per_utterance"]) for key in ("errors", "words")]
    assert capped(better)["wer"] < capped(worse)["wer"] < plain[0] / plain[1]
    asr = [run("zipper", "asr", 0, 0.4)]
    found = {"shared": {"asr": asr, "tts": [worse]}, "other": {"asr": asr, "tts": [better]}}
    assert best_choice(found) == "other"
    first, later = run("zipper", "tts", 0, 0.6), run("zipper", "tts", 1, 0.1)  # by the mean of its seeds
    several = {"shared": {"tts": [worse, {**worse, "seed": 1}]}, "other": {"tts": [first, later]}}
    assert best_choice(several) == "other"
    for one, rate in ((worse, 1e-3), (better, 2e-3)):
        one["config"]["train"]["lr"] = rate
        one["curves"]["dev/loss_text"] = [[8, 1.0]]
    assert best_rate([worse, better]) == 2e-3


def test_the_choice_of_each_model_is_the_lowest_mean_of_both_tasks(tmp_path):
    found = {
        "single-decoder-history-masking": (0.9, 0.95), "single-decoder-no-history-masking": (0.7, 0.97),
        "zipper-history-masking": (0.1, 0.4), "zipper-no-history-masking": (0.08, 0.6),
        "zipper-speech-tower-frozen-history-masking": (0.2, 0.6),
        "zipper-speech-tower-frozen-no-history-masking": (0.19, 0.59),
    }  # fmt: skip
    assert text_of("tuning", tmp_path) == ""
    shown: dict[str, list[str]] = {}
    for name, rates in found.items():
        for task, rate in zip(("asr", "tts"), rates, strict=True):
            file = tmp_path / "ablations" / CHOICES / f"{name}-seed0-{task}.json"
            drawn_as = "zipper-frozen" if "no-history" in name else "zipper"  # other errors at the same rate
            write_result(made := run(drawn_as, task, 0, rate), file)
            shown.setdefault(name, []).append(percent(capped(made)["wer"]))
    unfinished = tmp_path / "ablations" / CHOICES / "zipper-loss-on-the-prompt-1-seed0-asr.json"
    write_result(run("zipper", "asr", 0, 0.0), unfinished)
    text = text_of("tuning", tmp_path)
    assert "| model | history masking | no history masking |" in text
    cells = {name: " / ".join(rates) for name, rates in shown.items()}
    for model, first, other in (
        ("Single Decoder", "{}", "**{}**"),
        ("Zipper", "**{}**", "{}"),
        ("Zipper, speech tower frozen", "**{}**", "{}"),  # not told apart
    ):
        name = model.lower().replace(",", "").replace(" ", "-")
        hidden, nothing = cells[f"{name}-history-masking"], cells[f"{name}-no-history-masking"]
        assert f"| {model} | {first.format(hidden)} | {other.format(nothing)} |" in text


def test_figures_are_drawn_from_the_files_alone(folder):
    files = draw_comparison(Results(folder), folder / "figures")
    names = ["comparison.svg", "learning-curves.svg", "wer-by-length.svg", "gates.svg"]
    assert [file.name for file in files] == names
    assert all(file.stat().st_size > 10_000 for file in files)


def test_longer_trainings_stand_beside_each_other_and_a_half_finished_one_is_left_out(tmp_path):
    """The shipped model's alone are no comparison."""
    rates = {"joint": 0.1, "longer/paper": 0.2, "longer/single-decoder": 0.3}
    for name, rate in rates.items():
        model = "single-decoder" if "single" in name else "zipper"
        for task in ("asr", "tts"):
            curve = [(1999, 0.9), (5999, 0.8), (11999, rate)]
            told = run(model, task, 0, rate, curves={f"dev/{task}_wer": curve}, steps=12000)
            write_result(told, tmp_path / f"{name}-{task}.json")
        if name == "joint":
            assert text_of("longer", tmp_path) == ""
    text = text_of("longer", tmp_path)
    assert ", 12,000 steps instead of" in text
    assert "Zipper, the paper's settings | 0.001 | 90.0 % | 80.0 % | 20.0 % | 20.0 % | 5.00 / 5.00 |" in text
    assert "| Single Decoder | 0.001 | 90.0 % | 80.0 % | 30.0 % | 30.0 % | 5.00 / 6.00 |" in text
    assert [file.name for file in draw_longer(Results(tmp_path), tmp_path)] == ["longer.svg"]
    (tmp_path / "longer" / "single-decoder-tts.json").unlink()
    assert "| Single Decoder |" not in text_of("longer", tmp_path)


def test_nothing_is_told_where_nothing_was_compared(tmp_path):
    assert text_of("comparison", tmp_path) == ""
    assert draw_comparison(Results(tmp_path), tmp_path / "figures") == []
    write_result(run("zipper", "asr", 0, 0.1), tmp_path / "compare" / "zipper-seed0-asr.json")
    assert "| Zipper |" in text_of("comparison", tmp_path)


def test_claims_about_ablations_follow_from_their_results(tmp_path):
    def write(grid: str, name: str, model: str, task: str, rate: float) -> None:
        write_result(run(model, task, 0, rate), tmp_path / f"ablations/{grid}/{name}-seed0-{task}.json")

    assert text_of("claims", tmp_path) == ""
    for size, ours, theirs in ((30, 0.95, 0.7), (100, 0.3, 0.95), (1000, 0.2, 0.95), (12000, 0.1, 0.1)):
        write("aligned-data", f"zipper-{size}", "zipper", "asr", ours)
        write("aligned-data", f"single-decoder-{size}", "single-decoder", "asr", theirs)
    for name, rate in (("all", 0.3), ("no-text", 0.6), ("no-speech", 0.3), ("none", 0.6)):
        write("projections", name, "zipper", "tts", rate)
        write("projections", name, "zipper", "asr", 0.2)
    assert "above 90 % (Figure 3)" not in text_of("claims", tmp_path)  # 300 has not run
    for model, rate in (("zipper", 0.25), ("single-decoder", 0.95)):
        write("aligned-data", f"{model}-300", model, "asr", rate)
    text = text_of("claims", tmp_path)
    assert "above 90 % (Figure 3) | held | 100 utterances: -" in text
    assert "Zipper is worse (Figure 3) | held | 30 utterances: +" in text
    assert "text tower's input projection (Figure 4a) | held | no text against all: +" in text
    assert "need the speech tower's input projection (Figure 4a) | held" in text
    assert "needs neither input projection (Figure 4a) | held" in text
    assert "Figure 4b" not in text
    write("aligned-data", "zipper-100", "zipper", "asr", 0.95)
    assert "above 90 % (Figure 3) | not decided | 100 utterances" in text_of("claims", tmp_path)
    write("aligned-data", "zipper-100", "zipper", "asr", 0.3)
    write("aligned-data", "single-decoder-100", "single-decoder", "asr", 0.6)
    text = text_of("claims", tmp_path)
    assert "(Figure 3) | not held: the Single Decoder learns too | 100 utterances" in text
    write("aligned-data", "single-decoder-12000", "single-decoder", "asr", 0.95)  # it never learns
    assert text_of("claims", tmp_path).count("(Figure 3) | not decided | ") == 2
    write("projections", "no-speech", "zipper", "tts", 0.1)
    text = text_of("claims", tmp_path)
    assert "need the speech tower's input projection (Figure 4a) | held: better" in text


def test_what_the_section_of_settings_compares_is_in_its_grid(tmp_path):
    (grid,) = [one for one in Results(tmp_path).sweeps if one.name == "bridge"]
    assert {*SAID["settings"]} <= {*grid.grid["g"]}
