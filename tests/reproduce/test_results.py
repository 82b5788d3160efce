"""Figures in README and docs come from files, and the files say where they come from."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from reproduce import ROOT
from reproduce.report.choosing import best_choice, best_rate
from reproduce.report.records import CHOICES, NAMES, Results
from reproduce.report.results import in_short
from reproduce.sweep_file import differences
from zipper import commit as commit_module
from zipper.config import flat, load_config, to_dict
from zipper.errors import DataError
from zipper.evaluation.result_archive import result_files
from zipper.evaluation.result_file import read_result
from zipper.evaluation.task import summary_line
from zipper.modalities.scoring import WordErrors, word_errors
from zipper.modalities.tokenizer import Tokenizer

RESULTS = Results(ROOT / "results")
COUNTS = ("errors", "words", "target_errors", "target_words")
FILES = result_files(ROOT / "results")
MADE = [file for file in FILES if file.stem not in ("quickstart", "bad-input")]  # those have no data, no seed


def of_task(task: str) -> list[Path]:
    return [file for file in FILES if read_result(file, utterances=False).get("task") == task]


def of_folder(name: str) -> list[Path]:
    return result_files(ROOT / "results" / name)


def load(name: str) -> dict:
    return read_result(ROOT / "results" / name, utterances=False)


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("file", MADE, ids=lambda f: f.stem)
def test_a_result_can_be_made_again(file):
    result = read_result(file, utterances=False)
    assert result["command"].startswith("python -m zipper ")
    assert result["commit"] != "unknown"
    assert not result["commit"].endswith("-dirty")
    assert result.get("data_fingerprint") or result["task"] == "faults"  # that one makes its own
    assert result["versions"]["torch"]
    assert result["seed"] == result["config"]["seed"]
    assert [key for key, value in flat(result["config"]).items() if str(value).startswith("/")] == []


@pytest.mark.parametrize("file", of_task("asr"), ids=lambda f: f.stem)
def test_the_counts_of_recognition_add_up(file):
    result = read_result(file)
    assert result["normaliser"]
    counts = sum((WordErrors(o["errors"], o["words"]) for o in result["per_utterance"]), WordErrors())
    assert (counts.errors, counts.words) == (result["errors"], result["words"])
    assert result["wer"] == pytest.approx(counts.rate, abs=1e-6)
    for one in result["per_utterance"]:
        assert word_errors(one["reference"], one["hypothesis"]) == WordErrors(one["errors"], one["words"])


@pytest.mark.parametrize("file", of_task("tts"), ids=lambda f: f.stem)
def test_the_counts_of_speech_add_up(file):
    result = read_result(file)
    assert result["asr_scorer"]
    assert result["normaliser"]
    sums = {key: sum(one[key] for one in result["per_utterance"]) for key in COUNTS}
    assert (sums["errors"], sums["words"]) == (result["errors"], result["words"])
    assert result["wer"] == pytest.approx(result["errors"] / result["words"], abs=1e-6)
    assert result["target_wer"] == pytest.approx(sums["target_errors"] / sums["target_words"], abs=1e-6)
    assert result["by_length"][-1]["wer_up_to"] == pytest.approx(result["wer"], abs=1e-6)
    least = 100 if "ablations" in file.parts else 200 if {"chains", "real"} & {*file.parts} else 300
    assert sum(one["utterances"] for one in result["by_length"]) == result["utterances"] >= least
    assert 0 < result["original_wer"] <= result["resynthesis_wer"]


def test_the_pages_show_what_the_commands_printed():
    readme, pages = page("README.md"), page("docs/reproduction.md")
    asr, overfit = load("asr.json"), load("overfit.json")
    assert summary_line(asr, "build/runs/asr/asr.json") in readme
    assert summary_line(load("tts.json"), "build/runs/tts/tts.json") in readme
    assert summary_line(overfit, "build/runs/overfit/asr.json") in pages
    assert summary_line(load("joint-tts.json"), "build/runs/joint/tts.json") in pages
    assert summary_line(load("joint-asr.json"), "build/runs/joint/asr.json") in pages
    assert asr["split"] == "test"
    assert asr["utterances"] >= 300
    assert overfit["split"] == "train"


def test_the_pages_show_the_figures_of_the_result_files():
    """Numbers with their units; how a page puts them is its own affair."""
    readme, pages = page("README.md"), page("docs/reproduction.md")
    first = load("quickstart.json")["make train-asr"]
    assert f"{first['seconds'] / 60:.1f} minutes" in readme
    assert f"{first['peak_pss_mb'] / 1000:.1f} GB" in readme
    speech, joint = load("tts.json"), load("joint-tts.json")
    for told in (f"{speech['steps']:,} steps", f"{speech['wall_seconds'] / 60:.0f} minutes"):
        assert told in readme
        assert told in pages
    for told in (f"{joint['steps']:,} steps", f"{joint['wall_seconds'] / 60:.0f} minutes"):
        assert told in pages
        assert told in page("docs/model-card.md")
    for seed in (1, 2):
        assert f"{100 * load(f'asr-seed{seed}.json')['wer']:.1f} %" in pages
    rows = load("codec.json")["rows"]
    assert f"{100 * (rows[1]['wer'] - rows[0]['wer']):.1f} points" in page("docs/data.md")


SHOWN = ["asr", "asr-seed1", "asr-seed2", "tts", "joint-asr", "joint-tts", "overfit"]


@pytest.mark.parametrize("name", SHOWN)
def test_the_readmes_figures_are_those_of_the_configs(name):
    """A recipe that has changed since makes another figure."""
    result = load(f"{name}.json")
    file, *words = shlex.split(result["command"].removeprefix("python -m zipper train "))
    now = flat(json.loads(json.dumps(to_dict(load_config(ROOT / file, words)))))
    then = flat(result["config"])
    recipe = (
        "data.",
        "train.",
        "model.zip.",
        "model.next_modality_head",
        "evaluate.dev_utterances",
        "decode.",
    )
    told = {key for key in now if key.startswith(recipe)} & set(then) - {"data.tokenizer"}
    assert {key: then[key] for key in told} == {key: now[key] for key in told}
    tower = ROOT / now["model.towers.text.init"] / "tokenizer.json"  # whose tokenizer a config need not name
    assert then["data.tokenizer"] in (now["data.tokenizer"], str(tower.relative_to(ROOT)))
    assert Tokenizer.load(tower).fingerprint == result["data"]["tokenizer"]


MODELS = ("zipper", "zipper-frozen", "single-decoder", "single-decoder-speech")


@pytest.mark.parametrize("model", MODELS)
def test_each_model_of_the_comparison_was_given_the_best_rate_of_its_search(model):
    cfg = load_config(ROOT / "configs" / f"compare-{model}.yaml")
    found = [read_result(file) for file in of_folder("search") if file.match(f"{model}-lr*.json")]
    assert found
    rates = {one["config"]["train"]["lr"] for one in found}
    assert {5e-5, 1e-4, 5e-4, 1e-3} < rates, "the paper's grid"
    assert best_rate(found) == cfg.train.lr
    assert cfg.train.lr < max(rates), "the best rate lies inside the grid"
    for one in found:
        words = ["train.steps=500", "train.warmup=50", "evaluate.split=dev", "evaluate.tasks=[asr]"]
        words += [
            f"train.lr={one['config']['train']['lr']}",
            "train.history_mask=0.28",
            "train.prompt_weight=0",
        ]
        assert one["split"] == "dev"
        searched = load_config(ROOT / "configs" / f"compare-{model}.yaml", words)
        assert differences(one["config"], searched) == []
        assert one["steps"] == cfg.train.steps / 4


@pytest.mark.parametrize("model", MODELS)
def test_each_model_of_the_comparison_was_given_the_best_of_its_choices(model):
    grid = next(one for one in RESULTS.sweeps if one.name == CHOICES)
    sweep = RESULTS.sweep(grid).items()
    found = {choice: tasks for (of, choice), tasks in sweep if of == NAMES[model]}
    assert {*found} == {*grid.grid["choice"]}
    train = load_config(ROOT / "configs" / f"compare-{model}.yaml").train
    best = grid.grid["choice"][best_choice(found)]
    assert best == {"train.history_mask": train.history_mask, "train.prompt_weight": train.prompt_weight}
    made = [one for tasks in found.values() for several in tasks.values() for one in several]
    assert {one["split"] for one in made} == {"dev"}


@pytest.mark.parametrize("task", ["asr", "tts"])
@pytest.mark.parametrize("model", MODELS)
def test_each_model_of_the_comparison_ran_with_its_seeds_and_its_config(model, task):
    files = [file for file in of_folder("compare") if file.match(f"{model}-seed*-{task}.json")]
    found = [read_result(file, utterances=False) for file in files]
    assert len({one["seed"] for one in found}) >= 3
    for one in found:
        assert one["split"] == "test"
        assert one["utterances"] >= 300
        cfg = load_config(ROOT / "configs" / f"compare-{model}.yaml", [f"seed={one['seed']}"])
        assert differences(one["config"], cfg) == []


@pytest.mark.parametrize("grid", RESULTS.sweeps, ids=lambda grid: grid.name)
def test_all_results_of_a_grid_are_its_runs(grid):
    files = {file.stem for file in result_files(ROOT / "results" / "ablations" / grid.name)}
    known = {f"{point.name}{task}" for point in grid.runs() for task in ("", "-asr", "-tts")}
    assert files <= known
    assert files or grid.name == "aligned-librispeech"  # not run yet


@pytest.mark.slow
def test_results_are_of_the_runs_that_their_sweeps_describe_now():
    RESULTS.check_sweeps()
    others = Results(ROOT / "results")
    one = others.select(folder="ablations/sizes").result.iloc[0]
    one["config"] = {**one["config"], "train": {**one["config"]["train"], "steps": 5000}}
    with pytest.raises(DataError, match=r"sizes.yaml: the result of .*train.steps=5000, not 1000"):
        others.check_sweeps()


def test_the_readme_shows_the_comparison_of_the_files():
    assert in_short(RESULTS) in page("README.md")


def test_a_commit_is_dirty_by_its_code_and_not_by_its_results(tmp_path, monkeypatch):
    def git(*words: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    monkeypatch.setattr(commit_module, "CHECKOUT", tmp_path)
    assert commit_module.commit() == "unknown"
    for name in ("src/a.py", "results/a.json", "reports/a.svg", "RESULTS.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1", encoding="utf-8")
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    clean = commit_module.commit()
    assert len(clean) == 12
    for name in ("results/a.json", "RESULTS.md", "reports/a.svg"):
        (tmp_path / name).write_text("2", encoding="utf-8")
    assert commit_module.commit() == clean
    (tmp_path / "src" / "a.py").write_text("2", encoding="utf-8")
    assert commit_module.commit() == f"{clean}-dirty"


def test_the_campaign_of_faults_lost_nothing_and_bad_input_is_clear():
    campaign, clear = load("faults.json"), load("bad-input.json")
    assert campaign["times"] == campaign["recovered"] == campaign["identical"] >= 100
    assert campaign["lost"] == 0
    assert campaign["minutes"] < 60
    assert clear["cases"] == clear["clear"] >= 60
    assert not clear["commit"].endswith("-dirty")
    assert load("saving.json")["figures"]["ratio"] >= 0.97
