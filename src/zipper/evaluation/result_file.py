"""Result files: NAME.json, and its utterances as JSON lines in NAME.utterances.jsonl.xz. Both can be in the
archive of their folder."""

import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from zipper.config import upgraded
from zipper.disk import write_atomic
from zipper.errors import DataError
from zipper.evaluation.result_archive import read_bytes

UTTERANCES = ".utterances.jsonl.xz"  # in place of .json
REASONS = {"end": "stop", "cap": "length", "loop": "repetition"}  # finish reasons in older files
KEYS = {
    "judge": "asr_scorer",
    "shuffled_wer": "mismatched_wer",
    "shuffled_exact": "mismatched_exact",
    "shuffled_slots": "mismatched_slots",
    "oracle_wer": "resynthesis_wer",
    "share_at_cap": "share_at_limit",
    "share_looping": "share_repeated",
}  # in older files
NEEDED = ("id", "errors", "words", "reference")  # keys of every utterance


class UtteranceResult(TypedDict):
    """Score of one utterance. errors: substitutions, deletions and insertions, in words.

    seconds: duration of the recording, or of the generated speech. stopped: finish reason of decoding.
    target: for TTS, transcript of the codec resynthesis, with the errors against it.
    """

    id: str
    errors: int
    words: int
    seconds: float
    reference: str
    hypothesis: str
    stopped: str
    target_errors: NotRequired[int]
    target_words: NotRequired[int]
    target: NotRequired[str]
    speaker: NotRequired[str]  # if the result has several


class LengthBin(TypedDict):
    """WER of the references of up to `characters`, and more than the bin before."""

    characters: int
    utterances: int
    wer: float
    wer_up_to: float  # of all shorter references too


class Samplings(TypedDict):
    """WER of several syntheses of every sentence."""

    wer: list[float]  # of each synthesis
    mean: float
    deviation: float
    best_of_wer: float  # of the best synthesis of each sentence


class SubsetErrors(TypedDict):
    """Word errors of one corpus subset."""

    wer: float
    errors: int
    words: int
    utterances: int


class BeforeAfter(TypedDict):
    """before: of the pre-trained weights; None without pre-training. after: of the trained model."""

    before: float | None
    after: float


class UnimodalScores(BeforeAfter, total=False):
    """Perplexity per scored token, within the modality's own vocabulary. cloze: by test of
    `zipper.evaluation.cloze`, share of right answers; older files have none."""

    cloze: dict[str, BeforeAfter]


class Result(TypedDict, total=False):
    """Content of a result file of a task, a chain, or (`loss`, `perplexity`) of a modality.

    A WER or share is a fraction of 1, not percent. Every result has the keys up to `split`, apart from those
    that older files lack.
    """

    name: str
    model: str  # zipper, single_decoder or tower
    parameters_total: int
    parameters_trained: int
    steps: int  # optimiser steps of the training
    wall_seconds: float  # of the training
    seed: int
    commit: str
    command: str
    checkpoint: str
    data_fingerprint: str
    data: dict[str, str]  # parts of the fingerprint
    towers: dict[str, str]  # hash of the weights that each tower started from
    versions: dict[str, str]
    threads: int
    config: dict[str, Any]  # all settings by section
    task: str  # asr, tts, or modalities joined by ">"
    split: str
    # Tasks and chains
    wer: float
    errors: int
    words: int
    utterances: int
    stopped: dict[str, int]  # utterances by finish reason
    share_at_limit: float  # stopped at the length limit
    share_repeated: float  # stopped by repetition
    decoding: str | dict[str, str]  # of a chain: by modality
    normaliser: str
    asr_scorer: str
    by_subset: dict[str, SubsetErrors]  # if there are several
    by_speaker: dict[str, SubsetErrors]  # likewise
    by_length: list[LengthBin]
    mismatched_wer: float  # mismatched-audio control
    samplings: Samplings
    per_utterance: list[UtteranceResult]  # in a file of its own
    # TTS
    target_wer: float  # vs transcripts of the codec resynthesis
    resynthesis_wer: float  # of the codec resynthesis
    original_wer: float  # of the recordings
    codec: str
    # Chains
    share_ended: float  # chains of which every segment ended with EOS
    reread_wer: float  # last hop again, from the decoded waveform
    # Loss
    loss: float  # nats per scored token
    perplexity: float
    # Training of several towers
    flops_per_token: dict[str, int]
    alone: dict[str, UnimodalScores]
    curves: dict[str, list[tuple[int, float]]]  # metric: (step, value)
    stage_seconds: dict[str, float]


Results = dict[str, Result]  # by task: asr, tts, a chain (speech-text-speech), or loss


def utterances_file(file: Path) -> Path:
    """Utterances file of a result file."""
    return file.with_name(f"{file.name.removesuffix('.json')}{UTTERANCES}")


def write_result(result: Mapping[str, object], *files: Path) -> None:
    """Writes result files, one top-level key per line, and `per_utterance` to their utterances files.

    Each file is written atomically, the result file last.
    """
    dense = (",", ":")
    rows = [
        f" {json.dumps(key)}: {json.dumps(result[key], separators=dense)}"
        for key in result
        if key != "per_utterance"
    ]
    text = "{\n" + ",\n".join(rows) + "\n}\n"
    entries = cast(Result, result).get("per_utterance", [])
    utterances = "".join(json.dumps(one) + "\n" for one in entries)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        if utterances:
            write_atomic(utterances_file(file), lzma.compress(utterances.encode()))
        write_atomic(file, text.encode())
        if not utterances:
            utterances_file(file).unlink(missing_ok=True)  # from an older result


def read_result(file: Path, utterances: bool = True) -> Result:
    """Result written by `write_result`, or an older one with its utterances inside the JSON.

    utterances=False leaves `per_utterance` out and does not read its file. Raises DataError if a file is
    missing or damaged.
    """
    content = read_bytes(file)
    if content is None:
        raise DataError(f"{file} does not exist: give a result file, such as build/runs/NAME/asr.json.")
    try:
        result: Result = json.loads(content)
    except ValueError as error:
        raise DataError(f"{file} is not JSON ({error}). Give a result file of `zipper train`.") from error
    if not isinstance(result, dict):
        raise DataError(f"{file} holds no JSON object. Give a result file of `zipper train`.")
    inside = result.pop("per_utterance", None)
    result = _renamed(result)
    if isinstance(result.get("config"), dict):
        result["config"] = upgraded(result["config"])
    if isinstance(result.get("stopped"), dict):
        result["stopped"] = {REASONS.get(reason, reason): n for reason, n in result["stopped"].items()}
    if not utterances:
        return result
    rows = inside or _read_utterances(file, result.get("utterances"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file}: its per_utterance is no list of utterances. Evaluate the run again.")
    if lacking := [key for key in NEEDED if any(key not in row for row in rows)]:
        raise DataError(f"{file}: an utterance has no {lacking[0]}. Evaluate the run again.")
    for row in rows:
        if "stopped" in row:
            row["stopped"] = REASONS.get(row["stopped"], row["stopped"])
    result["per_utterance"] = rows
    return result


def _renamed(value: Any) -> Any:
    """Nested dicts with the present names of their keys."""
    if not isinstance(value, dict):
        return value
    return {KEYS.get(key, key): _renamed(one) for key, one in value.items()}


def _read_utterances(file: Path, count: int | None) -> list[UtteranceResult]:
    """Utterances of a result file. count: expected number, if known."""
    beside = utterances_file(file)
    try:
        lines = read_bytes(beside)
        rows = [json.loads(line) for line in (lines or b"").splitlines()]
    except (lzma.LZMAError, ValueError) as error:
        raise DataError(
            f"{beside} is damaged ({error}). Restore it with {file}, or evaluate the run again."
        ) from error
    if lines is None:
        raise DataError(
            f"{file} holds no utterances, and {beside} does not exist. Restore it, or give the asr.json."
        )
    if count not in (None, len(rows)):
        raise DataError(
            f"{beside} holds {len(rows)} utterances, but {file} has {count}. Restore both, or evaluate again."
        )
    return rows
