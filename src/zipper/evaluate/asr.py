"""Recognition: rows of a store to hypotheses, errors and stop reasons."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from zipper.data.document import Document, document
from zipper.evaluate.wer import WordErrors, word_errors
from zipper.generate.text import write_text
from zipper.model.zipper import Zipper
from zipper.units.store import Row, Store

CAP = 1.5  # times the largest ratio of subwords to frames in training


@dataclass(frozen=True)
class Recognised:
    """One utterance: what was said, what was written, and why the writing stopped."""

    id: str
    errors: int
    words: int
    seconds: float
    reference: str
    hypothesis: str
    stopped: str

    @property
    def counts(self) -> WordErrors:
        return WordErrors(self.errors, self.words)

    def entry(self) -> dict[str, str | int | float]:
        """As it stands in a result file."""
        return asdict(self)


def recognise(
    model: Zipper, store: Store, rows: list[Row], batch: int, heard: list[Row] | None = None
) -> list[Recognised]:
    """Greedy ASR of every row, in its order; `batch` utterances at a time, neighbours in length together.

    heard: rows whose audio is given instead of the row's own (the control that the model listens).
    """
    heard = heard or rows
    order = sorted(range(len(rows)), key=lambda i: len(heard[i]["codes"]))
    found: dict[int, Recognised] = {}
    was_training = model.training
    model.eval()
    with tqdm(total=len(rows), desc="recognise", unit="utterance", mininterval=1.0, leave=False) as bar:
        for start in range(0, len(rows), batch):
            part = order[start : start + batch]
            prompts = [_prompt(store, heard[i]) for i in part]
            caps = [cap(store, heard[i]) for i in part]
            for i, out in zip(
                part, write_text(model, prompts, store.subwords.begin, store.subwords.end, caps), strict=True
            ):
                hypothesis = store.subwords.decode(out.ids)
                errors = word_errors(rows[i]["text"], hypothesis)
                found[i] = Recognised(
                    rows[i]["id"],
                    errors.errors,
                    errors.words,
                    round(rows[i]["seconds"], 3),
                    rows[i]["text"],
                    hypothesis,
                    out.stopped,
                )
            bar.update(len(part))
    model.train(was_training)
    return [found[i] for i in range(len(rows))]


def cap(store: Store, row: Row) -> int:
    """Most subwords that are written for an utterance."""
    frames = len(row["codes"]) // store.codebooks
    return math.ceil(CAP * store.facts["subwords_per_frame_max"] * frames) + 1


def total(found: Iterable[Recognised]) -> WordErrors:
    """The corpus figure."""
    return sum((r.counts for r in found), WordErrors())


def shuffled(rows: list[Row], seed: int = 0) -> list[Row]:
    """Each row's place taken by another one's audio; no row keeps its own."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    out: list[Row | None] = [None] * len(rows)
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        out[here] = rows[there]
    return [row for row in out if row is not None]


def _prompt(store: Store, row: Row) -> Document:
    whole = document(store, row, "asr", 0.0)
    return Document(whole.id, whole.segments[:-1], whole.multimodal)
