"""The answers of a task to rows of a store: recognition of their speech, or speech for their text."""

from typing import Any, Protocol

import torch
from tqdm import tqdm

from zipper.data.document import Document, document
from zipper.generate.write import GREEDY, Written, write
from zipper.model.multimodal import MultimodalModel
from zipper.schema import TASKS, SamplingConfig
from zipper.units.facts import Facts
from zipper.units.store import Row, Store


class Pieces(Protocol):
    """As `evaluate.journal.Journal`."""

    pieces: dict[str, Any]

    def add(self, key: str, value: Any) -> None: ...


def answers(
    model: MultimodalModel,
    store: Store,
    facts: Facts,
    rows: list[Row],
    task: str,
    batch: int,
    how: SamplingConfig = GREEDY,
    seed: int = 0,
    kept: Pieces | None = None,
    name: str = "",
) -> list[Written]:
    """One segment for every row, in its order: the last modality of the task after all before it.

    `batch` rows are written at a time, neighbours in length together; the model is left as it was. kept:
    where finished batches are noted, and read back after a kill.
    """
    order = TASKS[task]
    wholes = [document(store, row, task, 0.0) for row in rows]
    prompts = [Document(doc.id, doc.segments[:-1], doc.multimodal) for doc in wholes]
    by_length = sorted(range(len(rows)), key=lambda i: sum(len(s.tokens) for s in prompts[i].segments))
    found: dict[int, Written] = {}
    was_training = model.training
    model.eval()
    with tqdm(total=len(rows), desc=task, unit="utterance", mininterval=1.0, leave=False) as bar:
        for start in range(0, len(rows), batch):
            part = by_length[start : start + batch]
            key = f"{name or task} {seed} {start}"
            if kept is not None and key in kept.pieces:
                found.update(zip(part, map(from_json, kept.pieces[key]), strict=True))
            else:
                several = write(model, [prompts[i] for i in part], order[-1:], facts, {order[-1]: how}, seed)
                found.update({i: segment for i, (segment,) in zip(part, several, strict=True)})
                if kept is not None:
                    kept.add(key, [to_json(found[i]) for i in part])
            bar.update(len(part))
    model.train(was_training)
    return [found[i] for i in range(len(rows))]


def to_json(written: Written) -> list[Any]:
    return [written.modality, written.columns.tolist(), written.content.tolist(), written.stopped]


def from_json(line: list[Any]) -> Written:
    modality, columns, content, stopped = line
    books = len(columns[0])
    shaped = torch.tensor(content, dtype=torch.int64).view(books, -1)  # also where nothing was written
    return Written(modality, torch.tensor(columns, dtype=torch.int64), shaped, stopped)
