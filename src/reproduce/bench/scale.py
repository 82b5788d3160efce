"""`zipper bench-scale`: time and memory with which a training starts, on simulated corpora of several sizes.

Rows have the lengths of LibriSpeech (12.3 s on average), random tokens and letters; EPOCH is the one in which
a training resumes. Each size is measured in a process of its own.
"""

import argparse
import json
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from reproduce.bench.record import peak_mb, write_record
from zipper.config import ROOT, load_config
from zipper.corpora.utterance import SPLITS
from zipper.data.dataset import EncodedDataset, features, open_dataset
from zipper.data.schedule import BatchSchedule
from zipper.data.statistics import measure_statistics
from zipper.modalities.base import Modality, load_modalities
from zipper.modalities.speech import PERIODS

CONFIG, EPOCH, SHARD = ROOT / "configs" / "asr.yaml", 10, 10_000
SUBWORDS, WORDS = 3.6, 2.7  # a second
FINGERPRINT = {"corpus": "simulated", "audio": "none"}


def run(args: argparse.Namespace) -> None:
    """Measure every size, print the figures, and write them to args.out."""
    sizes: dict[str, Any] = {}
    for rows in args.rows:
        folder = Path("build/scale") / str(rows)
        simulate(folder, rows)
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            sizes[str(rows)] = pool.submit(measure, folder).result()
        shutil.rmtree(folder)
        print(f"{rows} utterances: {sizes[str(rows)]}", flush=True)
    content = {"data_fingerprint": "simulated", "epoch": EPOCH, "sizes": sizes}
    write_record("bench-scale", args.line, content, args.out)


def simulate(folder: Path, rows: int) -> None:
    """Write an encoded dataset with random content; dev and test have 100 rows."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    modalities = load_modalities(load_config(CONFIG))
    counts = {"train": rows, "dev": 100, "test": 100}
    for number, (split, count) in enumerate(counts.items()):
        draw = np.random.default_rng(number)
        for shard, start in enumerate(range(0, count, SHARD)):
            table = _table(modalities, f"{split}-{shard}", min(SHARD, count - start), draw)
            file = str(folder / f"{split}-{shard:05d}.arrow")
            with pa.OSFile(file, "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
                writer.write_table(table)
    info = {"fingerprint": FINGERPRINT, "rows": counts}
    (folder / "store.json").write_text(json.dumps(info), encoding="utf-8")


def _table(modalities: dict[str, Modality], name: str, count: int, draw: np.random.Generator) -> pa.Table:
    seconds = draw.normal(12.3, 3.8, count).clip(1.4, 17).astype(np.float32)
    speech, text = modalities["speech"], modalities["text"]
    frames, subwords = (seconds * speech.rate).astype(int) + 1, (seconds * SUBWORDS).astype(int) + 1
    words = (seconds * WORDS).astype(int) + 1
    columns: dict[str, Any] = {
        "id": [f"{name}-{i:07d}" for i in range(count)],
        "text": ["passage " * n for n in words.tolist()],
        "audio": [f"/corpus/{name}/{i:07d}.flac" for i in range(count)],
        "speaker": [name] * count,
        "subset": ["librispeech/simulated"] * count,
        "start": np.zeros(count, np.float32),
        "seconds": seconds,
        speech.length_column: frames,
        text.length_column: subwords,
        speech.tokens_column: _lists(frames * speech.codebooks, speech.layout.codes, draw),
        text.tokens_column: _lists(subwords, text.layout.codes, draw),
        "letters": words * 6,
        "repeats": draw.integers(0, 5, (count, PERIODS)).tolist(),
    }
    schema = features(modalities).arrow_schema
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in schema}, schema)


def _lists(lengths: np.ndarray, size: int, draw: np.random.Generator) -> pa.Array:
    values = draw.integers(0, size, int(lengths.sum()), dtype=np.int32)
    return pa.ListArray.from_arrays(np.concatenate([[0], lengths.cumsum()]).astype(np.int32), values)


def measure(folder: Path) -> dict[str, float]:
    """Seconds of each part of a start, and peak memory in GB, which counts what was read of the mapped
    files, of `files_gb`."""
    import datasets  # noqa: F401  # its import is no part of the first measurement

    modalities = load_modalities(load_config(CONFIG))
    found, started = {}, time.perf_counter()

    def done(part: str) -> None:
        nonlocal started
        found[part] = round(time.perf_counter() - started, 2)
        started = time.perf_counter()

    open_dataset(folder, modalities, FINGERPRINT)
    done("open_first")  # checks every token once
    dataset = open_dataset(folder, modalities, FINGERPRINT)
    done("open")
    measure_statistics(dataset)
    done("statistics")
    steps = _schedule(dataset)
    steps.batch(0, 0, {name: one.codebooks for name, one in modalities.items()})
    done("first_batch")
    resumed = _schedule(dataset)
    steps.epoch_length(0)
    resumed.examples(EPOCH * steps.epoch_length(0))
    done("resume")
    files = sum(file.stat().st_size for split in SPLITS for file in folder.glob(f"{split}-*"))
    return {**found, "peak_gb": round(peak_mb() / 1e3, 2), "files_gb": round(files / 1e9, 2)}


def _schedule(dataset: EncodedDataset) -> BatchSchedule:
    return BatchSchedule(dataset, "train", {"asr": 1.0, "tts": 1.26}, 16_384, 1, 0, 0.0)
