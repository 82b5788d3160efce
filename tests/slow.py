"""Slow references for writing, by the rules alone."""

import random

import torch

from conftest import RATES, as_batch, interleaving
from zipper.data.documents import Document, Segment
from zipper.data.statistics import DatasetStatistics

LONGEST = {"text": 4, "speech": 5, "music": 4}
RATIO = {"text": {"speech": 1.5}, "speech": {"text": 2.0}}
STATISTICS = DatasetStatistics("", {}, RATES, seconds={}, longest=LONGEST, ratio=RATIO, repeats={})


@torch.no_grad()
def slow_greedy(model, given: Document, name: str, cap: int, guidance: float = 1.0) -> torch.Tensor:
    """The whole Zipper over the whole document for every new timestep, by the rules of the delay pattern
    alone: timesteps [S, Q] of one segment. guidance: away from the document of the answer alone."""
    tower = model.cfg.towers[name]
    books, text = tower.codebooks, name == "text"
    codes = range(2, tower.vocabulary) if text else range(tower.vocabulary - 3)
    begin, end, filler = (0, 1, -1) if text else range(tower.vocabulary - 3, tower.vocabulary)
    timesteps, frames = [[begin] * books], None
    while frames is None or len(timesteps) < 1 + frames + max(1, books - 1):
        begun = Segment(name, torch.tensor(timesteps), torch.zeros(len(timesteps), books, dtype=bool), 1.0)
        documents = [Document(given.id, [*given.segments, begun], given.multimodal)]
        documents += [Document(given.id, [begun], False)] if guidance != 1 else []
        likely = []
        for document in documents:
            batch = as_batch(model, [document])
            row = int(batch.streams[name].valid.sum()) - 1
            likely.append(model.tower(name).logits(model(batch)[name][0, row]).log_softmax(-1))
        logits = (1 - guidance) * likely[-1] + guidance * likely[0]
        timestep = []
        for q in range(books):
            frame = len(timesteps) - 1 - q
            if q == 0 and frames is None:
                allowed = [end] if frame == cap else [*codes, end]
            elif frame >= 0 and (frames is None or frame < frames):
                allowed = list(codes)
            else:
                allowed = [filler]
            timestep.append(max(allowed, key=lambda token, q=q: float(logits[q, token])))
        timesteps.append(timestep)
        if frames is None and timestep[0] == end:
            frames = len(timesteps) - 2
    return torch.tensor(timesteps)


def prompts(model, count: int, first: str | None = None, parts: int = 1, seed: int = 11) -> list[Document]:
    draw, out = random.Random(seed), []
    while len(out) < count:
        doc = interleaving(model, draw, parts)
        if first in (None, doc.segments[-1].modality):
            out.append(doc)
    return out
