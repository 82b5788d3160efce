"""FSDP2 whose checkpoints are sharded: every process writes its own rows of weights and optimiser states, and
reads those that it needs, so that no process ever holds the whole.

    checkpoints/  last.ckpt  best.ckpt ...  shards-TOKEN/rank-00000.safetensors ...

A checkpoint holds all but the tensors, and names and hashes its shards (`zipper.checkpoint_files`). Shards
that no checkpoint names any more are deleted.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import save
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, Shard

from zipper.checkpoint_files import SHARDS, WEIGHTS, ShardFiles, check_shards, flush_folder, load_index
from zipper.disk import write_atomic
from zipper.errors import DataError


class ShardedStrategy(ModelParallelStrategy):
    """`train.strategy=fsdp2`. Reads unsharded checkpoints, too, and a sharded one of any number of
    processes."""

    def __init__(self, processes: int) -> None:
        super().__init__(processes, tensor_parallel_size=1, save_distributed_checkpoint=True)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """All processes must call it. Raises OSError in all of them if one cannot write."""
        file, token = self.broadcast((Path(filepath), token_hex(4)))
        folder = file.parent / f"{SHARDS}-{token}"
        shard = folder / f"rank-{self.global_rank:05d}.safetensors"
        optimisers = checkpoint.get("optimizer_states", [])
        rows = _rows(checkpoint["state_dict"], optimisers)
        own = {key: _local(part) for key, part in rows if self.is_global_zero or isinstance(part, DTensor)}
        written = self._in_all(lambda: _write(own, shard))
        settings = [{"param_groups": one["param_groups"]} for one in optimisers]
        shards = {f"{folder.name}/{name}": (size, digest) for name, size, digest in written}
        index = {**checkpoint, "state_dict": {}, "optimizer_states": settings, SHARDS: shards}

        def finish() -> None:
            if self.is_global_zero:
                self.checkpoint_io.save_checkpoint(index, file)
                _prune(file.parent)

        self._in_all(finish)

    def load_checkpoint(
        self, checkpoint_path: str | os.PathLike[str], weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Fills model and optimisers, and returns the rest. Raises DataError if the weights do not fit."""
        file = Path(self.broadcast(checkpoint_path))
        saved = load_index(file)
        if SHARDS not in saved:
            return super().load_checkpoint(file, weights_only)
        assert self.model is not None
        share = sorted(saved[SHARDS])[self.global_rank :: self.world_size]
        self._in_all(lambda: check_shards(file, {name: saved[SHARDS][name] for name in share}))
        files = ShardFiles(file.parent, saved[SHARDS])
        state: dict[str, Any] = get_model_state_dict(self.model)
        of_optimisers = [get_optimizer_state_dict(self.model, one) for one in self.optimizers]
        for key, part in _rows(state, of_optimisers):
            if key not in files.of and not key.startswith(WEIGHTS):
                _local(part).zero_()  # of a parameter that has had no gradient yet
            elif (shape := files.shape(key)) != [*part.shape]:
                raise DataError(f"{file} does not fit this model: {key} is {shape}, not {[*part.shape]}.")
            else:
                _local(part).copy_(files.rows(key, *_range(part)))
        set_model_state_dict(self.model, state)
        kept_settings = saved["optimizer_states"]
        for optimiser, own, kept in zip(self.optimizers, of_optimisers, kept_settings, strict=False):
            set_optimizer_state_dict(self.model, optimiser, {**own, **kept})  # kept: its settings
        return saved

    def _in_all(self, work: Callable[[], Any]) -> list[Any]:
        """What `work` returns in each process. Raises in all of them what it raises in one of them."""
        try:
            own = work()
        except (OSError, DataError) as error:
            own = error
        done: list[Any] = [None] * self.world_size
        dist.all_gather_object(done, own)
        if errors := [one for one in done if isinstance(one, OSError | DataError)]:
            raise errors[0]
        return done


def _rows(weights: dict[str, Tensor], optimisers: list[dict[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    """(key, tensor) of all weights and optimiser states, sharded or not."""
    yield from ((f"{WEIGHTS}{name}", weight) for name, weight in weights.items())
    for index, optimiser in enumerate(optimisers):
        for name, parts in optimiser["state"].items():
            yield from ((f"optimizer/{index}/{name}/{kind}", part) for kind, part in parts.items())


def _local(part: Tensor) -> Tensor:
    return part.to_local() if isinstance(part, DTensor) else part


def _range(part: Tensor) -> tuple[int, int | None]:
    """Rows of a tensor that this process holds, from the first to before the last: all of them (0, None) if
    it is not sharded."""
    if not isinstance(part, DTensor):
        return 0, None
    assert part.placements == (Shard(0),), "FSDP2 shards the first dimension"
    each = -(-part.shape[0] // part.device_mesh.size())
    start = min(part.device_mesh.get_local_rank() * each, part.shape[0])
    return start, start + len(part.to_local())


def _write(tensors: dict[str, Tensor], file: Path) -> tuple[str, int, str]:
    """File name, bytes and SHA-256 of the shard, which leaves empty tensors out. It is synced to disk. Raises
    OSError."""
    content = save({key: x.detach().cpu().contiguous() for key, x in tensors.items() if x.numel()})
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, content)
    with file.open("rb") as written:
        os.fsync(written.fileno())
    flush_folder(file.parent)
    return file.name, len(content), hashlib.sha256(content).hexdigest()


def _prune(folder: Path) -> None:
    """Delete shards that no checkpoint of the folder names, also one that was set aside as damaged."""
    named = set[str]()
    for file in folder.glob("*.ckpt*"):
        with suppress(Exception):  # one that cannot be read, which says nothing of its shards
            named |= {name.split("/")[0] for name in load_index(file).get(SHARDS, ())}
    for shards in folder.glob(f"{SHARDS}-*"):
        if shards.name not in named:
            shutil.rmtree(shards)
