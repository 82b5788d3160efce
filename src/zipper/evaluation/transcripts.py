"""ASR transcripts of the recordings and of their codec resynthesis, which bound every TTS WER.

Cached by utterance in build/heard/HASH.json.
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

PART = 100  # recordings between two writes of the cache


@dataclass(frozen=True)
class Transcripts:
    """ASR transcripts of a recording, and of its codec resynthesis (the paper's "target")."""

    original: str
    target: str


def check_recordings(rows: list[Row]) -> None:
    """Raises DataError if a recording that the ASR scorer needs is missing."""
    if gone := [row["audio"] for row in rows if not Path(row["audio"]).is_file()]:
        raise DataError(
            f"{len(gone)} recordings for the ASR scorer do not exist, the first is {gone[0]}. Create the "
            "corpus again, or restore them."
        )


def piece(row: Row) -> Utterance:
    """Utterance of a row, with the segment of its file."""
    cut = row["start"], row["seconds"]
    return Utterance(row["id"], row["audio"], row["text"], row["speaker"], "", row["subset"], *cut)


def transcribe_recordings(
    build: str, dataset: EncodedDataset, codec: Codec, asr_scorer: AsrScorer, rows: list[Row]
) -> list[Transcripts]:
    """Transcripts of every row, in order, cached. Raises DataError if a recording is missing."""
    key = hashlib.sha256(f"{dataset.fingerprint} {codec.fingerprint} {asr_scorer.name}".encode()).hexdigest()[
        :12
    ]
    file = Path(build) / "heard" / f"{key}.json"
    known = read_json(file)["heard"] if file.exists() else {}
    missing = [row for row in rows if row["id"] not in known]
    for start in range(0, len(missing), PART):
        part = missing[start : start + PART]
        waves = (piece(row).wave(SCORER_RATE) for row in part)
        originals = asr_scorer.transcribe_waves(waves, SCORER_RATE, "recordings")
        trips = (codec.decode(dataset.row_codes(row)) for row in part)
        targets = asr_scorer.transcribe_waves(trips, codec.sample_rate, "round trips")
        for row, original, target in zip(part, originals, targets, strict=True):
            known[row["id"]] = {"original": original, "target": target}
        file.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(file.with_name(f".{file.name}.lock"), str(file), wait=True):
            if file.exists():  # another process may have added some
                known = {**read_json(file)["heard"], **known}
            write_result({"judge": asr_scorer.name, "store": dataset.fingerprint, "heard": known}, file)
    return [Transcripts(**known[row["id"]]) for row in rows]
