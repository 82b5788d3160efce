"""Chains: a row's speech or text, then several segments, each written from the one before it."""

from pathlib import Path
from typing import Any

from zipper.codecs.codec import Codec
from zipper.config import RunConfig
from zipper.data.dataset import EncodedDataset, Row
from zipper.data.documents import Document, speech_segment
from zipper.data.statistics import DatasetStatistics
from zipper.distributed import divided
from zipper.evaluation import asr, tts
from zipper.evaluation.journal import Journal
from zipper.evaluation.result import Origin, chosen_rows, describe_run, stops
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
    """Writes a chain (`speech>text>speech`) for a split and scores its last segment against the row's text: a
    result file. Text that follows speech of the model's own is scored once more, as `reread_wer`, from that
    speech as a recording: decoded to a wave, encoded again, and given as a prompt."""
    order, how, batch = chain.split(">"), cfg.decode.by_modality(), cfg.evaluate.batch
    rows = chosen_rows(dataset, cfg, "tts" if order[-1] == "speech" else "asr")[: cfg.evaluate.spoken]
    written = divided(
        rows,
        lambda some: generate_rows(
            model, dataset, statistics, some, order, batch, how, cfg.seed, kept, chain
        ),
    )
    last = [segments[-1] for segments in written]
    result: dict[str, Any] = {
        **describe_run(model, dataset, statistics, cfg, origin),
        "task": chain,
        "split": cfg.evaluate.split,
        "utterances": len(rows),
        **stops([segment.finish_reason for segment in last]),
        "share_ended": sum(all(s.finish_reason == "end" for s in segments) for segments in written)
        / len(rows),
        "decoding": {name: how[name].describe() for name in dict.fromkeys(order[1:])},
    }
    if order[-1] == "speech":

        def score(pairs: list[tuple[Row, GenerationOutput]]) -> list[tts.Spoken]:
            some, spoken = [row for row, _ in pairs], [segment for _, segment in pairs]
            return speech_scorer.score(some, spoken, speech_scorer.recordings(dataset, some), kept, chain)

        found = divided(list(zip(rows, last, strict=True)), score)
        entries, counts = [one.entry() for one in found], tts.total(found)
        result |= {"judge": speech_scorer.judge.name, "normaliser": speech_scorer.judge.normaliser}
    else:
        transcript = asr.scored(dataset, rows, last)
        entries, counts = [one.entry() for one in transcript], asr.total(transcript)
        result["normaliser"] = dataset.info["fingerprint"]["normaliser"]
        if order[-2] == "speech":

            def again(pairs: list[tuple[Row, list[GenerationOutput]]]) -> list[GenerationOutput]:
                parts = [pairs[start : start + batch] for start in range(0, len(pairs), batch)]
                return [
                    one for part in parts for one in reread(model, speech_scorer.codec, cfg, statistics, part)
                ]

            read = divided(list(zip(rows, written, strict=True)), again)
            reread_counts = asr.total(asr.scored(dataset, rows, read))
            result["reread_wer"] = round(reread_counts.rate, 6)
    figures = {"wer": round(counts.rate, 6), "errors": counts.errors, "words": counts.words}
    return {**result, **figures, "per_utterance": entries}


def reread(
    model: MultimodalModel,
    codec: Codec,
    cfg: RunConfig,
    statistics: DatasetStatistics,
    chains: list[tuple[Row, list[GenerationOutput]]],
) -> list[GenerationOutput]:
    """The last but one segment of each chain, speech, read again as a recording of it would be. Where nothing
    was spoken there is nothing to read: the chain's own text stands."""
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


def last_line(result: dict[str, Any], file: Path | str) -> str:
    """What a training ends with."""
    again = f", {result['reread_wer']:.1%} read again from its wave" if "reread_wer" in result else ""
    return (
        f"{result['task']}: WER {result['wer']:.1%}{again} ({result['errors']} errors, {result['words']} "
        f"words, {result['utterances']} utterances, {result['share_ended']:.1%} ended) -> {file}"
    ).replace("%", " %")
