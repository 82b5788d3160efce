"""Encode a corpus with Lightning's `Trainer.predict`, on any number of devices and nodes. Each rank writes
its own shards. Resumable; unusable utterances are listed."""

import json
import logging
import os
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from tqdm import tqdm

from zipper.codecs.codec import Codec
from zipper.config import TrainConfig
from zipper.corpora.utterance import SPLITS, Utterance, sentences_hash
from zipper.data.dataset import (
    DamagedDataset,
    EncodedDataset,
    Row,
    fingerprint,
    fingerprint_hash,
    open_dataset,
    open_split,
)
from zipper.data.shards import LoadedUtterance, Shard, ShardReader, Skipped, list_skipped, write_shard
from zipper.data.statistics import letters_of, longest_repeats
from zipper.disk import file_lock
from zipper.distributed import AtomicCheckpointIO, encoding_settings, trainer_errors
from zipper.errors import DataError
from zipper.hashes import KEPT
from zipper.modalities.tokenizer import Tokenizer

SHARD, LEAST = 512, 16  # utterances per shard, at most and at least
SHARDS = 64  # number of shards of a small corpus, so that every process gets some
SKIP_BUDGET = 0.01  # share of a corpus that may be unusable


def prepare_dataset(
    root: Path, utterances: list[Utterance], codec: Codec, subwords: Tokenizer, batch_seconds: float,
    max_seconds: float, train: TrainConfig | None = None,
) -> EncodedDataset:  # fmt: skip
    """Open the dataset of these utterances under `root`, after encoding what is missing. A damaged dataset is
    repaired, with a message. train: devices and nodes.

    Raises DataError as soon as the unusable utterances exceed SKIP_BUDGET. *.skipped beside the shards, and
    finally skipped.jsonl, list them.
    """
    parts = fingerprint(utterances, codec, subwords, max_seconds, root.with_name(KEPT))
    folder = root / fingerprint_hash(parts)
    if dataset := _open_or_repair(folder, parts):
        return dataset
    root.mkdir(parents=True, exist_ok=True)
    train = train or TrainConfig(accelerator="cpu")
    # Lock against other commands. Processes of one command must not wait for each other.
    single_process = train.devices * train.nodes == 1
    with (
        file_lock(root / f".{folder.name}.lock", str(folder), wait=True) if single_process else nullcontext()
    ):
        return _open_or_repair(folder, parts) or _make_dataset(
            folder, parts, utterances, codec, subwords, batch_seconds, max_seconds, train
        )


def _open_or_repair(folder: Path, parts: dict[str, str]) -> EncodedDataset | None:
    """Open a dataset; None if it is missing, or damaged, in which case it is marked as unfinished."""
    index_file = folder / "store.json"
    if not index_file.exists():
        return None
    try:
        return open_dataset(folder, parts)
    except DamagedDataset as error:
        print(f"{error} Damaged shards are encoded again.")
        index_file.unlink(missing_ok=True)  # another process may have removed it
        return None


def _make_dataset(
    folder: Path, parts: dict[str, str], utterances: list[Utterance], codec: Codec, subwords: Tokenizer,
    batch_seconds: float, max_seconds: float, train: TrainConfig,
) -> EncodedDataset:  # fmt: skip
    """Encode the missing shards."""
    with trainer_errors(encoding_settings(train)):
        trainer = _trainer(encoding_settings(train), folder)
    folder.mkdir(parents=True, exist_ok=True)
    usable, skipped = _with_usable_text(utterances)  # check all texts before encoding
    if trainer.is_global_zero:
        subwords.save(folder / "tokenizer.json")
        if skipped:
            list_skipped(folder / "texts.skipped", skipped)
    _check_budget(folder, skipped, len(utterances))
    shards, size = [], min(SHARD, max(LEAST, len(usable) // SHARDS))
    for split in SPLITS:
        chosen = [u for u in usable if u.split == split]
        for number, start in enumerate(range(0, len(chosen), size)):
            shards.append(Shard(folder / f"{split}-{number:05d}.arrow", chosen[start : start + size]))
    encoder = Encoder(codec, subwords, batch_seconds, folder, skipped, len(utterances))
    try:
        trainer.predict(encoder, ShardReader(shards, codec.sample_rate, max_seconds))
    finally:
        encoder.close()
    if trainer.is_global_zero:
        _finish(folder, parts, codec, len(utterances))
    trainer.strategy.barrier("the dataset is complete")
    return open_dataset(folder, parts)


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
    """Encodes the waveforms of a shard and writes the shard."""

    def __init__(
        self, codec: Codec, subwords: Tokenizer, batch_seconds: float, folder: Path, skipped: list[Skipped],
        utterances: int,
    ) -> None:  # fmt: skip
        """skipped: utterances rejected before reading. utterances: size of the corpus."""
        super().__init__()
        self.model = codec.model  # so that Lightning moves it
        self.codec, self.tokenizer, self.folder = codec, subwords, folder
        self.letters = letters_of(subwords)
        self.samples = batch_seconds * codec.sample_rate
        self.skipped, self.utterances = [*skipped], utterances
        self.seconds = 0.0  # of audio, encoded by this rank
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
        workers = self.threads if self.codec.device.type == "cpu" else 1
        self.pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))

    def predict_step(self, batch: tuple[Shard, list[LoadedUtterance]], index: int) -> str:
        """Write one shard. Returns its file name."""
        shard, read = batch
        if shard.file is None:
            return "none"
        skipped = [Skipped(id=u.id, reason=str(wave)) for u, wave in read if isinstance(wave, DataError)]
        found = [(u, wave) for u, wave in read if isinstance(wave, Tensor)]
        codes: dict[str, Tensor] = {}
        groups = list(_groups(found, self.samples))
        assert self.pool is not None
        encoded = self.pool.map(lambda group: self.codec.encode([wave for _, wave in group]), groups)
        for group, several in zip(groups, encoded, strict=True):
            codes.update({u.id: one for (u, _), one in zip(group, several, strict=True)})
            self.bar.update(len(group))
        rows = [self._row(u, wave, codes.get(u.id)) for u, wave in read if not isinstance(wave, DataError)]
        write_shard(shard.file, rows, skipped)
        self.skipped += skipped
        _check_budget(self.folder, self.skipped, self.utterances)
        return shard.file.name

    def _row(self, u: Utterance, wave: Tensor | None, codes: Tensor | None) -> Row:
        seconds = 0.0 if wave is None else len(wave) / self.codec.sample_rate
        self.seconds += seconds
        ids = self.tokenizer.encode(u.text) if u.text else []
        found = torch.zeros(self.codec.codebooks, 0, dtype=torch.int64) if codes is None else codes
        return Row(
            id=u.id, text=u.text or "", speaker=u.speaker, audio=u.audio or "", subset=u.subset,
            start=u.start, seconds=seconds, ids=ids, codes=found.flatten().tolist(),
            subwords=len(ids), frames=found.shape[1], letters=int(self.letters[ids].sum()),
            repeats=longest_repeats(found[0].numpy()),
        )  # fmt: skip

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


def _with_usable_text(utterances: list[Utterance]) -> tuple[list[Utterance], list[Skipped]]:
    usable: list[Utterance] = []
    skipped: list[Skipped] = []
    for u in utterances:
        try:
            u.check_text()
            usable.append(u)
        except DataError as error:
            skipped.append(Skipped(id=u.id, reason=str(error)))
    return usable, skipped


def _check_budget(folder: Path, skipped: list[Skipped], utterances: int) -> None:
    if len(skipped) > SKIP_BUDGET * utterances:
        raise DataError(
            f"{len(skipped)} of {utterances} utterances cannot be used, more than {SKIP_BUDGET:.0%}; "
            f"{folder}/*.skipped lists them, the first: {skipped[0]['reason']}"
        )


def _groups(
    found: list[tuple[Utterance, Tensor]], samples: float
) -> Iterator[list[tuple[Utterance, Tensor]]]:
    """Groups of similar length, at most `samples` samples each, padding included."""
    group: list[tuple[Utterance, Tensor]] = []
    for item in sorted(found, key=lambda item: len(item[1])):
        if group and (len(group) + 1) * len(item[1]) > samples:
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _finish(folder: Path, parts: dict[str, str], codec: Codec, utterances: int) -> None:
    """Write skipped.jsonl, then store.json, which marks the dataset as complete."""
    lists = sorted(folder.glob("*.skipped"))
    skipped = [json.loads(line) for file in lists for line in file.read_text(encoding="utf-8").splitlines()]
    _check_budget(folder, skipped, utterances)
    if skipped:
        list_skipped(folder / "skipped.jsonl", skipped)
    info = _info(folder, parts, codec, len(skipped))
    if sum(info["rows"].values()) != utterances - len(skipped):
        raise DataError(
            f"{folder} holds {sum(info['rows'].values())} rows, but {utterances - len(skipped)} are "
            "usable: another version has started it. Delete the folder, and prepare it again."
        )
    temporary = folder / f"store.{os.getpid()}.part"
    temporary.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    temporary.rename(folder / "store.json")
    for file in lists:
        file.unlink()


def _info(folder: Path, parts: dict[str, str], codec: Codec, skipped: int) -> dict[str, Any]:
    """Contents of store.json: counts of all splits, and the hash of the training sentences."""
    splits = {split: open_split(folder, split) for split in SPLITS}
    train = splits["train"]
    return {
        "fingerprint": parts,
        "codebooks": codec.codebooks,
        "codes": codec.codes,
        "frame_rate": codec.frame_rate,
        "kbps": codec.kbps,
        "rows": {split: len(rows) for split, rows in splits.items()},
        "hours": {split: round(sum(rows["seconds"]) / 3600, 4) for split, rows in splits.items()},
        "skipped": skipped,
        "trained_on": sentences_hash(train["text"]),
    }
