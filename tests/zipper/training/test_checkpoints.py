"""Checkpoints are whole or absent; which of them is taken, and what none of them may hold."""

import errno
import os
import pickle
import random
import resource
from pathlib import Path

import pytest
import torch

from broken_runs import RUNS, assert_resumes_exactly, assert_same, killed_at, room_for, saved, train_broken
from zipper.checkpoint_files import find_damage, read_checkpoint
from zipper.config import TrainConfig
from zipper.data.encode import _trainer
from zipper.disk import disk_failure
from zipper.distributed import AtomicCheckpointIO
from zipper.errors import DataError
from zipper.generation.exported import load_trained
from zipper.run_folder import newest


@pytest.mark.parametrize(
    ("file", "harm"),
    [("last", "cut"), ("last", "flip"), ("last and before", "empty"), ("best", "flip"), ("best", "gone")],
)
def test_a_damaged_checkpoint_is_said_and_the_newest_whole_one_taken(
    unbroken, monkeypatch, capsys, file, harm
):
    killed_at(monkeypatch, 5)
    folder = RUNS / "broken" / "checkpoints"
    for name in {"last": ["last"], "best": ["best"]}.get(file, ["last", "last-before"]):
        damage(folder / f"{name}.ckpt", harm)
    train_broken()
    said = capsys.readouterr().out
    assert harm == "gone" or f"{file.split()[0]}.ckpt is damaged (" in said
    assert ("resuming from the start" in said) == (file == "best")
    assert_same("unbroken", "broken")


def damage(file: Path, harm: str) -> None:
    content = bytearray(file.read_bytes())
    if harm == "gone":
        file.unlink()
    elif harm == "flip":
        content[len(content) // 2] ^= 1
    else:
        del content[0 if harm == "empty" else len(content) - 7 :]
    if file.exists():
        os.remove(file)  # not through its other name
        file.write_bytes(content)


def test_every_cut_and_every_flipped_tensor_is_found(tmp_path):
    torch.save({"weights": torch.arange(3000.0), "step": 3}, tmp_path / "x.ckpt")
    content, draw = (tmp_path / "x.ckpt").read_bytes(), random.Random(0)
    assert find_damage(tmp_path / "x.ckpt") is None
    start = content.index(torch.arange(3000.0).numpy().tobytes())
    for _ in range(300):
        (tmp_path / "x.ckpt").write_bytes(content[: draw.randrange(len(content))])
        assert find_damage(tmp_path / "x.ckpt")
        flipped = bytearray(content)
        flipped[start + draw.randrange(12_000)] ^= 1 << draw.randrange(8)
        (tmp_path / "x.ckpt").write_bytes(flipped)
        assert "checksum" in (find_damage(tmp_path / "x.ckpt") or "")
    assert "Error" in (find_damage(tmp_path / "nothing.ckpt") or "")


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_a_full_disk_at_a_checkpoint_leaves_the_one_before(unbroken, monkeypatch, size):
    save = AtomicCheckpointIO.save_checkpoint

    def full_at_the_fourth_step(self, checkpoint, path, storage_options=None):
        with room_for(size if checkpoint["global_step"] == 4 else resource.RLIM_INFINITY):
            save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", full_at_the_fourth_step)
    with pytest.raises(OSError) as caught:
        train_broken()
    assert "no space left" in (disk_failure(caught.value) or "")
    assert saved("broken")["global_step"] == 3
    assert not list(RUNS.rglob("*.part"))
    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save)
    assert_resumes_exactly()


def test_a_run_folder_that_has_moved_keeps_its_best(unbroken, monkeypatch):
    killed_at(monkeypatch, 5)
    file = RUNS / "broken" / "checkpoints" / "last.ckpt"
    state = saved("broken")
    (key,) = (key for key in state["callbacks"] if key.startswith("ModelCheckpoint"))
    moved = {**state["callbacks"][key], "dirpath": "/elsewhere", "best_model_path": "/elsewhere/best.ckpt"}
    torch.save({**state, "callbacks": {**state["callbacks"], key: moved}}, file)
    assert_resumes_exactly()


def a_checkpoint(run_dir: Path, name: str, step: int, **callbacks: object) -> Path:
    (run_dir / "checkpoints").mkdir(exist_ok=True)
    file = run_dir / "checkpoints" / f"{name}.ckpt"
    torch.save({"global_step": step, "callbacks": callbacks}, file)
    return file


def test_the_newest_of_all_checkpoints_is_taken(tmp_path):
    last, before = a_checkpoint(tmp_path, "last", 9), a_checkpoint(tmp_path, "last-before", 7)
    assert newest(tmp_path) == last
    last.unlink()
    assert newest(tmp_path) == before


def test_one_that_knows_of_another_best_is_not_taken(tmp_path):
    """It is of a run that was begun anew, since its best one was lost."""
    for name, step, score in (("last-before", 300, 0.2), ("last", 100, 0.9), ("best", 100, 0.9)):
        known = {"best_model_score": torch.tensor(score)}
        a_checkpoint(tmp_path, name, step, **{"ModelCheckpoint{}": known})
    assert newest(tmp_path) == tmp_path / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("part", ["hyper_parameters", "datamodule_hyper_parameters", "module_arguments"])
@pytest.mark.parametrize("within", [lambda named: named, lambda named: {"a": [1, ({"b": named},)]}])
@pytest.mark.parametrize("read", [read_checkpoint, load_trained, AtomicCheckpointIO().load_checkpoint])
def test_one_that_names_code_to_run_is_never_used(tmp_path, part, within, read):
    """At any depth, in lists too, and whatever version of Lightning is installed (CVE-2026-58659)."""
    file = a_checkpoint(tmp_path, "last", 1)
    torch.save({"global_step": 1, "state_dict": {}, part: within({"_instantiator": "os.system"})}, file)
    for use in (read, lambda file: newest(tmp_path)):
        with pytest.raises(DataError, match=r"last\.ckpt holds the hyperparameter _instantiator=os\.system"):
            use(file)
    assert file.exists()


def test_under_slurm_a_store_folder_runs_nothing_either(tmp_path, monkeypatch):
    """Lightning looks there for what SLURM cut off, and reads it as it is."""
    torch.save({"state_dict": {}, "global_step": Payload()}, tmp_path / "hpc_ckpt_1.ckpt")
    trainer = _trainer(TrainConfig(accelerator="cpu"), tmp_path)
    with pytest.raises(DataError, match="more than tensors"):
        trainer.strategy.load_checkpoint(tmp_path / "hpc_ckpt_1.ckpt", weights_only=False)


def test_a_disk_that_cannot_be_read_now_is_no_damage(tmp_path, monkeypatch):
    def unreadable(_):
        raise OSError(errno.EIO, "no")

    last = a_checkpoint(tmp_path, "last", 1)
    with monkeypatch.context() as broken:
        broken.setattr("zipper.checkpoint_files.ZipFile", unreadable)
        with pytest.raises(OSError, match="no"):
            newest(tmp_path)
    assert newest(tmp_path) == last


class Payload:
    """What a stranger's checkpoint may hold."""

    def __reduce__(self):
        return (os.system, ("touch opened",))


def test_a_malicious_checkpoint_runs_nothing(in_tmp):
    state = {"state_dict": {}, "hyper_parameters": Payload(), "global_step": 1, "callbacks": {}}
    folder = Path("build/runs/bad/checkpoints")
    folder.mkdir(parents=True)
    torch.save(state, folder / "last.ckpt")
    with pytest.raises(DataError, match=r"last\.ckpt holds more than tensors and plain values.*safetensors"):
        load_trained(folder / "last.ckpt")
    with pytest.raises(DataError, match="holds more than tensors"):
        newest(Path("build/runs/bad"))
    (folder / "last.ckpt").write_bytes(pickle.dumps(state))
    with pytest.raises(DataError, match="is damaged"):
        load_trained(folder / "last.ckpt")
    assert not Path("opened").exists()
