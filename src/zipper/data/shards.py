"""Shards of an encoded dataset: assignment to ranks, reading of audio, writing of files."""

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

# Utterance with its waveform, the reason why it cannot be read, or None (text only).
LoadedUtterance = tuple[Utterance, "Tensor | DataError | None"]


class Skipped(TypedDict):
    """Utterance that cannot be used."""

    id: str
    reason: str


@dataclass(frozen=True)
class Shard:
    """File of a shard, and its utterances in corpus order."""

    file: Path | None
    utterances: list[Utterance]


class ShardReader(L.LightningDataModule):
    """Incomplete shards of each rank. Shard n belongs to rank n modulo the number of ranks, independent of
    which shards are complete."""

    def __init__(self, shards: list[Shard], sample_rate: int, longest: float) -> None:
        super().__init__()
        self.shards, self.sample_rate, self.longest = shards, sample_rate, longest

    def predict_dataloader(self) -> DataLoader[tuple[Shard, list[LoadedUtterance]]]:
        assert self.trainer is not None
        todo = self.shards_of(self.trainer.global_rank, self.trainer.world_size)
        waves = Waves(todo, self.sample_rate, self.longest)
        return DataLoader(waves, batch_size=None, collate_fn=_identity)  # Waves reads with threads

    def shards_of(self, rank: int, ranks: int) -> list[Shard]:
        """Incomplete shards of a rank. A rank without any gets one empty shard without a file, because
        every rank takes part to the end."""
        mine = self.shards[rank::ranks]
        return [shard for shard in mine if not is_complete(shard)] or [Shard(None, [])]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, index: int) -> Any:
        return batch  # the encoder moves one group at a time


class Waves(Dataset[tuple[Shard, list[LoadedUtterance]]]):
    """Shards with the waveforms of their utterances."""

    def __init__(self, shards: list[Shard], sample_rate: int, longest: float) -> None:
        self.shards, self.sample_rate, self.longest = shards, sample_rate, longest

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> tuple[Shard, list[LoadedUtterance]]:
        shard = self.shards[index]
        with ThreadPoolExecutor(4) as pool:  # I/O-bound
            waves = list(pool.map(self._read, shard.utterances))
        return shard, list(zip(shard.utterances, waves, strict=True))

    def _read(self, u: Utterance) -> Tensor | DataError | None:
        if u.audio is None:
            return None
        try:
            return u.wave(self.sample_rate, self.longest)
        except DataError as error:
            return error


def _identity(batch: Any) -> Any:
    """Identity. The default conversion of DataLoader turns tuples into lists."""
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


def list_skipped(file: Path, skipped: list[Skipped]) -> None:
    """Write JSON lines atomically."""
    temporary = file.with_suffix(f".{os.getpid()}.listing")
    temporary.write_text("".join(json.dumps(entry) + "\n" for entry in skipped), encoding="utf-8")
    temporary.rename(file)


def write_shard(file: Path, rows: list[Row], skipped: list[Skipped]) -> None:
    """Write a shard in corpus order, atomically, with the list of its skipped utterances."""
    temporary = file.with_suffix(f".{os.getpid()}.part")  # two commands may prepare the same dataset
    writer = ArrowWriter(features=FEATURES, path=str(temporary))
    for row in rows:
        writer.write(row)
    writer.finalize()
    writer.close()
    # The list comes first, so that an interruption never leaves a shard without it.
    if skipped:
        list_skipped(file.with_suffix(".skipped"), skipped)
    temporary.rename(file)
    if not skipped:
        file.with_suffix(".skipped").unlink(missing_ok=True)
