"""Writing text after a prompt: greedy, batched over ragged prompts, with a reason for every stop."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zipper.data.batch import collate
from zipper.data.document import Document
from zipper.errors import ZipperError
from zipper.generate.cache import Memory
from zipper.model.zipper import Zipper


@dataclass(frozen=True)
class Written:
    """ids: without begin and end. stopped by: the end token, or the length cap."""

    ids: list[int]
    stopped: Literal["end", "cap"]


@torch.no_grad()
def write_text(
    model: Zipper, prompts: list[Document], begin: int, end: int, caps: list[int]
) -> list[Written]:
    """Greedy text after each prompt, at most caps[i] subwords of it.

    prompts: documents without their answer, all with the same modalities in the same order.
    Raises ZipperError where they differ in that.
    """
    memory = read_prompts(model, prompts)
    device = memory.multimodal.device
    rows = len(prompts)
    token = torch.full((rows, 1, 1), begin, device=device)
    yes = torch.ones(rows, 1, dtype=torch.bool, device=device)
    limit = torch.tensor(caps, device=device)
    written: list[Tensor] = []
    open_rows = limit > 0
    while bool(open_rows.any()):
        states = memory.extend("text", token, yes)
        logits = model.tower("text").logits(states[:, -1])[:, 0]  # [B, V]
        logits[:, begin] = float("-inf")
        token = logits.argmax(-1)[:, None, None]
        written.append(token[:, 0, 0])
        open_rows = open_rows & (token[:, 0, 0] != end) & (len(written) < limit)
    ids = torch.stack(written, 1).tolist() if written else [[] for _ in prompts]
    return [_cut(row[:cap], end) for row, cap in zip(ids, caps, strict=True)]


def read_prompts(model: Zipper, prompts: list[Document]) -> Memory:
    """A Memory that has read all segments of the prompts, in their one order."""
    order = [segment.modality for segment in prompts[0].segments]
    if any([segment.modality for segment in prompt.segments] != order for prompt in prompts):
        raise ZipperError(
            "Prompts of one batch must have the same modalities in the same order. Decode them apart."
        )
    device = next(model.parameters()).device
    memory = Memory(model, torch.tensor([prompt.multimodal for prompt in prompts], device=device))
    for turn, name in enumerate(order):
        parts = [Document(p.id, [p.segments[turn]], p.multimodal) for p in prompts]
        stream = collate(parts, {name: parts[0].segments[0].tokens.shape[1]}).streams[name]
        memory.extend(name, stream.tokens.to(device), stream.valid.to(device))
    return memory


def _cut(row: list[int], end: int) -> Written:
    return Written(row[: row.index(end)], "end") if end in row else Written(row, "cap")
