"""Shards of a store: which rank makes them, the waves that go in, and the file that comes out."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import datasets
import lightning as L
import torch
from datasets.arrow_writer import ArrowWriter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zipper.corpora.utterance import Utterance
from zipper.data.dataset import FEATURES, Row
from zipper.errors import DataError

LoadedUtterance = tuple[
    Utterance, "Tensor | DataError | None"
]  # its wave, or why there is none; None: it is text alone


class Skipped(TypedDict):
    """An utterance that cannot be used."""

    id: str
    reason: str


@dataclass(frozen=True)
class Shard:
    """One shard's place in the store, and its utterances in the corpus' order."""

    file: Path | None
    utterances: list[Utterance]


class ShardReader(L.LightningDataModule):
    """Shards that are not whole yet, each rank its own: number n belongs to rank n modulo the ranks, so that
    it does not matter what others have finished."""

    def __init__(self, shards: list[Shard], sample_rate: int, longest: float) -> None:
        super().__init__()
        self.shards, self.sample_rate, self.longest = shards, sample_rate, longest

    def predict_dataloader(self) -> DataLoader[tuple[Shard, list[LoadedUtterance]]]:
        assert self.trainer is not None
        todo = self.shards_of(self.trainer.global_rank, self.trainer.world_size)
        waves = Waves(todo, self.sample_rate, self.longest)
        return DataLoader(waves, batch_size=None, collate_fn=_whole)  # threads read; see Waves

    def shards_of(self, rank: int, ranks: int) -> list[Shard]:
        """What a rank has to make. One whose shards are all whole gets an empty shard, which makes no file:
        every rank takes part to the end."""
        mine = self.shards[rank::ranks]
        return [shard for shard in mine if not is_complete(shard)] or [Shard(None, [])]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, index: int) -> Any:
        return batch  # one group after the other goes there, not 512 waves at once


class Waves(Dataset[tuple[Shard, list[LoadedUtterance]]]):
    """Shards with the waves of their utterances."""

    def __init__(self, shards: list[Shard], sample_rate: int, longest: float) -> None:
        self.shards, self.sample_rate, self.longest = shards, sample_rate, longest

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> tuple[Shard, list[LoadedUtterance]]:
        shard = self.shards[index]
        with ThreadPoolExecutor(4) as pool:  # reading waits for the disk
            waves = list(pool.map(self._read, shard.utterances))
        return shard, list(zip(shard.utterances, waves, strict=True))

    def _read(self, u: Utterance) -> Tensor | DataError | None:
        if u.audio is None:
            return None
        try:
            return u.wave(self.sample_rate, self.longest)
        except DataError as error:
            return error


def _whole(batch: Any) -> Any:
    """The loader's own conversion would turn tuples into lists."""
    return batch


def is_complete(shard: Shard) -> bool:
    """Whether it is on the disk with every row. What was skipped may be mended by now: only a shard that
    lacks nothing stays as it is."""
    file = shard.file
    if file is None or not file.exists() or file.with_suffix(".skipped").exists():
        return False
    try:
        return len(datasets.Dataset.from_file(str(file))) == len(shard.utterances)
    except Exception:  # pyarrow raises OSError or ArrowInvalid on a file that was cut off
        return False


def list_skipped(file: Path, skipped: list[Skipped]) -> None:
    """JSON lines, whole or absent."""
    aside = file.with_suffix(f".{os.getpid()}.listing")
    aside.write_text("".join(json.dumps(entry) + "\n" for entry in skipped), encoding="utf-8")
    aside.rename(file)


def write_shard(file: Path, rows: list[Row], skipped: list[Skipped]) -> None:
    """In the corpus' order, through another name. What could not be read is listed beside it."""
    aside = file.with_suffix(f".{os.getpid()}.part")  # two commands may prepare the same store
    writer = ArrowWriter(features=FEATURES, path=str(aside))
    for row in rows:
        writer.write(row)
    writer.finalize()
    writer.close()
    # A shard never stands without the list of what it lacks, wherever this is cut off.
    if skipped:
        list_skipped(file.with_suffix(".skipped"), skipped)
    aside.rename(file)
    if not skipped:
        file.with_suffix(".skipped").unlink(missing_ok=True)
