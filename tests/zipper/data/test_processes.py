"""Two processes (gloo) give what one gives: the same store, the same losses, the same weights."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import yaml

from reproduce import ROOT
from zipper.checkpoint_files import SHARDS, find_damage, load_index, read_checkpoint
from zipper.corpora.grammar import sentences
from zipper.distributed import leave_group, map_over_ranks
from zipper.errors import DataError
from zipper.evaluation.metrics import read_metrics
from zipper.evaluation.result_file import read_result

pytestmark = pytest.mark.slow

SHAPE = {"layers": 2, "width": 16, "heads": 2, "kv_heads": 2, "hidden": 32, "interval": 1}
TOWERS = {"text": {**SHAPE, "frozen": True}, "speech": {**SHAPE, "lora": 2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A manifest of noise, and a config that trains on it: 5 shards in all."""
    folder = tmp_path_factory.mktemp("processes")
    draw, texts, lines = np.random.default_rng(0), sentences(seed=3), ["id\taudio\ttext\tsplit"]
    for split, count in (("train", 40), ("dev", 6), ("test", 6)):
        for i in range(count):
            sf.write(
                folder / f"{split}-{i}.flac", draw.normal(0, 0.1, int(draw.integers(4800, 16000))), 16000
            )
            lines.append(f"{split}-{i}\t{split}-{i}.flac\t{' '.join(next(texts).split()[:3])}\t{split}")
    (folder / "list.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {
        "data": {"corpus": "manifest", "folder": str(folder / "list.tsv"), "subwords": 64},
        "model": {"towers": TOWERS, "zip": {"heads": 2}},
        "train": {
            "tasks": {"asr": 1.0}, "steps": 20, "validate_every": 20, "tokens": 400, "warmup": 2, "lr": 0.01,
            "accelerator": "cpu", "precision": "64-true", "ctc": 0.3,
        },
        "evaluate": {"dev_utterances": 2, "mismatched": False},
        "log": {"wandb": "disabled", "every": 1},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def zipper(folder: Path, command: str, *words: str, stop: Path | None = None) -> str:
    """stop: SIGTERM to the first process alone, as soon as this file is there. Shards then take half a
    second each, so that the signal arrives before the last one."""
    slow = "import time; write = e.write_shard; e.write_shard = lambda *a: (write(*a), time.sleep(0.5)); "
    code = "import zipper.data.encode as e; e.SHARD = 10; "
    code += f"{slow if stop else ''}from zipper.cli import main; main()"
    where = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    script = folder / "zipper_in_shards_of_ten.py"
    script.write_text(code.replace("; ", "\n") + "\n", encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, str(script), command, str(folder / "config.yaml"), *words],
        cwd=folder, env=where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    ) as process:  # fmt: skip
        while stop and not stop.exists() and process.poll() is None:
            time.sleep(0.02)
        if stop:
            process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=300)[0]
    assert process.returncode == (75 if stop else 0), said
    return said


def losses(folder: Path) -> dict[int, float]:
    return dict(read_metrics(folder)["train/loss"])


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"]


@pytest.fixture(scope="module")
def one_process(folder) -> Path:
    zipper(folder, "train", "name=one")
    return folder / "build/runs/one"


def contents(dataset: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(dataset.iterdir())}


def test_the_store_is_the_same_whatever_the_number_of_processes(folder):
    said = zipper(folder, "prepare", "build=one")
    assert "hours per hour, by 1 process(es)" in said
    said = zipper(folder, "prepare", "build=two", "train.devices=2")
    assert "hours per hour, by 2 process(es)" in said
    (one,), (two,) = (folder / "one/stores").iterdir(), (folder / "two/stores").iterdir()
    assert len(list(one.glob("train-*.arrow"))) == 4
    assert contents(one) == contents(two)
    # Cut off with one shard to go, which is the first process' own: the second has nothing left to do.
    (two / "store.json").unlink()
    (two / "train-00002.arrow").unlink()
    zipper(folder, "prepare", "build=two", "train.devices=2")
    assert contents(one) == contents(two)


TWO = ["train.devices=2", "train.strategy=auto", "train.precision=64-true", "train.save_every=3"]


SHARDED = ["train.devices=2", "train.strategy=fsdp2", "train.precision=32-true", "train.save_every=3"]


@pytest.fixture(scope="module")
def two_processes(folder) -> Path:
    zipper(folder, "train", *TWO, "name=auto")
    return folder / "build/runs/auto"


@pytest.fixture(scope="module")
def sharded(folder) -> Path:
    zipper(folder, "train", *SHARDED, "name=fsdp2")
    return folder / "build/runs/fsdp2"


@pytest.mark.parametrize(
    ("strategy", "precision", "close", "weights"),
    [("auto", "64-true", 1e-9, 1e-8), ("fsdp2", "32-true", 1e-4, 1e-2)],
)
def test_two_processes_have_the_losses_and_the_weights_of_one(
    folder, one_process, two_processes, sharded, strategy, precision, close, weights
):
    """20 steps with the same global batch, frozen and trained parameters mixed, against one process in
    float64 (which Lightning does not shard). Sharded weights transcribe dev as whole ones do, and a sharded
    checkpoint is read as a whole one."""
    one, two = losses(one_process), losses(folder / f"build/runs/{strategy}")
    assert len(one) == 20
    assert one.keys() == two.keys()
    assert one[19] < one[0] - 0.01
    assert max(abs(one[step] - two[step]) for step in one) < close
    runs = (one_process, folder / "build/runs" / strategy)
    for kept in (read_metrics(run) for run in runs):
        assert kept["dev/asr_wer"] == read_metrics(one_process)["dev/asr_wer"] != []
    states = [weights_of(run) for run in runs]
    assert states[0].keys() == states[1].keys()
    for key, tensor in states[0].items():
        torch.testing.assert_close(states[1][key].double(), tensor.double(), rtol=0, atol=weights)
    results = [read_result(run / "asr.json") for run in runs]
    assert results[0]["per_utterance"] == results[1]["per_utterance"]


def test_two_processes_that_were_stopped_go_on_exactly(folder, two_processes):
    """The signal reaches one of them; both save at the same step, and end."""
    run = folder / "build/runs/broken"
    said = zipper(folder, "train", *TWO, "name=broken", stop=run / "checkpoints/last.ckpt")
    assert "SIGTERM: saving after this step, then stopping" in said
    step = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert 3 <= step < 20
    zipper(folder, "train", *TWO, "name=broken")
    states = [weights_of(one) for one in (two_processes, run)]
    assert all(torch.equal(states[1][key], tensor) for key, tensor in states[0].items())
    assert losses(two_processes).items() >= losses(run).items()


def test_a_sharded_run_that_was_stopped_goes_on_exactly_and_in_one_process(folder, sharded):
    """Its checkpoints name shards of both processes, which are all that is kept."""
    run = folder / "build/runs/stopped"
    zipper(folder, "train", *SHARDED, "name=stopped", stop=run / "checkpoints/last.ckpt")
    kept = load_index(run / "checkpoints/last.ckpt")
    assert 3 <= kept["global_step"] < 20
    assert kept["state_dict"] == {}
    assert [Path(name).name for name in kept[SHARDS]] == [f"rank-0000{n}.safetensors" for n in range(2)]
    shutil.copytree(run, run.with_name("stopped-copy"))
    zipper(folder, "train", *SHARDED, "name=stopped")
    states = [weights_of(one) for one in (sharded, run)]
    assert all(torch.equal(states[1][key], tensor) for key, tensor in states[0].items())
    named = {name for file in run.glob("checkpoints/*.ckpt") for name in load_index(file)[SHARDS]}
    there = {f.relative_to(run / "checkpoints").as_posix() for f in run.glob("checkpoints/*/*.safetensors")}
    assert named == there

    shutil.rmtree(run)
    run.with_name("stopped-copy").rename(run)
    zipper(folder, "train", *SHARDED, "train.devices=1", "name=stopped")
    expected, found = losses(sharded), losses(run)
    assert found
    assert max(abs(expected[step] - loss) for step, loss in found.items()) < 1e-4

    last = run / "checkpoints/last.ckpt"
    shard = last.parent / next(iter(load_index(last)[SHARDS]))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(
        DataError, match=f"the checksum of its shard {shard.relative_to(last.parent)} is wrong"
    ):
        read_checkpoint(last)
    shard.write_bytes(content[:-1])
    assert find_damage(last) == f"its shard {shard.relative_to(last.parent)} is missing or cut off"


def test_a_run_goes_on_with_another_number_of_processes(folder, one_process):
    """What a step trains on does not depend on it."""
    run = folder / "build/runs/moved"
    words = ["train.save_every=3", "name=moved"]
    zipper(folder, "train", *words, stop=run / "checkpoints/last.ckpt")
    zipper(folder, "train", *words, "train.devices=2")
    expected, found = losses(one_process), losses(run)
    assert found
    assert max(abs(expected[step] - loss) for step, loss in found.items()) < 1e-9
    results = [read_result(one / "asr.json") for one in (one_process, run)]
    assert results[0]["per_utterance"] == results[1]["per_utterance"]


def test_an_evaluation_that_has_encoded_by_two_processes_ends(folder, two_processes):
    """Of a run whose store is gone: one of them evaluates, without waiting for the other."""
    shutil.rmtree(folder / "build/stores")
    said = zipper(folder, "evaluate", *TWO, "name=auto")
    assert "by 2 process(es)" in said
    expected, found = (read_result(two_processes / name) for name in ("asr.json", "asr-test.json"))
    assert found["per_utterance"] == expected["per_utterance"]
    assert not list(two_processes.glob(".evaluating*"))


def take_shares(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    worked: list[int] = []
    found = [
        map_over_ranks(list(range(n)), lambda some: [worked.append(i) or 10 * i for i in some])
        for n in range(6)
    ]
    (folder / f"{rank}.json").write_text(json.dumps([worked, found]), encoding="utf-8")
    leave_group()
    if rank == 0:  # the other one is gone, and is not waited for
        assert map_over_ranks([1, 2], lambda some: [10 * i for i in some]) == [10, 20]


def test_two_processes_share_the_rows_of_an_evaluation(tmp_path):
    """Each row is worked on once, by one of them, and both get all in their order."""
    mp.start_processes(take_shares, (tmp_path,), nprocs=2, start_method="fork")
    (one, found), (two, same) = (
        json.loads((tmp_path / f"{r}.json").read_text(encoding="utf-8")) for r in (0, 1)
    )
    assert found == same == [[10 * i for i in range(n)] for n in range(6)]
    assert sorted(one + two) == sorted(i for n in range(6) for i in range(n))
    assert abs(len(one) - len(two)) <= 3
    assert map_over_ranks([1, 2], lambda some: [10 * i for i in some]) == [10, 20]  # without a group
