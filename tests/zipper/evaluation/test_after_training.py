"""What a finished run is good for: evaluated again, exported, zipped; and refused where it does not fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import config
from reproduce import ROOT
from zipper.cli import run
from zipper.codecs.load import load_codec
from zipper.config import CodecConfig, RunConfig, load_config
from zipper.corpora.utterance import sentences_hash
from zipper.data.dataset import fingerprint_hash
from zipper.data.statistics import measure_statistics
from zipper.errors import ConfigError, DataError
from zipper.evaluation.place import evaluation_config, training_directory
from zipper.evaluation.result_file import read_result
from zipper.evaluation.run import evaluate_run
from zipper.generation.exported import load_trained
from zipper.modalities.tokenizer import Tokenizer
from zipper.models.pretrained import load_weights, tower_info
from zipper.models.resolve import resolve
from zipper.models.tower import Tower
from zipper.training import run as run_module


def test_evaluate_reads_the_run_again_and_gives_the_same(prepared):
    cfg = config("name=one")
    result = run_module.train(cfg, "x")["asr"]
    evaluate_run(load_config(cfg.run_dir / "config.yaml"), "y")
    again = read_result(cfg.run_dir / "asr-test.json")
    assert again["per_utterance"] == result["per_utterance"]
    assert again["config"]["train"] == json.loads(json.dumps(result["config"]["train"]))
    # How it was trained, not how it is called.
    evaluate_run(config("name=one", "train.lr=0.7", "evaluate.split=dev"), "y")
    assert read_result(cfg.run_dir / "asr-dev.json")["config"]["train"]["lr"] == cfg.train.lr
    with pytest.raises(ConfigError, match=r"data\.corpus=manifest: the run was trained with spoken"):
        run(["evaluate", str(cfg.run_dir), "data.corpus=manifest", "data.folder=."])
    kept = (cfg.run_dir / "asr-dev.json").read_bytes()
    evaluate_run(config("name=one", "evaluate.split=dev", "decode.text.beams=2"), "y")
    assert (cfg.run_dir / "asr-dev.json").read_bytes() == kept
    assert read_result(cfg.run_dir / "asr-dev-2.json")["decoding"] == "beam search, 2 beams"
    words = ["model.modalities=[speech]", "train.tasks={asr: 0, speech: 1}", "name=pre"]
    result = run_module.pretrain(config(*words), "x")["loss"]
    evaluate_run(config(*words), "y")
    again = read_result(Path("build/runs/pre/loss-test.json"), utterances=False)
    assert again["perplexity"] == pytest.approx(result["perplexity"])


def test_a_renamed_run_is_evaluated_where_it_lies(prepared, in_tmp, monkeypatch, capsys):
    """Another one has its old name by now; from any working directory; and moved out of its build folder."""
    words = ["name=one", "train.steps=3", "evaluate.mismatched=false"]
    run_module.train(config(*words), "x")
    one, best, moved = (in_tmp / name for name in ("build/runs/one", "build/runs/best", "kept/somewhere"))
    one.rename(best)
    run_module.train(config(*words, "seed=9", "train.lr=0.1"), "x")
    before = {file: file.read_bytes() for file in one.rglob("*") if file.is_file()}

    def evaluated(working: Path, file: str) -> dict:
        monkeypatch.chdir(working)
        capsys.readouterr()
        run(["evaluate", file, "result=copy.json"])
        said = capsys.readouterr().out  # a path that holds where it was asked
        assert Path(said.split(" -> ")[-1].strip()).is_file(), said
        return read_result(working / "copy.json")

    found = [evaluated(in_tmp, "build/runs/best/config.yaml"), evaluated(best, "config.yaml")]
    moved.parent.mkdir()
    best.rename(moved)
    found.append(evaluated(in_tmp, str(moved / "config.yaml")))
    expected = read_result(moved / "asr.json")
    assert [one["per_utterance"] for one in found] == [expected["per_utterance"]] * 3
    assert [one["name"] for one in found] == ["best", "best", "somewhere"]
    assert len(list(moved.glob("asr-test*.json"))) == 3
    assert {file: file.read_bytes() for file in before} == before
    assert not list(one.glob("*-test*"))


def test_an_evaluation_leaves_what_the_run_gave_out(prepared):
    """Only a word names a file that its result is copied to."""
    words = ["name=one", "train.steps=3", "evaluate.mismatched=false", "result=given.json", "export=model"]
    run_module.train(config(*words), "x")
    kept = {file: file.read_bytes() for file in (Path("given.json"), *Path("model").iterdir())}
    run(["evaluate", "build/runs/one/config.yaml", "evaluate.split=dev"])
    run(["evaluate", "build/runs/one/config.yaml", "evaluate.split=dev", "result=dev.json"])
    assert {file: file.read_bytes() for file in kept} == kept
    assert read_result(Path("dev.json"))["split"] == "dev"


@pytest.mark.parametrize(("wanted", "other"), [("best", "last"), ("last", "best")])
def test_the_checkpoint_that_is_asked_for_is_evaluated_and_no_other(tmp_path, wanted, other):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / f"{other}.ckpt").write_bytes(b"weights")
    with pytest.raises(ConfigError, match=rf"{wanted}\.ckpt does not exist"):
        evaluate_run(config(f"evaluate.checkpoint={wanted}"), "x", tmp_path)


def test_paths_among_words_are_found_from_the_caller(in_tmp, monkeypatch):
    """Those that the run's own config says, from its own place; and what is no path stays a name."""
    file = in_tmp / "made/build/runs/one/config.yaml"
    (file.parent / "checkpoints").mkdir(parents=True)
    file.write_text("{data: {tokenizer: own.json}, result: old.json, export: old}", encoding="utf-8")
    caller = in_tmp / "caller"
    (caller / "texts").mkdir(parents=True)
    (caller / "own.json").touch()
    monkeypatch.chdir(caller)
    words = [
        "data.folder=list.tsv",
        "data={text_folder: texts}",
        "asr_scorer.model=small.en",
        "result=new.json",
    ]
    with training_directory(evaluation_config(file, words), file.parent, words) as found:
        assert Path.cwd() == in_tmp / "made"
    assert (found.data.folder, found.data.text_folder) == (f"{caller}/list.tsv", f"{caller}/texts")
    assert (found.data.tokenizer, found.asr_scorer.model) == ("own.json", "small.en")
    assert (found.result, found.export) == (f"{caller}/new.json", None)


def with_parts(dataset, **parts: str):
    """The dataset, of which other things are said to have gone into it."""
    parts = {**dataset.info["fingerprint"], **parts}
    return replace(dataset, info={**dataset.info, "fingerprint": parts})


def test_a_run_is_not_evaluated_on_another_store(prepared, monkeypatch):
    run_module.train(config("name=one"), "x")
    monkeypatch.setattr(
        "zipper.evaluation.run.prepare", lambda cfg, clock, modalities: with_parts(prepared, codec="another")
    )
    with pytest.raises(ConfigError, match="was trained on the encoded dataset"):
        evaluate_run(config("name=one"), "y")


def test_a_run_of_before_recordings_were_hashed_is_still_evaluated(prepared, monkeypatch):
    parts = dict(prepared.info["fingerprint"])
    assert parts.pop("audio")
    now = measure_statistics(prepared).to_dict()
    del now["fingerprint"], now["fingerprint_without_audio"]
    saved = {"hyper_parameters": {"facts": {**now, "store": fingerprint_hash(parts)}}}
    monkeypatch.setattr("zipper.run_folder.read_checkpoint", lambda *_, **__: saved)
    run_module.check_dataset(Path("x"), prepared)
    with pytest.raises(ConfigError, match="was trained on the encoded dataset"):
        run_module.check_dataset(Path("x"), with_parts(prepared, codec="another"))


def test_a_corpus_that_was_spoken_anew_is_good_enough_for_an_evaluation(prepared, monkeypatch):
    """Another CPU rounds its audio otherwise. Not for a training that goes on, and not of recordings."""
    joined = with_parts(prepared, corpus_folder="manifest+spoken")
    saved = {"hyper_parameters": {"statistics": measure_statistics(joined).to_dict()}}
    monkeypatch.setattr("zipper.run_folder.read_checkpoint", lambda *_, **__: saved)
    run_module.check_dataset(Path("x"), with_parts(joined, audio="another"), allow_other_audio=True)
    here = with_parts(prepared, corpus_folder="spoken-1")
    there = with_parts(here, audio="another")
    saved["hyper_parameters"]["statistics"] = measure_statistics(here).to_dict()
    run_module.check_dataset(Path("x"), there, allow_other_audio=True)
    recorded = with_parts(prepared, corpus_folder="librispeech")
    for before, dataset, anew in (
        (here, there, False),
        (here, with_parts(there, corpus_folder="spoken-2"), True),
        (recorded, with_parts(recorded, audio="another"), True),
    ):
        saved["hyper_parameters"]["statistics"] = measure_statistics(before).to_dict()
        with pytest.raises(ConfigError, match="was trained on the encoded dataset"):
            run_module.check_dataset(Path("x"), dataset, allow_other_audio=anew)


def test_a_tower_is_exported_and_zipped(prepared, monkeypatch):
    words = ["model.modalities=[speech]", "train.tasks={asr: 0, speech: 1}", "name=pre", "export=tower"]
    result = run_module.pretrain(config(*words), "x")["loss"]
    assert result["perplexity"] > 1
    statistics = tower_info(Path("tower"))
    assert statistics["reads"] == prepared.info["fingerprint"]["codec"]
    assert statistics["trained_on"] == prepared.info["trained_on"]

    def zipped() -> RunConfig:
        return resolve(load_config(None, ["model.towers.speech.init=tower", "train.tasks.asr=1"]), prepared)

    def changed(**values: str) -> None:
        Path("tower/tower.json").write_text(json.dumps({**statistics, **values}), encoding="utf-8")

    settled = zipped()
    assert settled.model.towers["speech"].width == 24
    again = Tower(settled.model.towers["speech"])
    load_weights(again, Path("tower"))
    trained = load_trained(Path("build/runs/pre/checkpoints/best.ckpt")).network.tower("speech")
    assert torch.equal(again.embedding.weight, trained.embedding.weight.half().float())
    changed(trained_on="test sentences")
    with pytest.raises(DataError, match="trained on other sentences of the grammar"):
        zipped()
    changed(trained_on=sentences_hash(prepared.splits["train"]["text"][:3]))
    monkeypatch.setattr("zipper.models.resolve.FIRST", 3)  # the store's dev and test are those of three, too
    zipped()
    changed(reads="another codec")
    with pytest.raises(DataError, match="was trained on 'another codec'"):
        zipped()
    before = load_file("tower/tower.safetensors")
    old = {name.replace("to_qkv", "to_q"): weight for name, weight in before.items()}
    save_file(old, "tower/tower.safetensors")
    with pytest.raises(DataError, match=r"do not fit this version's towers .*to_qkv"):
        load_weights(again, Path("tower"))


def test_the_shipped_assets_fit_each_other():
    codec, words = load_codec(CodecConfig()), Tokenizer.load(ROOT / "assets/text-tower/tokenizer.json")
    speech, text = tower_info(ROOT / "assets/speech-tower"), tower_info(ROOT / "assets/text-tower")
    assert speech["reads"] == codec.fingerprint
    assert speech["shape"]["vocabulary"] == codec.codes + 3
    assert speech["shape"]["codebooks"] == codec.codebooks
    assert text["reads"] == words.fingerprint
    assert text["shape"]["vocabulary"] == words.vocabulary
