"""Generation for rows of an encoded dataset."""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from zipper.config import SamplingConfig
from zipper.data.batches import spans
from zipper.data.dataset import EncodedDataset, Row
from zipper.data.documents import Document, segment
from zipper.data.statistics import DatasetStatistics
from zipper.generation.generate import GenerationOutput, generate
from zipper.modalities.scoring import Journal
from zipper.models.multimodal import MultimodalModel

LIMIT = 100_000  # padded timesteps of the prompts of a batch, in all beams or candidates: up to about 2 GB


def generate_rows(
    model: MultimodalModel,
    dataset: EncodedDataset,
    statistics: DatasetStatistics,
    rows: list[Row],
    order: Sequence[str],
    batch: int,
    decode: dict[str, SamplingConfig] | None = None,
    seed: int = 0,
    journal: Journal | None = None,
    name: str = "",
) -> list[list[GenerationOutput]]:
    """Generate the modalities `order[1:]` for every row. The prompt is the row's own segment of modality
    `order[0]`.

    Rows of similar length form a batch of up to `batch`, fewer if they are long (LIMIT). The model's training
    mode is restored. journal: records finished batches under `name`, so that an interrupted evaluation
    resumes.
    """
    source = dataset.modalities[order[0]]
    prompts = [Document(row["id"], [segment(source, source.content(row))], multimodal=True) for row in rows]
    lengths = [len(prompt.segments[0].tokens) for prompt in prompts]
    by_length = sorted(range(len(rows)), key=lengths.__getitem__)
    copies = max((one.rows for one in (decode or {}).values()), default=1)
    found: dict[int, list[GenerationOutput]] = {}
    bar = tqdm(total=len(rows), desc=name, unit="utterance", mininterval=1.0, leave=False)
    with model.evaluating(), bar:
        for start, end in spans([lengths[i] * copies for i in by_length], batch, LIMIT):
            part = by_length[start:end]
            key = f"{name} {seed} {start}-{end}"
            if journal is not None and key in journal.pieces:
                lines = journal.pieces[key]
                found.update({i: [*map(from_json, line)] for i, line in zip(part, lines, strict=True)})
            else:
                several = generate(model, [prompts[i] for i in part], order[1:], statistics, decode, seed)
                found.update(zip(part, several, strict=True))
                if journal is not None:
                    journal.add(key, [[*map(to_json, found[i])] for i in part])
            bar.update(len(part))
    return [found[i] for i in range(len(rows))]


def to_json(written: GenerationOutput) -> list[Any]:
    """JSON value of a segment, as stored in the journal."""
    return [written.modality, written.tokens.tolist(), written.content.tolist(), written.finish_reason]


def from_json(line: list[Any]) -> GenerationOutput:
    """Invert `to_json`."""
    modality, tokens, content, finish_reason = line
    books = len(tokens[0])
    shaped = torch.tensor(content, dtype=torch.int64).view(books, -1)  # also if empty
    return GenerationOutput(modality, torch.tensor(tokens, dtype=torch.int64), shaped, finish_reason)
