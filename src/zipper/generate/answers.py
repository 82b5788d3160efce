"""The answers of a task to rows of a store: recognition of their speech, or speech for their text."""

from tqdm import tqdm

from zipper.data.document import Document, document
from zipper.generate.write import GREEDY, Written, write
from zipper.model.multimodal import MultimodalModel
from zipper.schema import TASKS, SamplingConfig
from zipper.units.facts import Facts
from zipper.units.store import Row, Store


def answers(
    model: MultimodalModel,
    store: Store,
    facts: Facts,
    rows: list[Row],
    task: str,
    batch: int,
    how: SamplingConfig = GREEDY,
    seed: int = 0,
) -> list[Written]:
    """One segment for every row, in its order: the last modality of the task after all before it.

    `batch` rows are written at a time, neighbours in length together; the model is left as it was.
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
            written = write(model, [prompts[i] for i in part], order[-1:], facts, {order[-1]: how}, seed)
            for i, (segment,) in zip(part, written, strict=True):
                found[i] = segment
            bar.update(len(part))
    model.train(was_training)
    return [found[i] for i in range(len(rows))]
