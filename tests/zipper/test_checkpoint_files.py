"""Sharded checkpoints: rows of tensors in files of several processes, read as one."""

import resource

import pytest
import torch
from safetensors.torch import save_file

from zipper import sharded
from zipper.checkpoint_files import SHARDS, ShardFiles, load_plain
from zipper.disk import disk_failure
from zipper.errors import DataError


def test_rows_are_found_wherever_they_lie(tmp_path):
    """Five rows in three files, as FSDP2 cuts them, for any range; what is not cut is in the first alone."""
    whole, step = torch.randn(5, 3), torch.tensor(7.0)
    for rank, rows in enumerate((whole[:2], whole[2:4], whole[4:])):
        numbers = {"optimizer/0/a/step": step, "state_dict/b": whole[0]} if rank == 0 else {}
        save_file({"state_dict/a": rows.clone(), **numbers}, tmp_path / f"{rank}.safetensors")
    names = [f"{rank}.safetensors" for rank in (2, 0, 1)]
    files = ShardFiles(tmp_path, names)
    for start in range(6):
        for stop in (*range(start, 6), None):
            torch.testing.assert_close(
                files.rows("state_dict/a", start, stop), whole[start:stop], rtol=0, atol=0
            )
    with pytest.raises(KeyError):
        files.rows("state_dict/c")
    found = files.weights()
    assert found.keys() == {"a", "b"}
    assert torch.equal(found["a"], whole)
    assert torch.equal(found["b"], whole[0])
    assert files.rows("optimizer/0/a/step") == step
    assert (files.shape("state_dict/a"), files.shape("optimizer/0/a/step")) == ([5, 3], [])


def test_a_shard_may_be_read_by_others_and_a_full_disk_is_an_error_of_the_disk(tmp_path):
    folder = tmp_path / f"{SHARDS}-a"
    name, size, _ = sharded._write({"state_dict/a": torch.ones(2)}, folder / "rank-00000.safetensors")
    (tmp_path / "plain").touch()
    assert (folder / name).stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (folder / name).stat().st_size == size

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            sharded._write({"state_dict/a": torch.ones(1000)}, folder / "rank-00001.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "Finished work is kept" in (disk_failure(error.value) or "")
    assert [one.name for one in folder.iterdir()] == [name]


def test_shards_that_a_checkpoint_names_are_kept_and_others_deleted(tmp_path):
    """Also those of a checkpoint that was set aside; one that cannot be read changes nothing."""
    for token in "abc":
        shard = sharded._write(
            {"state_dict/a": torch.ones(2)}, tmp_path / f"{SHARDS}-{token}/rank-0.safetensors"
        )
        index = {"state_dict": {}, SHARDS: {f"{SHARDS}-{token}/rank-0.safetensors": shard[1:]}}
        torch.save(index, tmp_path / {"a": "last.ckpt", "b": "best.ckpt.damaged", "c": "old"}[token])
    (tmp_path / "stray.ckpt").write_bytes(b"no checkpoint")
    sharded._prune(tmp_path)
    assert sorted(one.name for one in tmp_path.glob(f"{SHARDS}-*")) == [f"{SHARDS}-a", f"{SHARDS}-b"]
    assert load_plain(tmp_path / "last.ckpt", mmap=True)["state_dict"]["a"].tolist() == [1, 1]
    with pytest.raises(FileNotFoundError):
        load_plain(tmp_path / "old", mmap=True)
    (tmp_path / f"{SHARDS}-a/rank-0.safetensors").write_bytes(b"another")
    with pytest.raises(DataError, match=r"checksum of its shard shards-a/rank-0"):
        load_plain(tmp_path / "last.ckpt", mmap=True)
