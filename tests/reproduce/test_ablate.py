"""A grid file becomes runs, once each; a sweep; an array; a table and a figure."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from reproduce import ROOT
from reproduce import sweep as running
from reproduce import sweep_file as grid
from reproduce.report.plots import draw_ablations
from reproduce.report.records import Results
from reproduce.report.results import section
from zipper.cli import run
from zipper.config import load_config, save_config, to_dict
from zipper.errors import ConfigError, TrainingError
from zipper.evaluation.result_archive import result_files
from zipper.evaluation.result_file import read_result, write_result

GRIDS = [one for name in ("ablations", "sweeps") for one in sorted((ROOT / "configs" / name).rglob("*.yaml"))]
MINE = {
    "title": "Mine", "config": str(ROOT / "configs" / "faults.yaml"), "overrides": {"train.steps": 24},
    "grid": {
        "model": {"Zipper": {}, "Single Decoder": {"model.kind": "single_decoder", "train.lr": 0.5}},
        "data.only": [10, 20],
    },
    "seeds": [0, 1], "x": "data.only",
}  # fmt: skip


def write(**changes: object) -> Path:
    Path("mine.yaml").write_text(yaml.safe_dump({**MINE, **changes}, sort_keys=False), encoding="utf-8")
    return Path("mine.yaml")


def mine() -> Results:
    """Results of the sweep mine.yaml."""
    return Results(Path("results"), [grid.read_sweep(Path("mine.yaml"))])


@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
def test_every_grid_names_runs_whose_configs_load(file):
    points = grid.read_checked_sweep(file).runs()
    assert len(points) > 1
    assert len({point.name for point in points}) == len(points)


def test_a_grid_is_the_product_of_its_axes_and_seeds(in_tmp):
    ablation = grid.read_sweep(write())
    points = ablation.runs()
    names = [point.name for point in points]
    assert names[:3] == ["zipper-10-seed0", "zipper-20-seed0", "single-decoder-10-seed0"]
    assert len(names) == 8
    cfg = load_config(Path(points[-1].config), points[-1].overrides)
    assert (cfg.model.kind, cfg.data.only, cfg.seed, cfg.train.lr, cfg.train.steps) == (
        "single_decoder", 20, 1, 0.5, 24,
    )  # fmt: skip


def test_labels_of_any_script_are_names_of_runs(in_tmp):
    write(grid={"model": {"Größe": {}, "拉链_2": {"model.kind": "single_decoder"}}}, x="")
    points = grid.read_checked_sweep(Path("mine.yaml")).runs()
    assert [point.name for point in points[:2]] == ["größe-seed0", "拉链-2-seed0"]


def test_mappings_of_two_axes_are_joined_and_the_last_setting_counts(in_tmp):
    """`train: {...}` of a second axis replaced that of the first, and a dotted key kept its early place."""
    axes = {
        "rate": {"high": {"train": {"lr": 0.25, "warmup": 3}}},
        "loss": {"ctc": {"train": {"ctc": 0.5, "warmup": 5}}},
        "length": {"short": {"train.steps": 7}},
    }
    (point,) = grid.read_sweep(
        write(overrides={"train.steps": 9, "train": {"steps": 8}}, grid=axes, seeds=[], x="")
    ).runs()
    train = load_config(Path(point.config), point.overrides).train
    assert (train.lr, train.ctc, train.warmup, train.steps) == (0.25, 0.5, 5, 7)


class Ended:
    """A training that writes what a real one would."""

    commands: ClassVar[list[list[str]]] = []

    def __init__(self, command, stdout, stderr, env):
        Ended.commands.append(command)
        words = dict(word.split("=", 1) for word in command[5:])
        self.returncode = 1 if "fails" in words["name"] else 0
        if self.returncode:
            stdout.write(b"Epoch 0: 0%\rEpoch 0: 9%error: it had to\n  9%|  | 1/12")
            return
        cfg = load_config(Path(command[4]), command[5:])
        cfg.run_dir.mkdir(parents=True, exist_ok=True)
        (cfg.run_dir / "result.json").write_text("{}", encoding="utf-8")
        save_config(cfg, cfg.run_dir / "config.yaml")
        if cfg.export:
            Path(cfg.export).mkdir(parents=True, exist_ok=True)
            (Path(cfg.export) / "tower.json").write_text("{}", encoding="utf-8")
            return
        file = Path(words["result"])
        file.parent.mkdir(parents=True, exist_ok=True)
        errors = [3, 1, 2] if cfg.model.kind == "zipper" else [4, 4, 3]
        rows = [{"id": str(i), "errors": e, "words": 4, "reference": "a b c d"} for i, e in enumerate(errors)]
        result = {
            "name": cfg.name, "task": "asr", "split": "test", "wer": sum(errors) / 12, "per_utterance": rows,
            "utterances": 3, "parameters_trained": 10**6, "commit": "abc", "seed": cfg.seed, "threads": 1,
            "stage_seconds": {"train": 60.0, "evaluate": 30.0}, "wall_seconds": 240.0, "decoding": "greedy",
        }  # fmt: skip
        write_result(result, file)

    def poll(self):
        return self.returncode


@pytest.fixture
def ended(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", Ended)
    monkeypatch.setattr(running, "_prepare", lambda *_: None)
    monkeypatch.setattr(Ended, "commands", [])


def test_what_is_finished_is_not_run_again_and_a_failure_stops_nothing_else(in_tmp, ended, capsys):
    run(["sweep", str(write()), "--only", "zipper-10-seed1"])
    assert len(Ended.commands) == 1
    run(["sweep", "mine.yaml", "--only", "*-seed1"])
    assert len(Ended.commands) == 4
    run(["sweep", "mine.yaml", "--jobs", "3"])
    assert len(Ended.commands) == 8
    run(["sweep", "mine.yaml"])
    assert len(Ended.commands) == 8
    capsys.readouterr()
    run(["sweep", "mine.yaml", "--dry-run"])
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 8
    finished = r"finished    (zipper|single).* zipper train .*configs/faults.yaml "
    assert all(re.match(finished, line) for line in listed)
    other = r"is finished with train\.steps=24, not 36, unlike the sweep file.*Move"
    with pytest.raises(ConfigError, match=other):
        run(["sweep", str(write(overrides={"train.steps": 36}))])
    run(["sweep", "mine.yaml", "--dry-run", "--only", "*-20-seed1"])
    listed = capsys.readouterr().out.splitlines()
    assert [line.split(" single")[0].split(" zipper-")[0] for line in listed] == [
        "finished with train.steps=24, not 36"
    ] * 2
    run(["sweep", str(write()), "--jobs", "2", "train.steps=36"])  # a trial has a place of its own
    assert len(Ended.commands) == 16
    assert len(list(Path("results/ablations/mine").glob("*.json"))) == 8
    assert len(list(Path("build/ablations").glob("mine-??????/*.json"))) == 8
    write(grid={"a": {"fails": {}, "holds": {"train.lr": 0.5}}}, seeds=[0], x="")
    with pytest.raises(TrainingError, match=r"1 of 2 .*mine-fails-seed0\.log \(error: it had to\)"):
        run(["sweep", "mine.yaml"])
    assert Path("build/runs/mine-holds-seed0/result.json").exists()
    with pytest.raises(TrainingError, match=r"1 of 1 runs failed: [^.]*\.log \([^)]*\)\. Correct"):
        run(["sweep", "mine.yaml", "--only", "fails*"])


def test_a_run_that_was_killed_is_said_to_be(in_tmp, tmp_path):
    log = tmp_path / "log"
    log.write_text("error: of an earlier attempt\n")
    start = log.stat().st_size
    assert running._reason(log, start, -9) == "killed by SIGKILL"
    assert running._reason(log, start, 3) == "exit status 3"
    with log.open("a") as out:
        out.write("Killed\n")
    assert running._reason(log, start, 137) == "Killed"


def test_what_another_sweep_has_finished_meanwhile_is_no_failure(in_tmp, ended, monkeypatch):
    write(grid={"a": {"fails": {}, "holds": {}}}, seeds=[0], x="")
    monkeypatch.setattr(running, "is_finished", lambda sweep, point, settings: bool(Ended.commands))
    run(["sweep", "mine.yaml"])  # the first fails, as the other sweep has finished it; the second is not run
    assert len(Ended.commands) == 1


def test_the_layers_of_every_tower_belong_to_a_recipe(in_tmp, ended):
    """A single decoder has those of the first tower alone."""
    dropout = {"model.towers.speech.dropout": 0.2}
    for kind, others in (("insertion", 1), ("single_decoder", 0)):
        settings = {"model.kind": kind, "model.modalities": ["text", "speech"], "train.tasks.tts": 0}
        axes = {"grid": {"a": {kind: {}}}, "seeds": [0], "x": ""}
        write(overrides=settings, **axes)
        run(["sweep", "mine.yaml"])
        sweep = grid.read_sweep(write(overrides={**settings, **dropout}, **axes))
        cfg = running.config_of(sweep, sweep.runs()[0], [])
        assert len(running.changed_settings(cfg)) == others


def test_the_seeds_of_a_point_are_a_group_and_where_they_are_logged_makes_no_trial(in_tmp):
    sweep = grid.read_sweep(write())
    groups = {running.config_of(sweep, one, []).log.group for one in sweep.runs()}
    assert groups == {f"mine-{model}-{n}" for model in ("zipper", "single-decoder") for n in (10, 20)}
    logged = running.config_of(sweep, sweep.runs()[0], ["log.wandb=online", "log.project=p"])
    assert (logged.name, logged.result, logged.log.wandb) == (
        "mine-zipper-10-seed0", "results/ablations/mine/zipper-10-seed0.json", "online",
    )  # fmt: skip
    assert running.config_of(sweep, sweep.runs()[0], ["log.group=own"]).log.group == "own"


def named(file: str) -> dict[str, tuple[str, str | None]]:
    """Runs of a sweep of ours by name, with config and result file."""
    sweep = grid.read_sweep(ROOT / "configs" / "sweeps" / file)
    configs = [(one.config, running.config_of(sweep, one, [])) for one in sweep.runs()]
    return {cfg.name: (config, cfg.result) for config, cfg in configs}


def test_the_runs_of_the_comparison_keep_their_names_and_result_files():
    compare, search, longer = (named(f"{name}.yaml") for name in ("compare", "search", "longer"))
    assert len(compare) == 12
    assert compare["compare-zipper-frozen-seed2"] == (
        "configs/compare-zipper-frozen.yaml", "results/compare/zipper-frozen-seed2.json",
    )  # fmt: skip
    assert longer["longer-paper-2e-3"] == ("configs/paper.yaml", "results/longer/paper-2e-3.json")
    assert named("asr.yaml")["asr-seed2"] == ("configs/asr.yaml", "results/asr-seed2.json")
    for folder, runs in (("search", search), ("longer", longer)):
        there = {re.sub("-(asr|tts)$", "", file.stem) for file in result_files(ROOT / "results" / folder)}
        assert there
        assert there <= {Path(result).stem for _, result in runs.values()}


def test_a_point_without_seeds_has_that_of_its_config_and_extra_points_follow_the_grid(in_tmp):
    sweep = grid.read_sweep(write(seeds=[], extra={"own": {"train.steps": 9}}, result="made/{point}.json"))
    assert [one.name for one in sweep.runs()][3:] == ["single-decoder-20", "own"]
    assert not [word for one in sweep.runs() for word in one.overrides if word.startswith("seed=")]
    cfg = running.config_of(sweep, sweep.runs()[-1], [])
    assert (cfg.name, cfg.result, cfg.train.steps, cfg.data.only) == ("mine-own", "made/own.json", 9, None)


def test_a_missing_tower_is_pre_trained_once_and_only_if_a_run_uses_it(in_tmp, ended, monkeypatch):
    prepared: list[list[str]] = []
    monkeypatch.setattr(running, "_prepare", lambda points, _: prepared.append([one.name for one in points]))
    text = {"config": str(ROOT / "configs" / "pretrain-text.yaml"), "model.towers.text.layers": 2}
    uses = {"a": {}, "b": {"model.towers.text.init": "build/towers/small"}}
    write(grid={"which": uses}, seeds=[], x="", needs={"small": text, "unused": text})
    run(["sweep", "mine.yaml", "--only", "a"])
    assert [words[3] for words in Ended.commands] == ["train"]
    run(["sweep", "mine.yaml", "--prepare"])
    assert [words[3] for words in Ended.commands] == ["train", "pretrain"]
    made = {"name=pretrain-small", "export=build/towers/small", "model.towers.text.layers=2"}
    assert made < {*Ended.commands[-1]}
    assert prepared[-2:] == [["pretrain-small"], ["b"]]
    run(["sweep", "mine.yaml"])
    assert [words[3] for words in Ended.commands] == ["train", "pretrain", "train"]
    Path("build/runs/pretrain-small/result.json").unlink()  # as if it were interrupted
    Path("build/runs/mine-b/result.json").unlink()
    run(["sweep", "mine.yaml"])
    assert [words[3] for words in Ended.commands][3:] == ["pretrain", "train"]


def test_a_sweep_and_an_array_name_every_run(in_tmp, capsys):
    run(["sweep", str(write()), "--wandb-sweep"])
    sweep = yaml.safe_load(Path("build/ablations/mine-sweep.yaml").read_text(encoding="utf-8"))
    names = [point.name for point in grid.read_sweep(Path("mine.yaml")).runs()]
    assert sweep["parameters"]["only"]["values"] == names
    assert sweep["command"][1:5] == ["-m", "zipper", "sweep", "mine.yaml"]
    run(["sweep", "mine.yaml", "--slurm"])
    script = Path("build/ablations/mine.sbatch").read_text(encoding="utf-8")
    assert "--array=0-7" in script
    listed = subprocess.run(
        ["bash", "-c", script.replace("srun", "echo")], env={"SLURM_ARRAY_TASK_ID": "3"},
        capture_output=True, text=True, check=True, encoding="utf-8"
    ).stdout  # fmt: skip
    assert listed.split() == [sys.executable, "-m", "zipper", "sweep", "mine.yaml", "--only", names[3]]
    assert "zipper sweep mine.yaml --prepare && sbatch build/ablations/mine.sbatch" in capsys.readouterr().out
    assert sweep["command"][5] == "log.wandb=online"
    run(["sweep", "mine.yaml", "--slurm", "--only", "*seed0", "train.steps=9"])
    said = capsys.readouterr().out
    assert "zipper sweep mine.yaml train.steps=9 --only '*seed0' --prepare && sbatch" in said
    assert "--array=0-3" in Path("build/ablations/mine.sbatch").read_text(encoding="utf-8")


def test_an_array_takes_any_file_and_any_python(in_tmp, monkeypatch):
    """Blanks and quotes in their names, too."""
    monkeypatch.setattr(sys, "executable", "/opt/my env/python")
    script = running.write_slurm(write().rename("it's mine.yaml"))
    words = subprocess.run(
        ["bash", "-c", script.read_text(encoding="utf-8").replace("srun", "printf '%s\\n'")],
        env={"SLURM_ARRAY_TASK_ID": "3"}, capture_output=True, text=True, check=True, encoding="utf-8"
    ).stdout.splitlines()  # fmt: skip
    assert words[:5] == ["/opt/my env/python", "-m", "zipper", "sweep", "it's mine.yaml"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"grid": {"train.lr": []}}, "must hold axes"),
        ({"grid": {"a": {"one": {}, "two": {"train.lr": 0.1}}}, "x": "a"}, "x=a holds 'one', which is not"),
        ({"x": "data.train"}, r"x=data\.train is not an axis.*model, data\.only"),
        ({"grid": {"train.lr": [1, 1]}, "x": ""}, "two points are named 1-seed0"),
        ({"grid": {"train.lrr": [1]}, "x": ""}, r"mine\.yaml, 1-seed0: Key 'lrr'"),
        ({"axes": {}}, "it needs title, config and grid, and may have"),
        ({"extra": {"zipper-10": {}}}, "two points are named zipper-10-seed0"),
        ({"needs": {"tower": {"train.steps": 3}}}, r"needs\.tower has no config"),
        ({"needs": {"a": {"config": "configs/pretrain-text.yaml", "train.stops": 3}}}, "a: Key 'stops'"),
        ({"needs": ["tower"]}, r"needs=\['tower'\] must be a mapping"),
        ({"seeds": 3}, "seeds=3 must be a list of seeds"),
        ({"grid": "train.lr"}, "grid=train.lr must be a mapping"),
        ({"config": ["configs/asr.yaml"]}, "config=.* must be text"),
        ({"result": "results/mine.json"}, r"lacks \{point\}, so all runs would write one file"),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused_before_the_first_run(in_tmp, changes, says):
    with pytest.raises(ConfigError, match=says):
        run(["sweep", str(write(**changes))])
    with pytest.raises(ConfigError, match=r"--only nothing: .*Available: zipper-10-seed0"):
        run(["sweep", str(write()), "--only", "nothing"])


def test_what_tells_runs_apart_is_not_overridden(in_tmp):
    for setting in ("name=a", "result=a.json", "seed=5", "data.only=3"):
        for words in ([], ["--dry-run"], ["--slurm"], ["--wandb-sweep"]):
            with pytest.raises(ConfigError, match=f"{setting}: mine.yaml gives each run its own"):
                run(["sweep", str(write()), setting, *words])
    run(["sweep", str(write(seeds=[], x=None)), "--dry-run", "seed=5"])  # a null is a default


def test_results_become_a_table_and_figures(in_tmp, ended):
    run(["sweep", str(write())])
    text = section("ablations", mine())
    assert "8 of 8 runs" in text
    assert "8 runs, 0.6 hours of 1 thread(s)" in text
    assert "| 8 of 8 | 4.5 | 4.5 |" in text  # with 3 minutes of training before the process was resumed
    assert "Test, greedy." in text
    assert "| Zipper | 10 | 50.0 % ± 0.0 |" in text
    assert "| Single Decoder | 10 | 91.7 % ± 0.0 | +41.7 (" in text
    files = draw_ablations(mine(), Path("figures"))
    assert [file.name for file in files] == ["ablation-mine.svg"]
    before = files[0].read_bytes()
    assert draw_ablations(mine(), Path("figures"))[0].read_bytes() == before


def test_a_row_is_compared_over_the_seeds_that_both_have(in_tmp, ended):
    run(["sweep", str(write())])
    folder, whole = Path("results/ablations/mine"), section("ablations", mine())
    spoilt = folder / "zipper-10-seed1.json"
    result = read_result(spoilt)
    for one in result["per_utterance"]:
        one["errors"] = 4
    write_result(result, spoilt)
    assert section("ablations", mine()) != whole
    (folder / "single-decoder-10-seed1.json").unlink()
    rows = [
        next(line for line in text.splitlines() if "| Single Decoder | 10 |" in line)
        for text in (whole, section("ablations", mine()))
    ]
    of_both, of_one = (row.split("|")[4].strip() for row in rows)
    assert of_both.split(";")[0] == of_one  # seed 0 against seed 0, as the other seed is alike


def test_without_an_x_a_row_is_compared_with_the_first_of_its_first_axis(in_tmp, ended):
    choice = {"as it is": {}, "kind": {"model.kind": "single_decoder"}}
    run(["sweep", str(write(grid={"model": {"a": {}, "b": {"train.lr": 0.5}}, "choice": choice}, x=""))])
    text = section("ablations", mine())
    assert "| vs first of the model |" in text
    assert "| b | as it is | 50.0 % ± 0.0 |  |" in text
    assert "| b | kind | 91.7 % ± 0.0 | +41.7 (" in text
    assert "Test, greedy." in text
    for file in Path("results/ablations/mine").glob("*.json"):
        write_result({**read_result(file), "split": "dev"}, file)
    assert "Dev, greedy." in section("ablations", mine())


def test_seeds_alone_are_a_sweep_with_a_table_and_a_figure(in_tmp, ended):
    write(grid={}, x="")
    run(["sweep", "mine.yaml"])
    assert [file.suffix for file in draw_ablations(mine(), Path("figures"))] == [".svg"]
    assert "| 50.0 % ± 0.0 |" in section("ablations", mine())


@pytest.mark.parametrize(
    ("word", "same"),
    [
        ("train.lr=0.7", False), ("model.zip.gate_init=0.3", False), ("model.towers.speech.width=64", False),
        ("data.splits={train: [x]}", False), ("data.only=9", False), ("model.towers.text.frozen=true", False),
        ("data.tokenizer=mine.json", False), ("name=other", True), ("log.every=3", True),
        ("build=elsewhere", True),
    ],
)  # fmt: skip
def test_a_run_is_of_a_grid_if_its_recipe_is(word, same):
    ours = load_config(ROOT / "configs" / "faults.yaml", [])
    saved = json.loads(json.dumps(to_dict(load_config(ROOT / "configs" / "faults.yaml", [word]))))
    assert (grid.differences(saved, ours) == []) is same
    del saved["train"]["patience"]  # a setting of later
    assert (grid.differences(saved, ours) == []) is same


def test_a_shipped_sweep_is_found_from_any_folder(in_tmp):
    assert grid.read_sweep(Path("configs/ablations/zips.yaml")).name == "zips"
