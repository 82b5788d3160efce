"""Shards of an encoded dataset: assignment to ranks, reading of audio, writing of files."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lightning as L
import pyarrow as pa
import torch
from datasets.arrow_writer import ArrowWriter
from torch.utils.data import DataLoader, Dataset

from zipper.corpora.utterance import Utterance
from zipper.data.dataset import Row
from zipper.data.skipped import Skipped, list_skipped
from zipper.errors import DataError
from zipper.modalities.base import Modality
from zipper.modalities.resampling import resample

# Utterance with its value of each modality that it has, or the reason why one cannot be read.
LoadedUtterance = tuple[Utterance, dict[str, Any] | DataError]


@dataclass(frozen=True)
class Shard:
    """File of a shard, and its utterances in corpus order."""

    file: Path | None
    utterances: list[Utterance]


class ShardReader(L.LightningDataModule):
    """Incomplete shards of each rank. Shard n belongs to rank n modulo the number of ranks, independent of
    which shards are complete."""

    def __init__(self, shards: list[Shard], modalities: Mapping[str, Modality], longest: float) -> None:
        """longest: limit of recordings in seconds."""
        super().__init__()
        self.shards, self.modalities, self.longest = shards, modalities, longest

    def predict_dataloader(self) -> DataLoader[tuple[Shard, list[LoadedUtterance]]]:
        assert self.trainer is not None
        todo = self.shards_of(self.trainer.global_rank, self.trainer.world_size)
        values = Values(todo, self.modalities, self.longest)
        return DataLoader(values, batch_size=None, collate_fn=identity)  # Values reads with threads

    def shards_of(self, rank: int, ranks: int) -> list[Shard]:
        """Incomplete shards of a rank. A rank without any gets one empty shard without a file, because
        every rank takes part to the end."""
        mine = self.shards[rank::ranks]
        return [shard for shard in mine if not is_complete(shard)] or [Shard(None, [])]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, index: int) -> Any:
        return batch  # the encoder moves one group at a time


class Values(Dataset[tuple[Shard, list[LoadedUtterance]]]):
    """Shards with the values of their utterances."""

    def __init__(self, shards: list[Shard], modalities: Mapping[str, Modality], longest: float) -> None:
        self.shards, self.modalities, self.longest = shards, modalities, longest

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> tuple[Shard, list[LoadedUtterance]]:
        shard = self.shards[index]
        with ThreadPoolExecutor(4) as pool:  # I/O-bound
            values = list(pool.map(self._read, shard.utterances))
        return shard, list(zip(shard.utterances, values, strict=True))

    def _read(self, u: Utterance) -> dict[str, Any] | DataError:
        try:
            given = {name: u.raw(one.column) for name, one in self.modalities.items()}
            return {
                name: self._value(self.modalities[name], raw, u)
                for name, raw in given.items()
                if raw is not None
            }
        except DataError as error:
            return DataError(f"Utterance {u.id}: {error}")

    def _value(self, modality: Modality, raw: str, u: Utterance) -> Any:
        value, rate = modality.read(raw, u.start, u.seconds, self.longest), modality.sample_rate
        return value if rate is None else resample(value, round(rate * u.speed), rate)


def identity(batch: Any) -> Any:
    """Identity collate_fn. The default conversion of DataLoader turns tuples into lists."""
    return batch


def is_complete(shard: Shard) -> bool:
    """Whether a shard's file holds every row. A shard with skipped utterances counts as incomplete,
    because they may be repaired by now."""
    file = shard.file
    if file is None or not file.exists() or file.with_suffix(".skipped").exists():
        return False
    try:
        return len(datasets.Dataset.from_file(str(file))) == len(shard.utterances)
    except Exception:  # pyarrow raises OSError or ArrowInvalid on a truncated file
        return False


def write_shard(file: Path, columns: datasets.Features, rows: list[Row], skipped: list[Skipped]) -> None:
    """Write a shard in corpus order, atomically, with the list of its skipped utterances."""
    temporary = file.with_suffix(f".{os.getpid()}.part")  # two commands may prepare the same dataset
    try:
        with pa.OSFile(str(temporary), "wb") as out:  # of a path, the writer takes ~ and :: for its own
            writer = ArrowWriter(features=columns, stream=out)
            for row in rows:
                writer.write(row)
            writer.finalize()
            writer.close()
        # The list comes first, so that an interruption never leaves a shard without it.
        if skipped:
            list_skipped(file.with_suffix(".skipped"), skipped)
        temporary.rename(file)
    finally:
        temporary.unlink(missing_ok=True)
    if not skipped:
        file.with_suffix(".skipped").unlink(missing_ok=True)
