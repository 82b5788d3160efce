"""Scores of generated speech: the word errors of an ASR model against the text, and against the codec
resynthesis of the recording (paper 4.1.4)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from zipper.config import read_json
from zipper.disk import file_lock, write_atomic
from zipper.distributed import map_over_ranks
from zipper.errors import DataError
from zipper.modalities.asr_scorer import SCORER_RATE, AsrScorer
from zipper.modalities.audio import read_wave, without_speed
from zipper.modalities.base import Modality
from zipper.modalities.resampling import resample
from zipper.modalities.scoring import Generated, Journal, Rows, Score, Scorer, WordErrors

PART = 100  # recordings between two writes of the cache


@dataclass(frozen=True)
class Transcripts:
    """ASR transcripts of a recording, and of its codec resynthesis (the paper's "target")."""

    original: str
    target: str


@dataclass(frozen=True)
class SpeechScore(Score):
    """reference: text to synthesize (the paper's "gold"). hypothesis: ASR transcript of the generated speech.
    target: ASR transcript of the codec resynthesis of the recording, with the errors against it."""

    target_errors: int
    target_words: int
    target: str


class SpeechScorer(Scorer):
    """Modality of waveforms, and ASR model. build: has the cached transcripts, in transcripts/HASH.json."""

    costly = True

    def __init__(self, speech: Modality, asr_scorer: AsrScorer, build: str) -> None:
        assert speech.sample_rate is not None, "values are waveforms"
        self.speech, self.asr_scorer, self.build, self.rate = speech, asr_scorer, build, speech.sample_rate
        self.name = asr_scorer.name
        self.identity = {"asr_scorer": asr_scorer.name, "normaliser": asr_scorer.normaliser}

    def score(
        self,
        rows: Rows,
        outputs: Sequence[Generated],
        dataset: str,
        kept: Journal | None = None,
        name: str = "speech",
    ) -> list[Score]:
        """See Scorer."""
        recorded, rate = self.recordings(rows, dataset), self.rate
        waves = [self.speech.decode(segment.content) for segment in outputs]
        transcripts = self.asr_scorer.transcribe_waves(waves, rate, name, kept)
        out: list[Score] = []
        for row, segment, record, wave, transcript in zip(
            rows, outputs, recorded, waves, transcripts, strict=True
        ):
            errors = self.asr_scorer.errors(row["text"], transcript)
            target = self.asr_scorer.errors(record.target, transcript)
            out.append(
                SpeechScore(
                    row["id"], errors.errors, errors.words, round(len(wave) / rate, 3), row["text"],
                    transcript, segment.finish_reason, target.errors, target.words, record.target,
                )
            )  # fmt: skip
        return out

    def check(self, rows: Rows) -> None:
        if gone := [row["audio"] for row in rows if not Path(row["audio"]).is_file()]:
            raise DataError(
                f"{len(gone)} recordings for the ASR scorer do not exist, the first is {gone[0]}. Create the "
                "corpus again, or restore them."
            )

    def describe(self, rows: Rows, found: Sequence[Score], dataset: str) -> dict[str, Any]:
        """WER vs resynthesis (`target_wer`), and for context the WER of the recordings (`original_wer`) and
        of their codec resynthesis (`resynthesis_wer`)."""
        recorded = map_over_ranks(list(rows), lambda some: self.recordings(some, dataset))
        spoken = [one for one in found if isinstance(one, SpeechScore)]
        target = sum((WordErrors(one.target_errors, one.target_words) for one in spoken), WordErrors())
        pairs = list(zip(rows, recorded, strict=True))
        original, resynthesis = (
            sum((self.asr_scorer.errors(row["text"], text(one)) for row, one in pairs), WordErrors())
            for text in (lambda one: one.original, lambda one: one.target)
        )
        return {
            "target_wer": round(target.rate, 6),
            "resynthesis_wer": round(resynthesis.rate, 6),
            "original_wer": round(original.rate, 6),
            "codec": self.speech.description,
        }

    def recordings(self, rows: Rows, dataset: str) -> list[Transcripts]:
        """Transcripts of every row, in order, cached. Raises DataError if a recording is missing."""
        identity = f"{dataset} {self.speech.description} {self.asr_scorer.name}"
        file = Path(self.build) / "transcripts" / f"{hashlib.sha256(identity.encode()).hexdigest()[:12]}.json"
        known = read_json(file)["transcripts"] if file.exists() else {}
        missing = [row for row in rows if row["id"] not in known]
        for start in range(0, len(missing), PART):
            part = missing[start : start + PART]
            originals = self.asr_scorer.transcribe_waves(
                (recording(row) for row in part), SCORER_RATE, "recordings"
            )
            trips = (self.speech.decode(self.speech.content(row)) for row in part)
            targets = self.asr_scorer.transcribe_waves(trips, self.rate, "round trips")
            for row, original, target in zip(part, originals, targets, strict=True):
                known[row["id"]] = {"original": original, "target": target}
            file.parent.mkdir(parents=True, exist_ok=True)
            with file_lock(file.with_name(f".{file.name}.lock"), str(file), wait=True):
                if file.exists():  # another process may have added some
                    known = {**read_json(file)["transcripts"], **known}
                about = {"asr_scorer": self.asr_scorer.name, "data_fingerprint": dataset}
                content = {**about, "transcripts": known}
                write_atomic(file, json.dumps(content, indent=0).encode())
        return [Transcripts(**known[row["id"]]) for row in rows]


def recording(row: Mapping[str, Any]) -> Tensor:
    """Recording of a row, float32 [n] at SCORER_RATE. Raises DataError if it cannot be read."""
    _, speed = without_speed(row["id"])
    try:
        wave = read_wave(Path(row["audio"]), SCORER_RATE, row["start"], row["seconds"] * speed)
        return resample(wave, round(SCORER_RATE * speed), SCORER_RATE)
    except DataError as error:
        raise DataError(f"Utterance {row['id']}: {error}") from error
