"""Encodes a corpus into a store: shard by shard, on all cores, resumable; what cannot be used is listed."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import torch
from datasets.arrow_writer import ArrowWriter
from torch import Tensor
from tqdm import tqdm

from zipper.corpora.utterance import SPLITS, Utterance, sentences_hash
from zipper.errors import DataError
from zipper.units.codec import Codec
from zipper.units.store import FEATURES, Row, Store, fingerprint, fingerprint_hash, open_split, open_store
from zipper.units.text import Subwords

SHARD = 512  # utterances
SKIP_BUDGET = 0.01  # share of a corpus that may be unusable


def prepare_store(
    root: Path, utterances: list[Utterance], codec: Codec, subwords: Subwords, batch_seconds: float,
    max_seconds: float,
) -> Store:  # fmt: skip
    """Opens the store of these utterances under `root`, encoding what is missing.

    Raises DataError as soon as unusable utterances pass the budget; *.skipped beside the shards lists them.
    """
    parts = fingerprint(utterances, codec, subwords, max_seconds)
    folder = root / fingerprint_hash(parts)
    if (folder / "store.json").exists():
        return open_store(folder, parts)
    folder.mkdir(parents=True, exist_ok=True)
    subwords.save(folder / "tokenizer.json")
    usable, skipped = _with_usable_text(utterances)  # all of them, before any is encoded
    if skipped:
        _list_skipped(folder / "texts.skipped", skipped)
    _check_budget(folder, skipped, len(utterances))
    with (
        _workers(codec) as pool,
        tqdm(total=len(usable), desc="encode", unit="utterance", mininterval=1.0) as bar,
    ):
        for split in SPLITS:
            chosen = [u for u in usable if u.split == split]
            for shard, start in enumerate(range(0, len(chosen), SHARD)):
                part, file = chosen[start : start + SHARD], folder / f"{split}-{shard:05d}.arrow"
                # What was skipped may be mended by now: only a shard that lacks nothing stays as it is.
                if file.exists() and not file.with_suffix(".skipped").exists():
                    bar.update(len(part))
                    continue
                skipped += _write_shard(file, part, codec, subwords, batch_seconds, max_seconds, pool, bar)
                _check_budget(folder, skipped, len(utterances))
    facts = _facts(folder, parts, codec)
    aside = folder / "store.part"
    aside.write_text(json.dumps(facts, indent=2) + "\n")
    aside.rename(folder / "store.json")
    return open_store(folder, parts)


class Skipped(TypedDict):
    """An utterance that cannot be used."""

    id: str
    reason: str


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


def _list_skipped(file: Path, skipped: list[Skipped]) -> None:
    aside = file.with_suffix(".listing")
    aside.write_text("".join(json.dumps(entry) + "\n" for entry in skipped))
    aside.rename(file)


def _check_budget(folder: Path, skipped: list[Skipped], utterances: int) -> None:
    if len(skipped) > SKIP_BUDGET * utterances:
        raise DataError(
            f"{len(skipped)} of {utterances} utterances cannot be used, more than {SKIP_BUDGET:.0%}; "
            f"{folder}/*.skipped lists them, the first: {skipped[0]['reason']}"
        )


def _write_shard(
    file: Path, part: list[Utterance], codec: Codec, subwords: Subwords, seconds: float, longest: float,
    pool: ThreadPoolExecutor, bar: tqdm,
) -> list[Skipped]:  # fmt: skip
    """One shard, in the manifest's order. What cannot be read is listed beside it, and returned."""
    aside = file.with_suffix(".part")
    writer = ArrowWriter(features=FEATURES, path=str(aside))
    found: list[tuple[Utterance, Tensor]] = []
    skipped: list[Skipped] = []
    for u, read in zip(part, pool.map(lambda u: _read(u, codec.sample_rate, longest), part), strict=True):
        if isinstance(read, DataError):
            skipped.append(Skipped(id=u.id, reason=str(read)))
        else:
            found.append((u, read))
    rows: dict[str, Row] = {}
    groups = list(_groups(found, seconds * codec.sample_rate))
    encoded = pool.map(lambda group: codec.encode([wave for _, wave in group]), groups)
    for group, several in zip(groups, encoded, strict=True):
        for (u, wave), codes in zip(group, several, strict=True):
            rows[u.id] = Row(
                id=u.id, text=u.text, speaker=u.speaker, audio=u.audio, seconds=len(wave) / codec.sample_rate,
                ids=subwords.encode(u.text), codes=codes.flatten().tolist(),
            )  # fmt: skip
            bar.update()
    for u, _ in found:
        writer.write(rows[u.id])
    writer.finalize()
    writer.close()
    # A shard never stands without the list of what it lacks, wherever this is cut off.
    if skipped:
        _list_skipped(file.with_suffix(".skipped"), skipped)
    aside.rename(file)
    if not skipped:
        file.with_suffix(".skipped").unlink(missing_ok=True)
    return skipped


def _read(u: Utterance, sample_rate: int, longest: float) -> Tensor | DataError:
    try:
        return u.wave(sample_rate, longest)
    except DataError as error:
        return error


@contextmanager
def _workers(codec: Codec) -> Iterator[ThreadPoolExecutor]:
    """As many as there are cores, of one thread each: that is a fifth faster than all cores on one operator
    after the other, and codes do not depend on the number of cores. On an accelerator one worker feeds it.
    """
    threads = torch.get_num_threads()
    count = threads if codec.device.type == "cpu" else 1
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _groups(
    found: list[tuple[Utterance, Tensor]], samples: float
) -> Iterator[list[tuple[Utterance, Tensor]]]:
    """Neighbours in length together, at most `samples` samples with the padding."""
    group: list[tuple[Utterance, Tensor]] = []
    for item in sorted(found, key=lambda item: len(item[1])):
        if group and (len(group) + 1) * len(item[1]) > samples:
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _facts(folder: Path, parts: dict[str, str], codec: Codec) -> dict[str, Any]:
    """Counts of all splits; rates and ratios of the training split alone."""
    splits = {split: open_split(folder, split) for split in SPLITS}
    train = splits["train"]
    ids = [len(row) for row in train["ids"]]
    seconds = sum(train["seconds"])
    return {
        "fingerprint": parts,
        "codebooks": codec.codebooks,
        "codes": codec.codes,
        "frame_rate": codec.frame_rate,
        "kbps": codec.kbps,
        "rows": {split: len(rows) for split, rows in splits.items()},
        "hours": {split: round(sum(rows["seconds"]) / 3600, 4) for split, rows in splits.items()},
        "subwords_per_second": sum(ids) / seconds,
        "skipped": sum(len(f.read_text().splitlines()) for f in folder.glob("*.skipped")),
        "trained_on": sentences_hash(train["text"]),
    }
