"""Sharded checkpoints: rows of tensors in files of several processes, read as one."""

import pytest
import torch
from safetensors.torch import save_file

from zipper.checkpoint_files import ShardFiles, optimizer_key


def test_rows_are_found_wherever_they_lie(tmp_path):
    """Five rows in three files, as FSDP2 cuts them, and one row in a fourth of its own; for any range."""
    whole, step = torch.randn(5, 3), torch.tensor(7.0)
    moment = optimizer_key(0, "a", "exp_avg")
    for rank, rows in enumerate((whole[:2], whole[2:4], whole[4:])):
        numbers = {optimizer_key(0, "a", "step"): step, "state_dict/b": whole[0]} if rank == 0 else {}
        save_file({"state_dict/a": rows.clone(), moment: -rows, **numbers}, tmp_path / f"{rank}.safetensors")
    names = [f"{rank}.safetensors" for rank in (2, 0, 1)]
    files = ShardFiles(tmp_path, names)
    for start in range(6):
        for stop in (*range(start, 6), None):
            torch.testing.assert_close(
                files.rows("state_dict/a", start, stop), whole[start:stop], rtol=0, atol=0
            )
    with pytest.raises(KeyError):
        files.rows("state_dict/c")
    found = files.whole({"optimizer_states": [{"param_groups": [{"lr": 0.1, "params": ["a"]}]}]})
    assert torch.equal(found["state_dict"]["a"], whole)
    assert torch.equal(found["state_dict"]["b"], whole[0])
    (optimiser,) = found["optimizer_states"]
    assert optimiser["param_groups"] == [{"lr": 0.1, "params": [0]}]
    assert torch.equal(optimiser["state"][0]["exp_avg"], -whole)
    assert optimiser["state"][0]["step"] == step
