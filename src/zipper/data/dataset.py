"""Encoded dataset: a corpus encoded once into memory-mapped Arrow shards, with a fingerprint of its inputs.

    build/stores/HASH/   store.json  tokenizer.json  train-00000.arrow ...  train-00000.skipped (if any)

Each shard is written atomically and `store.json` is written last, so a dataset is complete or absent. An
interrupted preparation resumes at the next shard.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from zipper.config import DataConfig, read_json
from zipper.corpora.utterance import Utterance
from zipper.errors import DataError
from zipper.hashes import KEPT, check_once, file_hashes, joint_hash
from zipper.modalities.audio import without_speed
from zipper.modalities.base import Modality
from zipper.modalities.normalise import normaliser_of

if TYPE_CHECKING:
    import datasets

Row = dict[str, Any]  # encoded utterance; a modality that it lacks has no tokens


def features(modalities: Mapping[str, Modality]) -> "datasets.Features":
    """Columns of an encoded dataset. Beside the content are statistics of each row, so that a training starts
    without reading all of it."""
    import datasets  # seconds, which inference does without

    columns: dict[str, Any] = {"id": datasets.Value("string")}
    columns |= {m.column: datasets.Value("string") for m in modalities.values()}
    columns |= {name: datasets.Value("string") for name in ("speaker", "subset")}  # subset: CORPUS/PART
    columns |= {name: datasets.Value("float32") for name in ("start", "seconds")}  # of the recording
    for modality in modalities.values():
        columns |= modality.features()
    return datasets.Features(columns)


@dataclass(frozen=True)
class EncodedDataset:
    """Opened dataset. info: store.json (fingerprint, counts). modalities: by name, with the tokenizer and the
    codec that encoded it."""

    folder: Path
    info: dict[str, Any]
    splits: dict[str, "datasets.Dataset"]
    modalities: dict[str, Modality]

    @property
    def fingerprint(self) -> str:
        """Short hash of the dataset's inputs."""
        return fingerprint_hash(self.info["fingerprint"])

    @property
    def fingerprint_without_audio(self) -> str:
        """Hash without the content of the recordings, as stored in older checkpoints."""
        return fingerprint_hash({k: v for k, v in self.info["fingerprint"].items() if k != "audio"})


def column(rows: "datasets.Dataset", name: str) -> np.ndarray:
    """Numeric column [N], or column of fixed-length lists [N, length], as an array.

    Element access through the package is a thousand times slower, and each change of format copies the
    metadata of every shard.
    """
    values = rows.data.column(name).combine_chunks()
    listed = pa.types.is_fixed_size_list(values.type)
    found = values.flatten().to_numpy() if listed else values.to_numpy(zero_copy_only=False)
    found = found.reshape(len(values), -1) if listed else found
    chosen = rows._indices  # set after `select`; there is no public name
    return found if chosen is None else found[chosen.column(0).to_numpy()]


def read_rows(rows: "datasets.Dataset", indices: list[int], columns: Sequence[str]) -> list[Row]:
    """Rows at once, with these columns alone: of strings, or of lists of integers, which become arrays."""
    from datasets.formatting import query_table

    table = query_table(rows.data, indices, rows._indices)
    values = [_values(table.column(name).combine_chunks()) for name in columns]
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def _values(column: pa.Array) -> list[Any]:
    if not pa.types.is_list(column.type):
        return column.to_pylist()
    return np.split(column.flatten().to_numpy(), np.cumsum(column.value_lengths())[:-1])


def limit_rows(rows: "datasets.Dataset", only: int | None) -> "datasets.Dataset":
    """First `only` utterances, at all their speeds; None: all. A smaller subset is contained in a larger one.

    Corpora of recordings are ordered by speaker and concatenated, so their rows are chosen by a hash of the
    id. The synthetic corpus is already shuffled.
    """
    if only is None or only >= len(rows):
        return rows
    spoken = spoken_once(rows)
    order = [*dict.fromkeys(spoken)]
    if not {subset.partition("/")[0] for subset in rows["subset"][:]} <= {"", "spoken"}:
        order.sort(key=lambda one: hashlib.sha256(one[0].encode()).digest())
    chosen = {*order[:only]}
    return rows.select([i for i, one in enumerate(spoken) if one in chosen])


def spoken_once(rows: "datasets.Dataset") -> list[tuple[str, str | None, float | None]]:
    """Id, recording and its start of every row, the same for the copies of an utterance at several speeds."""
    recorded = rows["audio"][:] if "audio" in rows.column_names else [None] * len(rows)
    given = zip(rows["id"][:], recorded, rows["start"][:], strict=True)
    return [(without_speed(id)[0] if audio else id, audio, start) for id, audio, start in given]


def sentences_of(rows: "datasets.Dataset", column: str) -> list[str]:
    """Texts (or ids) of rows, once for the copies of an utterance at several speeds."""
    first: dict[tuple[Any, ...], str] = {}
    for one, text in zip(spoken_once(rows), rows[column][:], strict=True):
        first.setdefault(one, one[0] if column == "id" else text)
    return [*first.values()]


def repeated(splits: Mapping[str, "datasets.Dataset"], column: str, known: Iterable[str]) -> dict[str, int]:
    """Number of recordings of each split but train whose sentence is one of `known`: a model may know it by
    heart."""
    sentences = {*known} if column != "id" else set()
    return {
        split: sum(
            bool(text) and text in sentences and seconds > 0
            for text, seconds in zip(rows[column][:], rows["seconds"][:], strict=True)
        )
        for split, rows in splits.items()
        if split != "train"
    }


def fingerprint(
    utterances: list[Utterance], modalities: Mapping[str, Modality], max_seconds: float, kept: Path
) -> dict[str, str]:
    """Inputs of an encoded dataset: names, texts, content of recordings, codec, tokenizer, versions. kept:
    cache of `file_hashes`."""
    default = DataConfig().max_seconds  # omitted at the default, so that older fingerprints stay valid
    return {
        **({} if max_seconds == default else {"max_seconds": f"{max_seconds:g}"}),
        "corpus": listing_hash(utterances),
        "audio": audio_hash(utterances, kept),
        **{
            f"{one.column}_files": joint_hash(file_hashes(sorted(files), kept))
            for one in modalities.values()
            if one.names_file
            and (files := {u.other[one.column] for u in utterances if u.other.get(one.column)})
        },
        "corpus_folder": _corpora(utterances),
        **{one.units_key: one.fingerprint for one in modalities.values()},
        "normaliser": normaliser_of(u.text or "" for u in utterances),
        "versions": ", ".join(f"{name} {version(name)}" for name in ("encodec", "torch", "torchaudio")),
    }


def _corpora(utterances: list[Utterance]) -> str:
    first = utterances[0]
    if first.audio and first.subset.partition("/")[0] in ("", "spoken"):
        return Path(first.audio).parents[1].name  # the recipe, which the folder names
    return "+".join(sorted({u.subset.partition("/")[0] for u in utterances}))


def has_synthetic_speech(fingerprint: Mapping[str, str]) -> bool:
    """Whether a corpus, or one of those that it joins, is synthesized: its recordings are then others, by
    rounding, on another kind of CPU."""
    folder = fingerprint.get("corpus_folder", "")
    return folder.startswith("spoken-") or "spoken" in folder.split("+")


def listing_hash(utterances: list[Utterance]) -> str:
    """Hash of ids, splits, texts and file names. For corpora of recordings, the parent folders of a file,
    speaker, subset, start and length are included, which distinguish takes of one sentence. The location
    of the corpus is not.
    """
    lines = []
    for u in utterances:
        name = "(missing)" if u.audio == "" else Path(u.audio or "").name  # rejected, unlike None
        line = f"{u.id}\t{u.split}\t{u.text}\t{name}"
        if u.subset.partition("/")[0] not in ("", "spoken"):
            folders = "/".join(Path(u.audio or "").parts[-4:-1])
            line += f"\t{folders}\t{u.speaker}\t{u.subset}\t{u.start}\t{u.seconds}"
        other = {key: "/".join(Path(x).parts[-4:]) if os.path.isabs(x) else x for key, x in u.other.items()}
        lines.append(line + "".join(f"\t{column}={raw}" for column, raw in sorted(other.items())))
    listing = "\n".join(lines)
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


def audio_hash(utterances: list[Utterance], kept: Path) -> str:
    """Hash of the content of all recordings in corpus order. kept: cache of `file_hashes`."""
    return joint_hash(file_hashes(list(dict.fromkeys(u.audio for u in utterances if u.audio)), kept))


def corpus_hash(utterances: list[Utterance], build: str) -> str:
    """Hash of names, texts and recordings. build: the config's build folder, which caches file hashes."""
    return joint_hash([listing_hash(utterances), audio_hash(utterances, Path(build) / KEPT)])


def fingerprint_hash(parts: dict[str, str]) -> str:
    """Short hash of a fingerprint."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


class DamagedDataset(DataError):
    """A finished dataset with damaged shards. `zipper prepare` repairs it."""


def open_dataset(
    folder: Path, modalities: dict[str, Modality], expected: dict[str, str] | None = None
) -> EncodedDataset:
    """Memory-map a finished dataset. Raises DataError if it is unfinished, damaged, or differs from
    `expected`."""
    if not (folder / "store.json").is_file():
        raise DataError(f"{folder} holds no finished dataset. Run `zipper prepare` with its config.")
    info = read_json(folder / "store.json")
    for part, value in (expected or {}).items():
        if info["fingerprint"].get(part) != value:
            raise DataError(
                f"The dataset {folder} was made with another {part}: {info['fingerprint'].get(part)!r}, but "
                f"the config sets {value!r}. Prepare it again, or use the {part} that it was made with."
            )
    splits = {split: open_split(folder, split) for split in info["rows"]}
    for split, rows in splits.items():
        if {*rows.column_names} != {*features(modalities)}:
            raise DataError(
                f"{folder} was written by another version. Delete the folder, and prepare it again."
            )
        if len(rows) != info["rows"][split]:
            raise DamagedDataset(
                f"{folder}: split {split} has {len(rows)} rows, store.json says {info['rows'][split]}."
            )

    def check() -> None:
        for split, rows in splits.items():
            for one in modalities.values():
                _check_range(folder, split, rows, one.tokens_column, one.layout.codes)

    check_once(folder, sorted(folder.glob("*.arrow")), check, folder.parent.with_name(KEPT))
    return EncodedDataset(folder, info, splits, modalities)


def _check_range(folder: Path, split: str, rows: "datasets.Dataset", column: str, size: int) -> None:
    """Raise DataError if a value is outside 0 to size - 1: it would index another codebook's embedding."""
    import pyarrow.compute as pc  # inference, which starts in less time, does without

    for chunk in rows.data.column(column).chunks:
        least, most = pc.min_max(chunk.flatten()).as_py().values()
        if least is not None and not 0 <= least <= most < size:
            raise DataError(
                f"{folder}: split {split} holds {column} from {least} to {most}, outside 0 to {size - 1}. "
                "The dataset is damaged: delete the folder, and prepare it again."
            )


def open_split(folder: Path, split: str) -> "datasets.Dataset":
    """Memory-map one split. Raises DamagedDataset if a shard is missing or damaged."""
    import datasets

    files = sorted(folder.glob(f"{split}-*.arrow"))
    try:
        return datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])
    except Exception as error:  # pyarrow raises OSError or ArrowInvalid; an empty list ValueError
        raise DamagedDataset(
            f"{folder}: the shards of split {split} are missing or damaged ({error})."
        ) from error
