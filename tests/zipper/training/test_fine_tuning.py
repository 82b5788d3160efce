"""Fine-tuning: a training that starts from an exported model (`train.init`)."""

import json
import shutil
from pathlib import Path

import lightning as L
import pytest
import torch

import zipper
from conftest import COUNTS, WORDS
from reproduce import ROOT, sweep
from reproduce.sweep_file import read_sweep
from zipper.cli import main
from zipper.config import RunConfig, TrainConfig, load_config
from zipper.data.statistics import DatasetStatistics
from zipper.errors import ConfigError, DataError
from zipper.evaluation.result_file import read_result
from zipper.evaluation.run import evaluate_run
from zipper.generation.exported import certify, load_model
from zipper.models.ctc import CtcHead
from zipper.training import run as run_module
from zipper.training.fine_tuning import continued, fine_tuned
from zipper.training.module import ZipperModule

ASR = [
    "train.tasks={asr: 1}",
    "train.ctc=0.5",
    "train.guide=0.3",
    "train.mask=0.1",
    "evaluate.mismatched=false",
]


def config(*words: str) -> RunConfig:
    """Without the towers of the other tests."""
    return load_config(None, [*(one for one in WORDS if not one.startswith("model.")), *words])


@pytest.fixture
def data(towers, manifest, in_tmp, tmp_path_factory):
    """An exported model `first`, trained once for recognition with a frozen text tower and a head of CTC,
    whose towers' folders are gone; and the settings of its data."""
    data = [f"data={{corpus: manifest, folder: {manifest}, dev: 4, test: 4}}"]
    kept = tmp_path_factory.getbasetemp() / "fine-tuned"
    if not kept.exists():
        own = [
            f"model.towers.text={{init: {towers['text']}, frozen: true, interval: 1}}",
            f"model.towers.speech={{init: {towers['speech']}, interval: 1}}",
            "model.zip.heads=2",
        ]
        run_module.train(
            config(*data, *own, *ASR, "name=first", "export=first", "model.zip.whiten=true"), "x"
        )
        first = zipper.Zipper.from_pretrained("first")
        torch.nn.init.normal_(first.network.ctc.own()[0].linear.weight)  # these answers are too long for it
        first.save_pretrained("first")
        for name in ("first", "build"):
            shutil.copytree(name, kept / name)
    shutil.copytree(kept, in_tmp, dirs_exist_ok=True)
    for folder in towers.values():
        folder.rename(folder.with_name(f"{folder.name}-gone"))
    return data


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_model(Path(folder)).network.state_dict()


def test_a_training_starts_from_the_weights_of_the_model_and_keeps_what_is_frozen(data, monkeypatch):
    started = {}
    start = ZipperModule.start_from

    def watched(module, network):
        start(module, network)
        started.update({name: weight.clone() for name, weight in module.model.state_dict().items()})

    monkeypatch.setattr(ZipperModule, "start_from", watched)
    run_module.train(config(*data, *ASR, "train.init=first", "name=second", "export=second"), "x")
    first, second = weights("first"), weights("second")
    assert {*first} == {*started} == {*second}
    assert all(torch.equal(first[name], weight) for name, weight in started.items())
    changed = {name for name, weight in second.items() if not torch.equal(first[name], weight)}
    assert not any(name.startswith("towers.text.") for name in changed)
    assert "zips.0.text_from_speech.to_q.weight" in changed
    assert second["ctc.heads.text_from_speech.linear.weight"].any()
    assert certify(Path("second")) == ["text"]  # though the folder of the tower is gone
    main(["export", "build/runs/second", "small", "--bits", "4", "--frozen-too"])
    assert certify(Path("small")) == ["text"]
    zipper.Zipper.from_pretrained("second").save_pretrained("third")
    assert certify(Path("third")) == ["text"]


def test_letters_of_a_head_stay_bytes_when_it_is_loaded():
    table = torch.tensor([[1, 28]])
    for _ in range(2):
        table = CtcHead(4, table, "speech", "text").get_buffer("table")
        assert table.dtype == torch.uint8


def test_without_ctc_its_head_is_left_behind(data):
    words = ["train.tasks={asr: 1}", "evaluate.mismatched=false", "train.init=first"]
    run_module.train(config(*data, *words, "name=second", "export=second"), "x")
    assert {*weights("first")} - {*weights("second")} == {
        f"ctc.heads.text_from_speech.{name}" for name in ("table", "linear.weight", "linear.bias")
    }


@pytest.mark.parametrize("quantised", [False, True])
def test_a_resumed_fine_tuning_equals_an_unbroken_one(data, quantised, monkeypatch):
    monkeypatch.setattr("zipper.weight_files.SMALLEST", 64)  # the matrices of these models are small
    words = [*data, *ASR, "train.init=first", *(["train.quantise=true", "export_bits=4"] * quantised)]
    run_module.train(config(*words, "name=whole", "export=whole"), "x")
    step = ZipperModule.training_step

    def broken(module, batch, index):
        if index == 4:
            raise InterruptedError
        return step(module, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(ZipperModule, "training_step", broken)
        with pytest.raises(InterruptedError):
            run_module.train(config(*words, "name=parts", "export=parts"), "x")
    run_module.train(config(*words, "name=parts", "export=parts"), "x")
    whole, parts = weights("whole"), weights("parts")
    assert all(torch.equal(whole[name], weight) for name, weight in parts.items())


def test_a_fine_tuned_run_is_evaluated_with_its_own_tokenizer(data):
    cfg = config(*data, *ASR, "train.init=first", "name=second")
    trained = run_module.train(cfg, "x")["asr"]
    stores = {*Path("build/stores").iterdir()}
    evaluate_run(cfg, "x")
    assert {*Path("build/stores").iterdir()} == stores
    again = read_result(cfg.run_dir / "asr-test.json")
    assert again["per_utterance"] == trained["per_utterance"]


def test_decoding_is_that_of_the_model_unless_the_config_has_its_own(data):
    info = json.loads(Path("first/zipper.json").read_text(encoding="utf-8"))
    info["config"]["decode"] = {"text": {"beams": 5, "ctc": 0.3}}
    Path("first/zipper.json").write_text(json.dumps(info), encoding="utf-8")
    for words, expected in (
        ([], (5, 0.3)), (["train.ctc=0", "train.guide=0"], (5, 0.0)), (["decode.text.beams=2"], (2, 0.3)),
        (["decode.text.ctc=0.5"], (5, 0.5)), (["decode.text.compile=true"], (5, 0.3)),
        (["decode.text.beams=1"], (1, 0.0)),
    ):  # fmt: skip
        how = fine_tuned(config(*data, *ASR, "train.init=first", *words)).decode["text"]
        assert (how.beams, how.ctc) == expected


def test_the_python_api_goes_on_with_a_model_whose_towers_are_gone(data, manifest):
    model = zipper.Zipper.from_pretrained("first")
    before = model.statistics
    overrides = [f"data.folder={manifest}", "data.dev=4", "data.test=4", "train.tokens=200"]
    more = zipper.ZipperData("manifest", model, tasks={"asr": 1}, overrides=overrides)
    assert model.statistics.rates == before.rates
    with pytest.raises(ConfigError, match="every share is 0"):
        zipper.ZipperData("manifest", model, tasks={"asr": 0}, overrides=overrides)
    trainer = L.Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(zipper.ZipperModule(model, lr=1e-3), more)
    model.save_pretrained("second")
    assert certify(Path("second")) == ["text"]


def test_an_exported_model_is_evaluated_on_any_list(data, utterances, capsys):
    evaluate = ["evaluate", "first", "name=lists", "data.corpus=manifest"]
    lines = [f"{u.audio}\t{u.text}" for u in utterances[:5]]
    Path("mine.tsv").write_text("\n".join(["audio\ttext", *lines]) + "\n", encoding="utf-8")
    for words in (evaluate, evaluate[:-1]):  # the corpus of the model is a manifest, too
        main([*words, "data.folder=mine.tsv", "evaluate.mismatched=false"])
        assert "5 utterances" in capsys.readouterr().out
    main(["evaluate", "first", "name=held-out"])
    held_out = read_result(Path("build/runs/held-out/asr-test.json"))
    trained_on = json.loads(Path("first/zipper.json").read_text(encoding="utf-8"))["config"]["data"]
    own = f"data.folder={trained_on['folder']}"
    for i, words in enumerate(([own], ["data.corpus=manifest", own])):
        main(["evaluate", "first", f"name=own-{i}", *words])  # not on what it was trained on
        found = read_result(Path(f"build/runs/own-{i}/asr-test.json"))
        assert found["per_utterance"] == held_out["per_utterance"]
    assert "what is held out" not in capsys.readouterr().out
    changed, given = Path("changed.tsv"), Path(trained_on["folder"]).read_text(encoding="utf-8").splitlines()
    changed.write_text("\n".join([*given[:3], *given[6:]]) + "\n", encoding="utf-8")
    model, saved = (
        Path("moved/zipper.json"),
        json.loads(Path("first/zipper.json").read_text(encoding="utf-8")),
    )
    shutil.copytree("first", "moved")
    saved["config"]["data"]["folder"] = str(changed.resolve())
    model.write_text(json.dumps(saved), encoding="utf-8")
    main(["evaluate", "moved"])
    assert "what is held out may be what it has learned" in capsys.readouterr().out
    lines = [f"{u.audio}\t{u.text}\ttest" for u in utterances[5:6]]
    Path("one.tsv").write_text("\n".join(["audio\ttext\tsplit", *lines]) + "\n", encoding="utf-8")
    main([*evaluate, "data.folder=one.tsv"])
    said = capsys.readouterr().out
    assert "1 utterances" in said
    assert "mismatched" not in said  # it has no other audio
    for words, why in (
        (["data.folder=one.tsv", "evaluate.split=dev"], "split dev is empty"),
        (["data.folder=one.tsv", "model.zip.heads=1"], "Overrides change the model"),
    ):
        with pytest.raises(SystemExit):
            main([*evaluate, *words])
        assert why in capsys.readouterr().err
    Path("one.tsv").write_text(f"audio\n{utterances[0].audio}\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        main([*evaluate, "data.folder=one.tsv"])
    assert "no utterance of split test has speech and text" in capsys.readouterr().err


def test_the_python_api_takes_the_objective_of_a_model_and_nothing_else_of_its_training(data, manifest):
    info = json.loads(Path("first/zipper.json").read_text(encoding="utf-8"))
    config = info["config"]
    config["train"] |= {"devices": 2, "quantise": True, "tokens": 4096, "precision": "bf16-products"}
    config["data"] |= {"speeds": [0.94, 1.06], "dev": 1, "test": 1, "only": 3}
    config |= {"export_bits": 4, "export": "elsewhere", "result": "elsewhere.json"}
    Path("first/zipper.json").write_text(json.dumps(info), encoding="utf-8")
    model = zipper.Zipper.from_pretrained("first")
    settings = [f"data.folder={manifest}", "data.dev=4", "data.test=4"]
    more = zipper.ZipperData("manifest", model, overrides=settings)
    found = model.config
    assert found == more.cfg
    assert (found.train.devices, found.train.quantise, found.train.tokens) == (1, False, TrainConfig().tokens)
    assert (found.data.speeds, found.data.only, found.export, found.result) == ([1.0], None, None, None)
    assert (found.train.tasks, found.train.ctc, found.train.guide) == ({"asr": 1.0}, 0.5, 0.3)
    assert len(more.dataset.splits["train"]) == sum(COUNTS.values()) - 8
    # A change of 1 % survives saving.
    name = "zips.0.text_from_speech.to_q.weight"
    weight = model.network.get_parameter(name)
    with torch.no_grad():
        weight.mul_(1.01)
    model.save_pretrained("second")
    torch.testing.assert_close(weights("second")[name], weight.detach(), rtol=1e-3, atol=1e-6)


def test_what_was_prepared_is_what_is_trained_on(data, manifest):
    words = [
        f"data.folder={manifest}",
        "data.dev=4",
        "data.test=4",
        "train.init=first",
        "evaluate.mismatched=false",
    ]
    words += ["train={steps: 1, validate_every: 1, tokens: 200}", "log.wandb=disabled", "export=second"]
    stores = {*Path("build/stores").iterdir()}
    recipe = str(ROOT / "configs" / "fine-tune.yaml")
    main(["prepare", recipe, *words])
    assert {*Path("build/stores").iterdir()} == stores
    main(["train", recipe, *words])
    assert {*Path("build/stores").iterdir()} == stores
    assert certify(Path("second")) == ["text"]


def test_rates_stay_and_limits_are_the_larger_ones():
    units, ratio = {"text": 3.0, "speech": 25.0}, {"text": {"speech": 0.1}}
    old = DatasetStatistics(
        "a", {}, units, {"text": [0.1]}, {"text": 5, "speech": 90}, ratio, {"speech": [4, 1]}
    )
    new = DatasetStatistics(
        "b", {}, {**units, "text": 4.0}, {"text": [0.2]}, {"text": 9, "speech": 50},
        {"text": {"speech": 0.2}}, {"speech": [2, 3]},
    )  # fmt: skip
    both = continued(old, new)
    assert (both.fingerprint, both.rates, both.seconds) == ("b", old.rates, old.seconds)
    assert (both.longest, both.ratio) == ({"text": 9, "speech": 90}, {"text": {"speech": 0.2}})
    assert both.repeats == {"speech": [4, 3]}


def test_another_codec_is_refused_before_anything_is_encoded(data, monkeypatch):
    file = Path("first/zipper.json")
    info = json.loads(file.read_text(encoding="utf-8"))
    info["statistics"]["reads"]["speech"] = "another"
    file.write_text(json.dumps(info), encoding="utf-8")
    monkeypatch.setattr(run_module, "prepare", None)
    with pytest.raises(DataError, match="was trained on speech units"):
        run_module.train(config(*data, *ASR, "train.init=first", "name=second"), "x")


REFUSED = {
    "train.init=nowhere": "train.init=nowhere is no exported model",
    "model.zip.heads=1": "brings its model, but the config has another",
    "data.tokenizer=mine.json": "brings its codec and tokenizer",
    "codec.weights=mine": "brings its codec and tokenizer",
    "train.tasks={tts: 1}": "tts, but train.init=first was trained for asr",
}


def test_what_the_model_does_not_bring_is_refused(data):
    for word, message in REFUSED.items():
        with pytest.raises(ConfigError, match=message):
            fine_tuned(config(*data, "train.tasks={asr: 1}", "train.init=first", word))


def test_a_sweep_over_fine_tuning_resumes_and_keeps_every_model(data, monkeypatch):
    """Its runs have the codec, tokenizer and decoding of the model that they start from."""
    words = [one for one in WORDS if not one.startswith("model.")]
    settings = [*words, *data, *ASR, "train.init=first", "export=tuned", "train.steps=2"]
    Path("fine.yaml").write_text("{}", encoding="utf-8")
    lines = "grid: {rate: {low: {train.lr: 1.0e-4}, high: {train.lr: 2.0e-4}}}\nseeds: []\n"
    head = "title: Rates\nconfig: fine.yaml\nresult: results/{point}.json\n"
    Path("rates.yaml").write_text(head + lines, encoding="utf-8")
    file = Path("rates.yaml")
    read = read_sweep(file)
    stores = {*Path("build/stores").iterdir()}
    sweep.run_sweep(file, None, 1, settings, prepare_only=True)
    assert {*Path("build/stores").iterdir()} == stores
    for point in read.runs():
        assert not sweep.is_finished(read, point, settings)
        main(sweep.command(read, point, settings)[3:])
        assert sweep.is_finished(read, point, settings)
    low, high = sorted(Path("tuned").iterdir())
    names = weights(str(low))
    assert any(not torch.equal(names[name], other) for name, other in weights(str(high)).items())
