"""Encode a corpus with Lightning's `Trainer.predict`, on any number of devices and nodes. Each rank writes
its own shards. Resumable; unusable utterances are listed."""

import json
import logging
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from tqdm import tqdm

from zipper.config import TrainConfig
from zipper.corpora.utterance import SPLITS, Utterance, sentences_hash
from zipper.data.batches import spans
from zipper.data.dataset import (
    DamagedDataset,
    EncodedDataset,
    Row,
    features,
    fingerprint,
    fingerprint_hash,
    open_dataset,
    open_split,
    repeated,
    sentences_of,
)
from zipper.data.shards import LoadedUtterance, Shard, ShardReader, write_shard
from zipper.data.skipped import Skipped, check_budget, list_skipped, usable_utterances
from zipper.disk import file_lock, write_atomic
from zipper.distributed import AtomicCheckpointIO, encoding_settings, trainer_errors
from zipper.errors import DataError
from zipper.hashes import KEPT
from zipper.modalities.base import Modality, encode_values

SHARD, LEAST = 512, 16  # utterances per shard, at most and at least
SHARDS = 64  # number of shards of a small corpus, so that every process gets some


def prepare_dataset(
    root: Path,
    utterances: list[Utterance],
    modalities: dict[str, Modality],
    max_seconds: float,
    train: TrainConfig | None = None,
) -> EncodedDataset:
    """Open the dataset of these utterances under `root`, after encoding what is missing. A damaged dataset is
    repaired, with a message. train: devices and nodes.

    Raises DataError as soon as the unusable utterances exceed SKIP_BUDGET. *.skipped beside the shards, and
    finally skipped.jsonl, list them.
    """
    parts = fingerprint(utterances, modalities, max_seconds, root.with_name(KEPT))
    folder = root / fingerprint_hash(parts)
    if dataset := _open_or_repair(folder, modalities, parts):
        return _where_files_are(dataset, utterances)
    root.mkdir(parents=True, exist_ok=True)
    train = train or TrainConfig(accelerator="cpu")
    # Lock against other commands. Processes of one command must not wait for each other.
    single_process = train.devices * train.nodes == 1
    with (
        file_lock(root / f".{folder.name}.lock", str(folder), wait=True) if single_process else nullcontext()
    ):
        dataset = _open_or_repair(folder, modalities, parts) or _make_dataset(
            folder, parts, utterances, modalities, max_seconds, train
        )
    return _where_files_are(dataset, utterances)


def _where_files_are(dataset: EncodedDataset, utterances: list[Utterance]) -> EncodedDataset:
    """Dataset with the paths of these utterances, whose folder may have moved since they were encoded."""
    for name in (one.column for one in dataset.modalities.values() if one.names_file):
        paths = {u.id: u.raw(name) or "" for u in utterances}
        for split, rows in dataset.splits.items():
            now = [paths[id] for id in rows["id"][:]]
            if now != rows[name][:]:
                dataset.splits[split] = rows.remove_columns(name).add_column(name, now)
    return dataset


def _open_or_repair(
    folder: Path, modalities: dict[str, Modality], parts: dict[str, str]
) -> EncodedDataset | None:
    """Open a dataset; None if it is missing, or damaged, in which case it is marked as unfinished."""
    index_file = folder / "store.json"
    if not index_file.exists():
        return None
    try:
        return open_dataset(folder, modalities, parts)
    except DamagedDataset as error:
        print(f"{error} Damaged shards are encoded again.")
        index_file.unlink(missing_ok=True)  # another process may have removed it
        return None


def _make_dataset(
    folder: Path,
    parts: dict[str, str],
    utterances: list[Utterance],
    modalities: dict[str, Modality],
    max_seconds: float,
    train: TrainConfig,
) -> EncodedDataset:
    """Encode the missing shards."""
    with trainer_errors(encoding_settings(train)):
        trainer = _trainer(encoding_settings(train), folder)
    folder.mkdir(parents=True, exist_ok=True)
    usable, skipped = usable_utterances(utterances, modalities)  # before encoding any
    if trainer.is_global_zero:
        for one in modalities.values():
            one.save(folder)
        if skipped:
            list_skipped(folder / "texts.skipped", skipped)
    check_budget(folder, skipped, len(utterances))
    shards, size = [], min(SHARD, max(LEAST, len(usable) // SHARDS))
    for split in SPLITS:
        chosen = [u for u in usable if u.split == split]
        for number, start in enumerate(range(0, len(chosen), size)):
            shards.append(Shard(folder / f"{split}-{number:05d}.arrow", chosen[start : start + size]))
    encoder = Encoder(modalities, folder, skipped, len(utterances))
    try:
        trainer.predict(encoder, ShardReader(shards, modalities, max_seconds))
    finally:
        encoder.close()
    if trainer.is_global_zero:
        _finish(folder, parts, modalities, len(utterances))
    trainer.strategy.barrier("the dataset is complete")
    return open_dataset(folder, modalities, parts)


def _trainer(train: TrainConfig, folder: Path) -> L.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no banner
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    return L.Trainer(
        default_root_dir=folder,  # where Lightning looks for checkpoints under SLURM
        accelerator=train.accelerator,
        devices=train.devices,
        num_nodes=train.nodes,
        strategy=train.strategy,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        plugins=[AtomicCheckpointIO()],
    )


class Encoder(L.LightningModule):
    """Encodes the values of a shard and writes the shard."""

    def __init__(
        self, modalities: dict[str, Modality], folder: Path, skipped: list[Skipped], utterances: int
    ) -> None:
        """skipped: utterances rejected before reading. utterances: size of the corpus."""
        super().__init__()
        self.networks = nn.ModuleList(  # so that Lightning moves them
            one.network for one in modalities.values() if one.network is not None
        )
        self.modalities, self.folder, self.features = modalities, folder, features(modalities)
        self.skipped, self.utterances = [*skipped], utterances
        self.seconds = 0.0  # of recordings, encoded by this rank
        self.pool: ThreadPoolExecutor | None = None

    def on_predict_start(self) -> None:
        self.started = time.monotonic()
        loader: Any = self.trainer.predict_dataloaders
        count = sum(len(shard.utterances) for shard in loader.dataset.shards)
        hidden = self.trainer.global_rank > 0
        self.bar = tqdm(total=count, desc="encode", unit="utterance", mininterval=1.0, disable=hidden)
        # One single-threaded worker per core is a fifth faster than all cores on one operator at a time, and
        # codes do not depend on the number of cores. An accelerator needs one worker.
        self.threads = torch.get_num_threads()
        workers = self.threads if self.device.type == "cpu" else 1
        self.pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))

    def predict_step(self, batch: tuple[Shard, list[LoadedUtterance]], index: int) -> str:
        """Write one shard. Returns its file name."""
        shard, read = batch
        if shard.file is None:
            return "none"
        skipped = [Skipped(id=u.id, reason=str(given)) for u, given in read if isinstance(given, DataError)]
        found = {u.id: (u, given) for u, given in read if not isinstance(given, DataError)}
        contents: dict[str, dict[str, Tensor]] = {}
        for name, modality in self.modalities.items():
            values = {id: given[name] for id, (_, given) in found.items() if name in given}
            contents[name] = self._encode(modality, values)
        rows = [self._row(*found[u.id], contents) for u, _ in read if u.id in found]
        write_shard(shard.file, self.features, rows, skipped)
        self.bar.update(len(read))
        self.skipped += skipped
        check_budget(self.folder, self.skipped, self.utterances)
        return shard.file.name

    def _encode(self, modality: Modality, values: dict[str, Any]) -> dict[str, Tensor]:
        """Content of the values by utterance, encoded in batches of similar cost."""
        costs = {id: modality.cost(value) for id, value in values.items()}
        order = sorted(costs, key=costs.__getitem__)
        batches = spans([costs[id] for id in order], len(order), modality.batch_cost)
        groups = [order[start:end] for start, end in batches]
        assert self.pool is not None
        encoded = self.pool.map(lambda ids: _encoded(modality, values, ids), groups)
        return {
            id: one
            for ids, several in zip(groups, encoded, strict=True)
            for id, one in zip(ids, several, strict=True)
        }

    def _row(self, u: Utterance, given: dict[str, Any], contents: dict[str, dict[str, Tensor]]) -> Row:
        seconds = max((self.modalities[name].seconds(value) for name, value in given.items()), default=0.0)
        self.seconds += seconds
        row: Row = {
            "id": u.id,
            "speaker": u.speaker,
            "subset": u.subset,
            "start": u.start,
            "seconds": seconds,
        }
        for name, modality in self.modalities.items():
            none = torch.zeros(modality.codebooks, 0, dtype=torch.int64)
            row |= {
                modality.column: u.raw(modality.column) or "",
                **modality.row(contents[name].get(u.id, none)),
            }
        return row

    def on_predict_end(self) -> None:
        self.bar.close()
        own = torch.tensor(self.seconds / 3600, device=self.device)
        hours = float(self.trainer.strategy.reduce(own, reduce_op="sum"))
        took = (time.monotonic() - self.started) / 3600
        if hours and self.trainer.is_global_zero:
            print(f"encoded {hours:.2f} hours of audio, {hours / took:.4g} hours per hour, "
                  f"by {self.trainer.world_size} process(es)")  # fmt: skip

    def close(self) -> None:
        """Shut down the worker threads."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self.threads)


def _encoded(modality: Modality, values: dict[str, Any], ids: list[str]) -> list[Tensor]:
    what = f"Utterances {', '.join(ids[:3])}{'...' if len(ids) > 3 else ''}: {modality.column}"
    return encode_values(modality, [values[id] for id in ids], what)


def _finish(folder: Path, parts: dict[str, str], modalities: Mapping[str, Modality], utterances: int) -> None:
    """Write skipped.jsonl, then store.json, which marks the dataset as complete."""
    lists = sorted(folder.glob("*.skipped"))
    skipped = [json.loads(line) for file in lists for line in file.read_text(encoding="utf-8").splitlines()]
    check_budget(folder, skipped, utterances)
    if skipped:
        list_skipped(folder / "skipped.jsonl", skipped)
    info = _info(folder, parts, modalities, len(skipped))
    if sum(info["rows"].values()) != utterances - len(skipped):
        raise DataError(
            f"{folder} holds {sum(info['rows'].values())} rows, but {utterances - len(skipped)} are "
            "usable: another version has started it. Delete the folder, and prepare it again."
        )
    write_atomic(folder / "store.json", (json.dumps(info, indent=2) + "\n").encode())
    for file in [*lists, *folder.glob("*.part")]:  # and what killed processes left
        file.unlink()


def _info(
    folder: Path, parts: dict[str, str], modalities: Mapping[str, Modality], skipped: int
) -> dict[str, Any]:
    """Contents of store.json: counts of all splits, the hash of the training sentences, and how many
    utterances of the other splits repeat one of them."""
    found = [split for split in SPLITS if any(folder.glob(f"{split}-*.arrow"))]
    splits = {split: open_split(folder, split) for split in found}
    entries: dict[str, Any] = {}
    for one in modalities.values():
        entries |= one.info()
    read = next((one.column for one in modalities.values() if not one.names_file), "id")
    known = sentences_of(splits["train"], read) if "train" in splits else []
    return {
        "fingerprint": parts,
        **entries,
        "rows": {split: len(rows) for split, rows in splits.items()},
        "hours": {split: round(sum(rows["seconds"][:]) / 3600, 4) for split, rows in splits.items()},
        "skipped": skipped,
        "trained_on": sentences_hash(known),
        "repeated": repeated(splits, read, known),
    }
