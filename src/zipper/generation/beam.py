"""Beam search for a stream of one codebook: text."""

import numpy as np
import torch
from torch import Tensor

from zipper.generation.cache import Memory
from zipper.generation.stopping import Rules
from zipper.modalities.layout import NEVER, Alphabet


def beam_search(
    memory: Memory, name: str, alphabet: Alphabet, rows: list[int], caps: list[int], beams: int, keep: bool
) -> tuple[Tensor, np.ndarray]:
    """The best of `beams` hypotheses by mean log probability a token, end included; 1 beam is greedy.

    caps: most subwords, for all rows of the memory; `rows` write, the others wait. keep: the memory gets the
    end as well. Returns columns int64 [B, S, 1] and the column of each row's end [B].
    """
    device, count = memory.multimodal.device, len(caps)
    memory.select(torch.arange(count, device=device).repeat_interleave(beams))
    tower = memory.model.tower(name)
    rules = Rules(alphabet, device)
    cap = torch.tensor(caps, device=device)[:, None].expand(count, beams)
    waiting = torch.ones(count, beams, dtype=torch.bool, device=device)
    waiting[rows] = False
    ended = torch.where(waiting, 0, NEVER)  # [B, K]
    scores = torch.zeros(count, beams, device=device, dtype=tower.embedding.weight.dtype)
    scores[:, 1:] = float("-inf")  # all beams begin alike: one of them is enough
    token = torch.full((count, beams), alphabet.begin, device=device)
    fresh, history = ~waiting, token[..., None]  # [B, K, S]
    first = torch.arange(count, device=device)[:, None] * beams
    while bool((ended == NEVER).any()):
        states = memory.extend(name, token.reshape(-1, 1, 1), fresh.reshape(-1, 1))
        at = history.shape[2]
        closed = ended < NEVER
        must_end = (closed | (at > cap)).flatten().cpu().numpy()
        kinds = alphabet.kinds(at, np.full(len(must_end), NEVER), must_end)
        logits = rules(memory.logits(name, states[:, -1]), kinds)[:, 0]
        likely = logits.log_softmax(-1).view(count, beams, -1)
        scores, best = (scores[..., None] + likely).flatten(1).topk(beams)  # [B, K]
        parent, token = best // alphabet.vocabulary, best % alphabet.vocabulary
        memory.select((first + parent).flatten())
        ended, closed = ended.gather(1, parent), closed.gather(1, parent)
        history = torch.cat([history.gather(1, parent[..., None].expand_as(history)), token[..., None]], 2)
        fresh = ~closed
        lost = scores.isinf()  # fewer ways to go on than beams
        ended = torch.where(fresh & ((token == alphabet.end) | lost), at, ended)
    if keep:
        memory.extend(name, token.reshape(-1, 1, 1), fresh.reshape(-1, 1))
    best = (scores / ended.clamp(min=1)).argmax(1)
    memory.select(first[:, 0] + best)
    row = torch.arange(count, device=device)
    return history[row, best][..., None], ended[row, best].cpu().numpy()
