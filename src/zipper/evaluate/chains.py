"""Chains: a row's speech or text, then several segments, each written from the one before it."""

from pathlib import Path
from typing import Any

from torch import Tensor

from zipper.data.document import Document, speech_segment
from zipper.evaluate import asr, tts
from zipper.evaluate.journal import Journal
from zipper.evaluate.result import Origin, chosen_rows, describe_run, stops
from zipper.evaluate.tts import Listener
from zipper.generate.answers import answers
from zipper.generate.write import Written, write
from zipper.model.multimodal import MultimodalModel
from zipper.schema import RunConfig
from zipper.units.codec import Codec
from zipper.units.facts import Facts
from zipper.units.store import Row, Store


def evaluate_chain(
    chain: str, model: MultimodalModel, store: Store, facts: Facts, cfg: RunConfig, origin: Origin,
    listener: Listener, kept: Journal | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Writes a chain (`speech>text>speech`) for a split and scores its last segment against the row's text: a
    result file. Text that follows speech of the model's own is scored once more, as `reread_wer`, from that
    speech as a recording: decoded to a wave, encoded again, and given as a prompt."""
    order, how, batch = chain.split(">"), cfg.decode.by_modality(), cfg.evaluate.batch
    rows = chosen_rows(store, cfg, "tts" if order[-1] == "speech" else "asr")[: cfg.evaluate.spoken]
    written = answers(model, store, facts, rows, order, batch, how, cfg.seed, kept, chain)
    last = [segments[-1] for segments in written]
    result: dict[str, Any] = {
        **describe_run(model, store, facts, cfg, origin),
        "task": chain,
        "split": cfg.evaluate.split,
        "utterances": len(rows),
        **stops([segment.stopped for segment in last]),
        "share_ended": sum(all(s.stopped == "end" for s in segments) for segments in written) / len(rows),
        "decoding": {name: how[name].describe() for name in dict.fromkeys(order[1:])},
    }
    if order[-1] == "speech":
        found = listener.score(rows, last, listener.recordings(store, rows), kept, chain)
        entries, counts = [one.entry() for one in found], tts.total(found)
        result |= {"judge": listener.judge.name, "normaliser": listener.judge.normaliser}
    else:
        heard = asr.scored(store, rows, last)
        entries, counts = [one.entry() for one in heard], asr.total(heard)
        result["normaliser"] = store.facts["fingerprint"]["normaliser"]
        if order[-2] == "speech":
            again: list[Written] = []
            for start in range(0, len(rows), batch):
                part = slice(start, start + batch)
                again += reread(model, listener.codec, cfg, facts, rows[part], written[part])
            reread_counts = asr.total(asr.scored(store, rows, again))
            result["reread_wer"] = round(reread_counts.rate, 6)
    figures = {"wer": round(counts.rate, 6), "errors": counts.errors, "words": counts.words}
    return {**result, **figures, "per_utterance": entries}


def reread(
    model: MultimodalModel, codec: Codec, cfg: RunConfig, facts: Facts, rows: list[Row],
    written: list[list[Written]],
) -> list[Written]:  # fmt: skip
    """The last but one segment of each chain, speech, read again as a recording of it would be."""
    waves: list[Tensor] = [codec.decode(segments[-2].content) for segments in written]
    prompts = []
    for row, wave in zip(rows, waves, strict=True):
        (codes,) = codec.encode([wave])
        segment = speech_segment(codes, codec.codes, 0.0, cfg.codec.pattern)
        prompts.append(Document(row["id"], [segment], multimodal=True))
    return [one for (one,) in write(model, prompts, ["text"], facts, cfg.decode.by_modality(), cfg.seed)]


def last_line(result: dict[str, Any], file: Path | str) -> str:
    """What a training ends with."""
    again = f", {result['reread_wer']:.1%} read again from its wave" if "reread_wer" in result else ""
    return (
        f"{result['task']}: WER {result['wer']:.1%}{again} ({result['errors']} errors, {result['words']} "
        f"words, {result['utterances']} utterances, {result['share_ended']:.1%} ended) -> {file}"
    ).replace("%", " %")
