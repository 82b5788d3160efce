"""A corpus encoded once: Arrow shards on disk, memory-mapped, with a fingerprint of all that made them.

    build/stores/HASH/   store.json  tokenizer.json  train-00000.arrow ...  train-00000.skipped (if any)

Each shard is written aside and renamed; `store.json` comes last, so a store is whole or absent, and a
preparation that was killed goes on with the next shard.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import datasets
import pyarrow.compute as pc
import torch
from datasets.arrow_writer import ArrowWriter
from torch import Tensor
from tqdm import tqdm

from zipper.config import read_facts
from zipper.corpora.utterance import SPLITS, Utterance
from zipper.errors import DataError
from zipper.units.codec import Codec
from zipper.units.text import NORMALISER, Subwords

SHARD = 512  # utterances
SKIP_BUDGET = 0.01  # share of a corpus that may be unusable
FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "text": datasets.Value("string"),
        "speaker": datasets.Value("string"),
        "audio": datasets.Value("string"),
        "seconds": datasets.Value("float32"),
        "ids": datasets.Sequence(datasets.Value("int32")),
        "codes": datasets.Sequence(datasets.Value("int16")),  # codebook after codebook, [Q * F]
    }
)


class Row(TypedDict):
    """An utterance of the store."""

    id: str
    text: str
    speaker: str
    audio: str
    seconds: float
    ids: list[int]
    codes: list[int]


@dataclass(frozen=True)
class Store:
    """An opened store. `facts` is store.json: fingerprint, counts, and rates of the training split."""

    folder: Path
    facts: dict[str, Any]
    splits: dict[str, datasets.Dataset]
    subwords: Subwords

    @property
    def codebooks(self) -> int:
        return self.facts["codebooks"]

    @property
    def codes(self) -> int:
        """Codes of one codebook."""
        return self.facts["codes"]

    @property
    def fingerprint(self) -> str:
        """Short name of what made the store."""
        return fingerprint_hash(self.facts["fingerprint"])

    def row_codes(self, row: Row) -> Tensor:
        """int64 [Q, F]"""
        return torch.tensor(row["codes"], dtype=torch.int64).view(self.codebooks, -1)


def fingerprint(utterances: list[Utterance], codec: Codec, subwords: Subwords) -> dict[str, str]:
    """What a store is made of: names, texts, codec, tokenizer, versions. The audio is not hashed."""
    listing = "\n".join(f"{u.id}\t{u.split}\t{u.text}\t{Path(u.audio).name}" for u in utterances)
    return {
        "corpus": hashlib.sha256(listing.encode()).hexdigest()[:16],
        "corpus_folder": str(Path(utterances[0].audio).parents[1].name),
        "codec": codec.fingerprint,
        "tokenizer": subwords.fingerprint,
        "normaliser": NORMALISER,
        "versions": ", ".join(f"{name} {version(name)}" for name in ("encodec", "torch", "torchaudio")),
    }


def fingerprint_hash(parts: dict[str, str]) -> str:
    """Short name of a fingerprint."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def prepare_store(
    root: Path, utterances: list[Utterance], codec: Codec, subwords: Subwords, batch_seconds: float,
    max_seconds: float = math.inf,
) -> Store:  # fmt: skip
    """Opens the store of these utterances under `root`, encoding what is missing.

    Raises DataError as soon as unusable utterances pass the budget; *.skipped beside the shards lists them.
    """
    parts = fingerprint(utterances, codec, subwords)
    folder = root / fingerprint_hash(parts)
    if (folder / "store.json").exists():
        return open_store(folder, parts)
    folder.mkdir(parents=True, exist_ok=True)
    subwords.save(folder / "tokenizer.json")
    usable, skipped = _with_usable_text(utterances)  # all of them, before any is encoded
    _list_skipped(folder / "texts.skipped", skipped)
    _check_budget(folder, skipped, len(utterances))
    with tqdm(total=len(usable), desc="encode", unit="utterance", mininterval=1.0) as bar:
        for split in SPLITS:
            chosen = [u for u in usable if u.split == split]
            for shard, start in enumerate(range(0, len(chosen), SHARD)):
                part, file = chosen[start : start + SHARD], folder / f"{split}-{shard:05d}.arrow"
                if (
                    file.exists() and not file.with_suffix(".skipped").exists()
                ):  # else it may be mended by now
                    bar.update(len(part))
                    continue
                skipped += _write_shard(file, part, codec, subwords, batch_seconds, max_seconds, bar)
                _check_budget(folder, skipped, len(utterances))
    facts = _facts(folder, parts, codec)
    aside = folder / "store.part"
    aside.write_text(json.dumps(facts, indent=2) + "\n")
    aside.rename(folder / "store.json")
    return open_store(folder, parts)


def open_store(folder: Path, expected: dict[str, str] | None = None) -> Store:
    """Memory-maps a finished store. Raises DataError if unfinished, damaged, or not of `expected`."""
    if not (folder / "store.json").is_file():
        raise DataError(
            f"{folder} holds no finished store. Run `zipper prepare` with the config that names it."
        )
    facts = read_facts(folder / "store.json")
    for part, value in (expected or {}).items():
        if facts["fingerprint"].get(part) != value:
            raise DataError(
                f"The store {folder} was made with another {part}: {facts['fingerprint'].get(part)!r}, but "
                f"the config asks for {value!r}. Prepare it again, or name the {part} that it was made with."
            )
    splits = {split: _open_split(folder, split) for split in SPLITS}
    for split, rows in splits.items():
        if len(rows) != facts["rows"][split]:
            raise DataError(
                f"{folder}: split {split} has {len(rows)} rows, store.json "
                f"says {facts['rows'][split]}. Delete it."
            )
        _check_range(folder, split, rows, "codes", facts["codes"])
    return Store(folder, facts, splits, Subwords.load(folder / "tokenizer.json"))


def _check_range(folder: Path, split: str, rows: datasets.Dataset, column: str, size: int) -> None:
    """Raises DataError where a value lies outside 0 to size - 1: it would index another row's embedding."""
    for chunk in rows.data.column(column).chunks:
        least, most = pc.min_max(chunk.flatten()).as_py().values()
        if least is not None and not 0 <= least <= most < size:
            raise DataError(
                f"{folder}: split {split} holds {column} from {least} to {most}, outside 0 to {size - 1}. "
                "The store is damaged: delete the folder."
            )


def _open_split(folder: Path, split: str) -> datasets.Dataset:
    files = sorted(folder.glob(f"{split}-*.arrow"))
    try:
        return datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])
    except Exception as error:  # pyarrow raises OSError or ArrowInvalid; an empty list ValueError
        raise DataError(
            f"{folder}: the shards of split {split} are missing or damaged ({error}). Delete the folder."
        ) from error


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
    file.unlink(missing_ok=True)
    if skipped:
        file.write_text("".join(json.dumps(entry) + "\n" for entry in skipped))


def _check_budget(folder: Path, skipped: list[Skipped], utterances: int) -> None:
    if len(skipped) > SKIP_BUDGET * utterances:
        raise DataError(
            f"{len(skipped)} of {utterances} utterances cannot be used, more than {SKIP_BUDGET:.0%}; "
            f"{folder}/*.skipped lists them, the first: {skipped[0]['reason']}"
        )


def _write_shard(
    file: Path, part: list[Utterance], codec: Codec, subwords: Subwords, seconds: float, longest: float,
    bar: tqdm,
) -> list[Skipped]:  # fmt: skip
    """One shard, in the manifest's order. What cannot be read is listed beside it, and returned."""
    aside = file.with_suffix(".part")
    writer = ArrowWriter(features=FEATURES, path=str(aside))
    found: list[tuple[Utterance, Tensor]] = []
    skipped: list[Skipped] = []
    for u in part:
        try:
            found.append((u, u.wave(codec.sample_rate, longest)))
        except DataError as error:
            skipped.append(Skipped(id=u.id, reason=str(error)))
    rows: dict[str, Row] = {}
    for group in _groups(found, seconds * codec.sample_rate):
        for (u, wave), codes in zip(group, codec.encode([wave for _, wave in group]), strict=True):
            rows[u.id] = Row(
                id=u.id, text=u.text, speaker=u.speaker, audio=u.audio, seconds=len(wave) / codec.sample_rate,
                ids=subwords.encode(u.text), codes=codes.flatten().tolist(),
            )  # fmt: skip
            bar.update()
    for u, _ in found:
        writer.write(rows[u.id])
    writer.finalize()
    writer.close()
    _list_skipped(file.with_suffix(".skipped"), skipped)
    aside.rename(file)
    return skipped


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
    splits = {split: _open_split(folder, split) for split in SPLITS}
    train = splits["train"]
    ids = [len(row) for row in train["ids"]]
    frames = [len(row) // codec.codebooks for row in train["codes"]]
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
        "subwords_per_frame_max": max(i / f for i, f in zip(ids, frames, strict=True)),
        "skipped": sum(len(f.read_text().splitlines()) for f in folder.glob("*.skipped")),
        "trained_on": hashlib.sha256("\n".join(train["text"]).encode()).hexdigest(),
    }
