"""A corpus encoded once: Arrow shards on disk, memory-mapped, with a fingerprint of all that made them.

    build/stores/HASH/   store.json  tokenizer.json  train-00000.arrow ...  train-00000.skipped (if any)

Each shard is written aside and renamed; `store.json` comes last, so a store is whole or absent, and a
preparation that was killed goes on with the next shard.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from zipper.codecs.codec import Codec
from zipper.config import DataConfig, read_json
from zipper.corpora.utterance import SPLITS, Utterance
from zipper.errors import DataError
from zipper.hashes import KEPT, check_once, file_hashes, joint_hash
from zipper.modalities.delay import Pattern
from zipper.modalities.normalise import normaliser_of
from zipper.modalities.tokenizer import Tokenizer

PERIODS = 8  # repetitions of up to so many frames are looked for
FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "text": datasets.Value("string"),
        "speaker": datasets.Value("string"),
        "audio": datasets.Value("string"),
        "subset": datasets.Value("string"),  # CORPUS/PART
        "start": datasets.Value("float32"),  # seconds into the file
        "seconds": datasets.Value("float32"),
        "ids": datasets.Sequence(datasets.Value("int32")),
        "codes": datasets.Sequence(datasets.Value("int16")),  # codebook after codebook, [Q * F]
        # What a training asks of every row when it starts, so that no code has to be decoded for it:
        "subwords": datasets.Value("int32"),  # number of ids
        "frames": datasets.Value("int32"),  # F
        "letters": datasets.Value("int32"),  # of the subwords, with the spaces before words
        "repeats": datasets.Sequence(datasets.Value("int32"), length=PERIODS),  # `longest_repeats`
    }
)


class Row(TypedDict):
    """An utterance of the store. Of text alone it has no codes, of speech alone no ids."""

    id: str
    text: str
    speaker: str
    audio: str
    subset: str
    start: float
    seconds: float
    ids: list[int]
    codes: list[int]
    subwords: int
    frames: int
    letters: int
    repeats: list[int]


@dataclass(frozen=True)
class EncodedDataset:
    """An opened store. `info` is store.json: fingerprint, counts, and rates of the training split. pattern:
    how its codes are to stand in columns, which is of the reader's choosing."""

    folder: Path
    info: dict[str, Any]
    splits: dict[str, datasets.Dataset]
    tokenizer: Tokenizer
    pattern: Pattern = "delay"

    @property
    def codebooks(self) -> int:
        return self.info["codebooks"]

    @property
    def codes(self) -> int:
        """Codes of one codebook."""
        return self.info["codes"]

    @property
    def fingerprint(self) -> str:
        """Short name of what made the store."""
        return fingerprint_hash(self.info["fingerprint"])

    @property
    def fingerprint_without_audio(self) -> str:
        """As it was before the recordings' content was part of it: what older checkpoints hold."""
        return fingerprint_hash({k: v for k, v in self.info["fingerprint"].items() if k != "audio"})

    def row_codes(self, row: Row) -> Tensor:
        """int64 [Q, F]"""
        return torch.tensor(row["codes"], dtype=torch.int64).view(self.codebooks, -1)


def column(rows: datasets.Dataset, name: str) -> np.ndarray:
    """A column of numbers [N], or of lists of one length [N, length], at once: element by element the package
    takes a thousand times as long, and each change of its format copies what it knows of every shard."""
    values = rows.data.column(name).combine_chunks()
    listed = pa.types.is_fixed_size_list(values.type)
    found = values.flatten().to_numpy() if listed else values.to_numpy(zero_copy_only=False)
    found = found.reshape(len(values), -1) if listed else found
    chosen = rows._indices  # of a share of the rows; the package gives no other name to it
    return found if chosen is None else found[chosen.column(0).to_numpy()]


def share(rows: datasets.Dataset, only: int | None) -> datasets.Dataset:
    """`only` of the rows (none: all), a smaller share nested in a larger one. Real corpora come speaker by
    speaker, and several one after the other, so they are taken in the order of a hash of their ids; the
    embedded one alone is mixed as it is."""
    if only is None or only >= len(rows):
        return rows
    if {subset.partition("/")[0] for subset in rows["subset"][:]} <= {"", "spoken"}:
        return rows.select(range(only))
    ids = rows["id"][:]
    by_hash = sorted(range(len(rows)), key=lambda i: hashlib.sha256(ids[i].encode()).digest())
    return rows.select(sorted(by_hash[:only]))


def fingerprint(
    utterances: list[Utterance], codec: Codec, subwords: Tokenizer, max_seconds: float, kept: Path
) -> dict[str, str]:
    """What a store is made of: names, texts, content of the recordings, codec, tokenizer, versions. kept: of
    `file_hashes`."""
    usual = DataConfig().max_seconds  # only another one is named: usual stores keep the name they had
    return {
        **({} if max_seconds == usual else {"max_seconds": f"{max_seconds:g}"}),
        "corpus": listing_hash(utterances),
        "audio": audio_hash(utterances, kept),
        "corpus_folder": _corpora(utterances),
        "codec": codec.fingerprint,
        "tokenizer": subwords.fingerprint,
        "normaliser": normaliser_of(u.text or "" for u in utterances),
        "versions": ", ".join(f"{name} {version(name)}" for name in ("encodec", "torch", "torchaudio")),
    }


def _corpora(utterances: list[Utterance]) -> str:
    first = utterances[0]
    if first.audio and first.subset.partition("/")[0] in (
        "",
        "spoken",
    ):  # by the recipe that its folder names
        return Path(first.audio).parents[1].name
    return "+".join(sorted({u.subset.partition("/")[0] for u in utterances}))


def listing_hash(utterances: list[Utterance]) -> str:
    """Of ids, splits, texts and file names; of other corpora than the embedded one also of what tells takes
    of one sentence apart: the folders of a file, speaker, subset and piece. Where it all lies does not
    matter."""
    lines = []
    for u in utterances:
        line = f"{u.id}\t{u.split}\t{u.text}\t{Path(u.audio or '').name}"
        if u.subset.partition("/")[0] not in ("", "spoken"):
            folders = "/".join(Path(u.audio or "").parts[-4:-1])
            line += f"\t{folders}\t{u.speaker}\t{u.subset}\t{u.start}\t{u.seconds}"
        lines.append(line)
    listing = "\n".join(lines)
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


def audio_hash(utterances: list[Utterance], kept: Path) -> str:
    """Of the content of all recordings, in the corpus' order. kept: of `file_hashes`."""
    return joint_hash(file_hashes(list(dict.fromkeys(u.audio for u in utterances if u.audio)), kept))


def corpus_hash(utterances: list[Utterance], build: str) -> str:
    """Of names, texts and recordings alike: `build`, that of the config, keeps what was read."""
    return joint_hash([listing_hash(utterances), audio_hash(utterances, Path(build) / KEPT)])


def fingerprint_hash(parts: dict[str, str]) -> str:
    """Short name of a fingerprint."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


class DamagedDataset(DataError):
    """A finished store whose shards are not what they were. `zipper prepare` mends it."""


def open_dataset(folder: Path, expected: dict[str, str] | None = None) -> EncodedDataset:
    """Memory-maps a finished store. Raises DataError if unfinished, damaged, or not of `expected`."""
    if not (folder / "store.json").is_file():
        raise DataError(
            f"{folder} holds no finished store. Run `zipper prepare` with the config that names it."
        )
    info = read_json(folder / "store.json")
    for part, value in (expected or {}).items():
        if info["fingerprint"].get(part) != value:
            raise DataError(
                f"The store {folder} was made with another {part}: {info['fingerprint'].get(part)!r}, but "
                f"the config asks for {value!r}. Prepare it again, or name the {part} that it was made with."
            )
    splits = {split: open_split(folder, split) for split in SPLITS}
    for split, rows in splits.items():
        if {*rows.column_names} != {*FEATURES}:
            raise DataError(f"{folder} was written by other code. Delete the folder, and prepare it again.")
        if len(rows) != info["rows"][split]:
            raise DamagedDataset(
                f"{folder}: split {split} has {len(rows)} rows, store.json says {info['rows'][split]}."
            )

    def check() -> None:
        for split, rows in splits.items():
            _check_range(folder, split, rows, "codes", info["codes"])

    check_once(folder, sorted(folder.glob("*.arrow")), check, folder.parent.with_name(KEPT))
    return EncodedDataset(folder, info, splits, Tokenizer.load(folder / "tokenizer.json"))


def _check_range(folder: Path, split: str, rows: datasets.Dataset, column: str, size: int) -> None:
    """Raises DataError where a value lies outside 0 to size - 1: it would index another row's embedding."""
    for chunk in rows.data.column(column).chunks:
        least, most = pc.min_max(chunk.flatten()).as_py().values()
        if least is not None and not 0 <= least <= most < size:
            raise DataError(
                f"{folder}: split {split} holds {column} from {least} to {most}, outside 0 to {size - 1}. "
                "The store is damaged: delete the folder."
            )


def open_split(folder: Path, split: str) -> datasets.Dataset:
    """Memory-maps one split. Raises DataError where a shard is missing or damaged."""
    files = sorted(folder.glob(f"{split}-*.arrow"))
    try:
        return datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])
    except Exception as error:  # pyarrow raises OSError or ArrowInvalid; an empty list ValueError
        raise DamagedDataset(
            f"{folder}: the shards of split {split} are missing or damaged ({error})."
        ) from error
