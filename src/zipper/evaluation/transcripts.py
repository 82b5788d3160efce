"""What the judge hears in the recordings themselves: the floor, and the ceiling, of every TTS figure.

Heard once and kept: build/heard/HASH.json, by utterance.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from zipper.codecs.codec import Codec
from zipper.config import read_json
from zipper.corpora.utterance import Utterance
from zipper.data.dataset import EncodedDataset, Row
from zipper.disk import file_lock
from zipper.errors import DataError
from zipper.evaluation.result_file import write_result
from zipper.evaluation.scorer import SCORER_RATE, AsrScorer

PART = 100  # recordings heard between two writings of the file


@dataclass(frozen=True)
class Transcripts:
    """What the judge wrote down: of the recording, and of its codec round trip (the paper's target)."""

    original: str
    target: str


def check_recordings(rows: list[Row]) -> None:
    """Raises DataError, before anything is trained, where a recording is gone that the judge is to hear."""
    if gone := [row["audio"] for row in rows if not Path(row["audio"]).is_file()]:
        raise DataError(
            f"{len(gone)} recordings that the judge is to hear do not exist, {gone[0]} first. Make the "
            "corpus again, or put them back."
        )


def piece(row: Row) -> Utterance:
    """The recording of a row, which may be a piece of its file."""
    cut = row["start"], row["seconds"]
    return Utterance(row["id"], row["audio"], row["text"], row["speaker"], "", row["subset"], *cut)


def transcribe_recordings(
    build: str, dataset: EncodedDataset, codec: Codec, judge: AsrScorer, rows: list[Row]
) -> list[Transcripts]:
    """Of every row, in its order. What was heard before is read back. DataError where a recording is gone."""
    key = hashlib.sha256(f"{dataset.fingerprint} {codec.fingerprint} {judge.name}".encode()).hexdigest()[:12]
    file = Path(build) / "heard" / f"{key}.json"
    known = read_json(file)["heard"] if file.exists() else {}
    missing = [row for row in rows if row["id"] not in known]
    for start in range(0, len(missing), PART):
        part = missing[start : start + PART]
        said = [piece(row) for row in part]
        originals = judge.transcribe_waves((one.wave(SCORER_RATE) for one in said), SCORER_RATE, "recordings")
        trips = (codec.decode(dataset.row_codes(row)) for row in part)
        targets = judge.transcribe_waves(trips, codec.sample_rate, "round trips")
        for row, original, target in zip(part, originals, targets, strict=True):
            known[row["id"]] = {"original": original, "target": target}
        file.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(file.with_name(f".{file.name}.lock"), str(file), wait=True):
            if file.exists():  # another process may have heard others by now
                known = {**read_json(file)["heard"], **known}
            write_result({"judge": judge.name, "store": dataset.fingerprint, "heard": known}, file)
    return [Transcripts(**known[row["id"]]) for row in rows]
