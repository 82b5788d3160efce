"""Evaluation of chains: each segment is generated from the segment before it."""

from pathlib import Path
from typing import Any

from zipper.codecs.codec import Codec
from zipper.config import RunConfig
from zipper.data.dataset import EncodedDataset, Row
from zipper.data.documents import Document, speech_segment
from zipper.data.statistics import DatasetStatistics
from zipper.distributed import map_over_ranks
from zipper.evaluation import asr, tts
from zipper.evaluation.journal import Journal
from zipper.evaluation.result import Origin, chosen_rows, describe_run, finish_reasons
from zipper.evaluation.tts import SpeechScorer
from zipper.generation.generate import GenerationOutput, generate
from zipper.generation.rows import generate_rows
from zipper.models.multimodal import MultimodalModel


def evaluate_chain(
    chain: str,
    model: MultimodalModel,
    dataset: EncodedDataset,
    statistics: DatasetStatistics,
    cfg: RunConfig,
    origin: Origin,
    speech_scorer: SpeechScorer,
    kept: Journal | None = None,
) -> dict[str, Any]:
    """Evaluates a chain (`speech>text>speech`) on a split; returns the content of a result file.

    The last segment is scored against the row's text. Text that follows generated speech is also scored as
    `reread_wer`: the speech is decoded to a waveform, encoded again, and used as a prompt.
    """
    order, sampling, batch = chain.split(">"), cfg.decode.by_modality(), cfg.evaluate.batch
    rows = chosen_rows(dataset, cfg, "tts" if order[-1] == "speech" else "asr")[: cfg.evaluate.spoken]
    written = map_over_ranks(
        rows,
        lambda some: generate_rows(
            model, dataset, statistics, some, order, batch, sampling, cfg.seed, kept, chain
        ),
    )
    last = [segments[-1] for segments in written]
    result: dict[str, Any] = {
        **describe_run(model, dataset, statistics, cfg, origin),
        "task": chain,
        "split": cfg.evaluate.split,
        "utterances": len(rows),
        **finish_reasons([segment.finish_reason for segment in last]),
        "share_ended": sum(all(s.finish_reason == "end" for s in segments) for segments in written)
        / len(rows),
        "decoding": {name: sampling[name].describe() for name in dict.fromkeys(order[1:])},
    }
    if order[-1] == "speech":

        def score(pairs: list[tuple[Row, GenerationOutput]]) -> list[tts.TtsUtterance]:
            some, spoken = [row for row, _ in pairs], [segment for _, segment in pairs]
            return speech_scorer.score(some, spoken, speech_scorer.recordings(dataset, some), kept, chain)

        found = map_over_ranks(list(zip(rows, last, strict=True)), score)
        entries, counts = [one.entry() for one in found], tts.total_errors(found)
        result |= {"judge": speech_scorer.asr_scorer.name, "normaliser": speech_scorer.asr_scorer.normaliser}
    else:
        transcript = asr.score_transcripts(dataset, rows, last)
        entries, counts = [one.entry() for one in transcript], asr.total_errors(transcript)
        result["normaliser"] = dataset.info["fingerprint"]["normaliser"]
        if order[-2] == "speech":

            def transcribe_again(pairs: list[tuple[Row, list[GenerationOutput]]]) -> list[GenerationOutput]:
                parts = [pairs[start : start + batch] for start in range(0, len(pairs), batch)]
                return [
                    one
                    for part in parts
                    for one in transcribe_resynthesis(model, speech_scorer.codec, cfg, statistics, part)
                ]

            read = map_over_ranks(list(zip(rows, written, strict=True)), transcribe_again)
            reread_counts = asr.total_errors(asr.score_transcripts(dataset, rows, read))
            result["reread_wer"] = round(reread_counts.rate, 6)
    figures = {"wer": round(counts.rate, 6), "errors": counts.errors, "words": counts.words}
    return {**result, **figures, "per_utterance": entries}


def transcribe_resynthesis(
    model: MultimodalModel,
    codec: Codec,
    cfg: RunConfig,
    statistics: DatasetStatistics,
    chains: list[tuple[Row, list[GenerationOutput]]],
) -> list[GenerationOutput]:
    """Transcribes the second to last segment of each chain from its decoded waveform.

    A chain without generated speech keeps its own text.
    """
    prompts, spoken = [], [i for i, (_, segments) in enumerate(chains) if segments[-2].content.numel()]
    for row, segments in (chains[i] for i in spoken):
        (codes,) = codec.encode([codec.decode(segments[-2].content)])
        segment = speech_segment(codes, codec.codes, 0.0, cfg.codec.pattern)
        prompts.append(Document(row["id"], [segment], multimodal=True))
    found = [segments[-1] for _, segments in chains]
    if prompts:
        read = generate(model, prompts, ["text"], statistics, cfg.decode.by_modality(), cfg.seed)
        for i, (text,) in zip(spoken, read, strict=True):
            found[i] = text
    return found


def summary_line(result: dict[str, Any], file: Path | str) -> str:
    """Summary line that a command prints."""
    again = f", {result['reread_wer']:.1%} from the decoded waveform" if "reread_wer" in result else ""
    return (
        f"{result['task']}: WER {result['wer']:.1%}{again} ({result['errors']} errors, {result['words']} "
        f"words, {result['utterances']} utterances, {result['share_ended']:.1%} ended) -> {file}"
    ).replace("%", " %")
