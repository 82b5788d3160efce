"""Speech out, end to end with a stand-in for the judge: scoring, samples, export, and the command line."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile as sf
import torch

from conftest import config
from zipper.cli import main
from zipper.config import load_config
from zipper.data.batch import collate
from zipper.data.document import document
from zipper.errors import ConfigError, DataError
from zipper.evaluate import tasks as tasks_module
from zipper.evaluate.heard import hear_recordings
from zipper.evaluate.judge import Judge, load_judge
from zipper.evaluate.result import Origin
from zipper.evaluate.run import evaluate_run
from zipper.evaluate.tts import Listener, Spoken, by_length, evaluate_tts, total
from zipper.evaluate.wer import WordErrors, word_errors
from zipper.generate import zipped as zipped_module
from zipper.generate.write import Written
from zipper.generate.zipped import load_zipped
from zipper.schema import JudgeConfig
from zipper.train import run as run_module
from zipper.train.module import ZipperModule, hide_past, stream_loss, switch_loss
from zipper.train.resolve import resolve
from zipper.train.whiten import whiten_zips
from zipper.units.facts import Facts, facts_of, longest_repeat
from zipper.units.pattern import delay

JOINT = ["name=joint", "model.switch=true", "train.tasks={asr: 1, tts: 1.26}", "train.tokens=300"]


def perfect(store, codec) -> Judge:
    """Hears what was said in every recording and round trip of the test split, by their samples; in all else,
    nothing."""
    known = {}
    for split in ("train", "dev", "test"):
        for row in store.splits[split]:
            known[_key(codec.decode(store.row_codes(row)))] = row["text"]
            known[_key(torch.from_numpy(sf.read(row["audio"], dtype="float32")[0]))] = row["text"]
    return Judge(lambda wave: known.get(_key(wave), ""), str, "perfect", "none")


def _key(wave: torch.Tensor) -> str:
    return f"{len(wave)} {float(wave.double().abs().sum()):.6f}"


@pytest.fixture
def listening(prepared, codec, monkeypatch):
    """`train` finds the tiny codec and a perfect judge."""
    monkeypatch.setattr(tasks_module, "load_codec", lambda cfg: codec)
    monkeypatch.setattr(zipped_module, "load_codec", lambda cfg: codec)
    judge = perfect(prepared, codec)
    monkeypatch.setattr(tasks_module, "load_judge", lambda cfg: judge)
    return Listener(codec, judge, "build")


def gold(store, rows) -> list[Written]:
    columns = [delay(store.row_codes(row), store.codes) for row in rows]
    return [Written("speech", c, store.row_codes(row), "end") for c, row in zip(columns, rows, strict=True)]


def test_gold_units_score_no_error_and_planted_ones_are_counted(listening, prepared):
    rows = [prepared.splits["test"][i] for i in range(6)]
    recorded = listening.recordings(prepared, rows)
    assert [one.original for one in recorded] == [one.target for one in recorded] == [r["text"] for r in rows]
    found = listening.score(rows, gold(prepared, rows), recorded)
    assert total(found) == WordErrors(0, sum(len(row["text"].split()) for row in rows))
    assert all(one.target_errors == 0 and one.seconds > 0 for one in found)
    # The second sentence is spoken in the place of the first, and the third is silent.
    written = gold(prepared, rows)
    written[0] = written[1]
    written[2] = replace(written[2], content=torch.zeros(3, 0, dtype=torch.int64))
    found = listening.score(rows, written, recorded)
    expected = word_errors(rows[0]["text"], rows[1]["text"]).errors + len(rows[2]["text"].split())
    assert total(found).errors == sum(one.target_errors for one in found) == expected
    assert (found[2].hypothesis, found[2].seconds) == ("", 0)


def test_recordings_are_heard_once_and_a_lost_one_is_named(listening, prepared):
    rows = [prepared.splits["test"][i] for i in range(4)]
    first = hear_recordings("build", prepared, listening.codec, listening.judge, rows[:2])
    deaf = replace(listening.judge, transcribe=lambda wave: "something else")
    again = hear_recordings("build", prepared, listening.codec, deaf, rows)
    assert again[:2] == first
    assert {one.original for one in again[2:]} == {"something else"}
    lost = [{**rows[0], "id": "lost", "audio": "nowhere.flac"}]
    with pytest.raises(DataError, match=r"Utterance lost: nowhere\.flac does not exist"):
        hear_recordings("build", prepared, listening.codec, listening.judge, lost)


def test_a_joint_run_leaves_both_results_and_samples(listening, prepared, capsys):
    cfg = config(
        *JOINT, "result=results/joint.json", "export=shipped", "evaluate.samplings=2", "evaluate.listened=2"
    )
    cfg.decode.speech.temperature = 1.0
    results = run_module.train(cfg, "x")
    assert set(results) == {"asr", "tts"}
    tts = results["tts"]
    for task in ("asr", "tts"):
        saved = json.loads(Path(f"results/joint-{task}.json").read_text())
        assert saved == json.loads(json.dumps(results[task]))
    assert tts["oracle_wer"] == tts["original_wer"] == 0.0
    assert tts["utterances"] == len(tts["per_utterance"]) == 6
    assert sum(tts["stopped"].values()) == 6
    assert len(tts["samplings"]["wer"]) == 2
    assert tts["samplings"]["best_of_wer"] <= min(tts["samplings"]["wer"])
    assert tts["judge"] == "perfect"
    names = {file.name for file in (cfg.run_dir / "samples").iterdir()}
    assert {"test-0.wav", "test-0.png", "test-1-target.wav", "dev-1.png"} <= names
    assert "test-2.wav" not in names
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert lines[-2].startswith("ASR WER")
    for part in ("against gold", "against target", "recordings 0.0 %", "round trip 0.0 %"):
        assert part in lines[-1]
    header = (cfg.run_dir / "metrics.csv").read_text().splitlines()[0]
    for metric in ("train/loss_switch", "dev/asr_wer", "dev/tts_wer", "dev/wer", "train/loss_speech"):
        assert metric in header
    for figure in ("attention-speech-text", "attention-text-speech", "wer-by-length"):
        assert (cfg.run_dir / "figures" / f"{figure}.png").is_file()
    evaluate_run(load_config(cfg.run_dir / "config.yaml"), "y")
    again = json.loads((cfg.run_dir / "tts-test.json").read_text())
    assert again["per_utterance"] == tts["per_utterance"]


def test_what_is_exported_writes_what_the_run_writes(listening, prepared, capsys):
    cfg = config(*JOINT, "export=shipped")
    run_module.train(cfg, "x")
    run, shipped = load_zipped(cfg.run_dir), load_zipped(Path("shipped"))
    for name, tensor in run.model.state_dict().items():
        torch.testing.assert_close(shipped.model.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)
    assert shipped.facts == run.facts
    Path("wide").mkdir()
    for path in Path("shipped").iterdir():
        Path("wide", path.name).write_bytes(path.read_bytes())
    Path("wide", "zipper.safetensors").write_bytes(b"x")
    with pytest.raises(DataError, match="not the file that"):
        load_zipped(Path("wide"))
    facts = json.loads(Path("shipped/zipper.json").read_text())
    facts["config"]["model"]["towers"]["speech"]["hidden"] = 48
    Path("shipped/zipper.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match=r"another shape than zipper\.json says"):
        load_zipped(Path("shipped"))


def command(*words: str) -> None:
    main(["generate", "build/runs/joint", *words])


def test_generate_speaks_and_recognises_from_the_command_line(listening, prepared, capsys):
    run_module.train(config(*JOINT), "x")
    text = prepared.splits["test"][0]["text"]
    command("--text", text.upper() + "!", "-o", "spoken.wav")
    assert sf.info("spoken.wav").samplerate == 16000
    audio = prepared.splits["test"][1]["audio"]
    capsys.readouterr()
    command("--audio", audio, "--then", "text", "speech", "-o", "both.wav")
    out = capsys.readouterr().out
    assert out.startswith("text    ")
    assert "both.wav" in out
    Path("in.tsv").write_text(f"id\ttext\taudio\na\t{text}\t\nb\t\t{audio}\n")
    command("--batch", "in.tsv", "-o", "many", "--decode", "text.beams=2", "speech.temperature=0.7")
    entries = [json.loads(line) for line in Path("many/generated.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in entries] == ["a", "b"]
    assert Path(entries[0]["written"][0]["wav"]).is_file()
    assert "text" in entries[1]["written"][0]
    command("--text", text, "--then", "auto", "-o", "chosen.wav")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Give what to go on from"),
        (["--text", ""], "there is nothing to say"),
        (["--text", "日本語"], "holds no letter"),
        (["--text", "2 cats"], "has digits"),
        (["--text", "the old cat " * 90], "Cut it into sentences"),
        (["--audio", "nowhere.wav"], "does not exist"),
        (["--audio", "long.wav"], "Cut it into sentences"),
        (["--text", "the cat", "--then", "music"], "no tower for 'music'"),
        (["--text", "the cat", "--then", "auto", "text"], "auto stands alone"),
        (["--text", "the cat", "-o", "long.wav"], "is not overwritten"),
        (["--text", "the cat", "--decode", "speech.temprature=1"], "temprature"),
        (["--batch", "nowhere.tsv"], "no such file"),
        (["--batch", "bad.tsv"], "entry 2: needs an id of its own"),
        (["--batch", "bad.jsonl"], "no JSON object"),
    ],
)
def test_bad_requests_end_in_one_line_and_leave_nothing(listening, trained, words, message, capsys):
    sf.write("long.wav", torch.randn(16000 * 20).numpy() * 0.1, 16000)
    Path("bad.tsv").write_text("id\ttext\na\tthe cat\na\tthe dog\n")
    Path("bad.jsonl").write_text("{\n")
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        command(*words)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.splitlines()[-1].startswith("error: ")
    assert sorted(Path().rglob("*")) == before


@pytest.fixture
def trained(listening, prepared):
    """A run folder as `generate` needs it, untrained."""
    cfg = resolve(config(*JOINT), prepared)
    module = ZipperModule.of(cfg, facts_of(prepared))
    folder = cfg.run_dir / "checkpoints"
    folder.mkdir(parents=True)
    state = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save({**state, "pytorch-lightning_version": "2.6.0"}, folder / "best.ckpt")
    (cfg.run_dir / "config.yaml").write_text("name: joint\n")
    prepared.subwords.save(cfg.run_dir / "tokenizer.json")
    return cfg


def test_a_folder_that_is_no_model_and_units_of_another_codec_are_refused(
    trained, listening, monkeypatch, in_tmp
):
    with pytest.raises(ConfigError, match=r"holds neither zipper\.json .* nor config\.yaml"):
        load_zipped(in_tmp)
    other = type("Other", (), {"fingerprint": "another codec"})()
    monkeypatch.setattr(zipped_module, "load_codec", lambda cfg: other)
    with pytest.raises(DataError, match="reads speech units of"):
        load_zipped(trained.run_dir)


def test_errors_by_length_add_up():
    def spoken(characters: int, errors: int) -> Spoken:
        return Spoken("x", errors, 4, 0, 0, 1.0, "a" * characters, "", "", "end")

    found = [spoken(8, 1), spoken(10, 0), spoken(11, 2), spoken(35, 4)]
    assert by_length(found) == [
        {"characters": 10, "utterances": 2, "wer": 0.125, "wer_up_to": 0.125},
        {"characters": 20, "utterances": 1, "wer": 0.5, "wer_up_to": 0.25},
        {"characters": 40, "utterances": 1, "wer": 1.0, "wer_up_to": 0.4375},
    ]
    assert len(by_length([spoken(n, 0) for n in range(1, 480, 7)])) <= 12


def test_the_longest_repeat_is_found_within_rows_alone():
    rows = [[1, 1, 1, 2], [2, 2, 3, 2, 3, 2, 3]]
    assert [longest_repeat([torch.tensor(r).numpy() for r in rows], p) for p in (1, 2, 3)] == [2, 4, 1]


def test_facts_are_those_of_the_training_split_and_cap_what_is_written(prepared):
    facts = facts_of(prepared)
    rows = list(prepared.splits["train"])
    frames = [len(row["codes"]) // 3 for row in rows]
    ratio = max(f / len(row["ids"]) for f, row in zip(frames, rows, strict=True))
    assert facts.cap("speech", "text", 4) == math.ceil(1.5 * ratio * 4) + 1
    assert facts.cap("speech", None, 0) == facts.cap("speech", "speech", 9) == math.ceil(1.5 * max(frames))
    assert Facts(**json.loads(json.dumps(facts.to_dict()))) == facts
    seconds = facts.seconds["text"]
    assert len(seconds) == prepared.subwords.vocabulary
    said = [sum(seconds[i] for i in (0, *row["ids"], 1)) for row in rows]
    assert sum(said) == pytest.approx(sum(row["seconds"] for row in rows), rel=1e-3)


def module_for(store, *words: str) -> ZipperModule:
    torch.manual_seed(0)
    cfg = resolve(config(*JOINT, *words), store)
    return ZipperModule.of(cfg, facts_of(store))


def joint_batch(store):
    documents = [
        document(store, store.splits["train"][i], task, 0.0) for i in range(8) for task in ("asr", "tts")
    ]
    return collate(documents, {"text": 1, "speech": 3})


def test_hidden_columns_are_answers_alone_and_what_is_asked_stays(prepared):
    model, batch = module_for(prepared).model, joint_batch(prepared)
    torch.manual_seed(0)
    hidden = hide_past(batch, model, 0.4, 3)
    assert torch.equal(hidden.streams["text"].tokens, batch.streams["text"].tokens)
    before, after = batch.streams["speech"], hidden.streams["speech"]
    assert torch.equal(before.target, after.target)
    changed = (before.tokens != after.tokens).any(-1)
    answers = before.valid & (before.weight > 0)
    assert not (changed & ~answers).any()
    assert not changed[:, 0].any()
    assert 0.25 < float(changed[answers].float().mean()) < 0.55
    assert (after.tokens[changed] == 18).all()


def test_codebook_weights_weigh_codebooks_and_their_total_is_known(prepared):
    module, batch = module_for(prepared), joint_batch(prepared)
    tower, stream = module.model.tower("speech"), batch.streams["speech"]
    states = module.model(batch)["speech"]
    alone = [float(stream_loss(tower, states, stream, [float(q == k) for q in range(3)])) for k in range(3)]
    weighted = float(stream_loss(tower, states, stream, [2.0, 0.5, 0.25]))
    assert weighted == pytest.approx(2 * alone[0] + 0.5 * alone[1] + 0.25 * alone[2], rel=1e-5)
    with pytest.raises(ConfigError, match="the store has 3 codebooks"):
        resolve(config("train.codebook_weights=[1.0,1.0]"), prepared)
    with pytest.raises(ConfigError, match="holds the end of speech"):
        config("train.codebook_weights=[0.0,1.0]")


def test_a_switch_learns_and_moves_nothing_else(prepared):
    module, batch = module_for(prepared), joint_batch(prepared)
    model = module.model
    for parameter in model.parameters():
        if parameter.ndim == 0:  # a text that was heard must differ from one that was given
            parameter.data.fill_(0.5)
    loss = switch_loss(model, model(batch), batch)
    loss.backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert touched == {f"switches.{n}.{p}" for n in ("text", "speech") for p in ("weight", "bias")}
    assert batch.turns == 2 * len(batch.ids)
    optimiser = torch.optim.Adam(model.switches.parameters(), lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        switch_loss(model, model(batch), batch).backward()
        optimiser.step()
    assert float(switch_loss(model, model(batch), batch)) / batch.turns < 0.2 * float(loss) / batch.turns


def test_whitened_zips_see_round_states_and_towers_stay(prepared):
    model = module_for(prepared).model.double()
    with torch.no_grad():  # a tower whose states are far from round
        model.tower("text").embedding.weight[:, :3] *= 50
    before = {name: p.clone() for name, p in model.named_parameters()}
    documents = [document(prepared, prepared.splits["train"][i], "tts", 0.0) for i in range(24)]
    whiten_zips(model, documents)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all(".projection.0." in name for name in moved)
    seen = []
    block = model.zip(0, "speech", "text")
    hook = block.projection[0].register_forward_hook(lambda _, __, out: seen.append(out))
    batch = collate(documents, {"text": 1, "speech": 3})
    model(batch)
    hook.remove()
    out = seen[0][batch.streams["text"].valid]
    assert out.mean(0).abs().max() < 1e-6
    values = torch.linalg.eigvalsh(out.T.cov())
    raw = values[values > 1e-6]
    assert 1.0 < float(raw.median()) < 3.0


def test_wav2vec2_is_loaded_from_a_file_and_missing_weights_are_told(in_tmp, monkeypatch):
    monkeypatch.setattr("zipper.evaluate.judge.find_spec", lambda module: object())
    (in_tmp / "bad.pth").write_bytes(b"no weights")
    normaliser = SimpleNamespace(EnglishTextNormalizer=lambda: str)
    monkeypatch.setitem(sys.modules, "whisper_normalizer", SimpleNamespace(english=normaliser))
    monkeypatch.setitem(sys.modules, "whisper_normalizer.english", normaliser)
    with pytest.raises(DataError, match=r"wav2vec2 cannot be loaded.*judge\.model=FILE"):
        load_judge(JudgeConfig(kind="wav2vec2", model=str(in_tmp / "nowhere.pth")))


def test_evaluating_needs_no_training(listening, prepared):
    module = module_for(prepared)
    cfg = config(*JOINT)
    result, segments = evaluate_tts(
        module.model, prepared, module.facts, resolve(cfg, prepared), Origin("x", "y", 0, 0.0), listening
    )
    assert len(segments) == result["utterances"] == 6
    assert result["decoding"] == "greedy"
