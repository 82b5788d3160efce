"""Beam search for modalities of one codebook (text)."""

import numpy as np
import torch
from torch import Tensor

from zipper.generation.cache import KVCache
from zipper.generation.cache_rows import exchange, select
from zipper.generation.ctc import CtcScorer, JointScores
from zipper.generation.stopping import LogitsProcessor
from zipper.modalities.layout import NOT_ENDED, TokenLayout


def beam_search(
    cache: KVCache,
    name: str,
    layout: TokenLayout,
    rows: list[int],
    caps: list[int],
    beams: int,
    append_last: bool,
    ctc: tuple[CtcScorer, float] | None = None,
) -> tuple[Tensor, np.ndarray]:
    """Best of `beams` hypotheses by mean log probability per token, EOS included. One beam is greedy search.
    ctc: scorer and weight, for the best by the weighted sum of both log probabilities.

    rows: indices of the cache rows that generate; the others wait. caps: maximum content length of every row
    of the cache. append_last: also append EOS to the cache.

    Returns tokens int64 [B, S, 1] and the timestep of each row's EOS [B].
    """
    device, count = cache.multimodal.device, len(caps)
    select(cache, torch.arange(count, device=device).repeat_interleave(beams))
    start = cache.length[cache.model.backbone(name)]
    tower = cache.model.tower(name)
    processor = LogitsProcessor(layout, device)
    cap = torch.tensor(caps, device=device)[:, None].expand(count, beams)
    waiting = torch.ones(count, beams, dtype=torch.bool, device=device)
    waiting[rows] = False
    ended = torch.where(waiting, 0, NOT_ENDED)  # [B, K]
    scores = torch.zeros(count, beams, device=device, dtype=tower.embedding.weight.dtype)
    scores[:, 1:] = float("-inf")  # all beams are equal at first, so one is enough
    token = torch.full((count, beams), layout.bos, device=device)
    fresh, history = ~waiting, token[..., None]  # [B, K, S]
    first = torch.arange(count, device=device)[:, None] * beams
    joint = None if ctc is None else JointScores(*ctc, beams, layout.eos)
    while bool((ended == NOT_ENDED).any()):
        states = cache.extend(name, token.reshape(-1, 1, 1), fresh.reshape(-1, 1))
        at = history.shape[2]
        closed = ended < NOT_ENDED
        must_end = (closed | (at > cap)).flatten().cpu().numpy()
        kinds = layout.kinds(at, np.full(len(must_end), NOT_ENDED), must_end)
        logits = processor(cache.logits(name, states[:, -1]), kinds)[:, 0]
        likely = logits.log_softmax(-1).view(count, beams, -1)
        if joint is None:
            scores, best = (scores[..., None] + likely).flatten(1).topk(beams)  # [B, K]
            parent, token = best // layout.vocabulary, best % layout.vocabulary
        else:
            parent, token, scores = joint.choose(scores, likely, closed)
        exchange(cache, name, (first + parent).flatten(), start)
        ended, closed = ended.gather(1, parent), closed.gather(1, parent)
        history = torch.cat([history.gather(1, parent[..., None].expand_as(history)), token[..., None]], 2)
        fresh = ~closed
        lost = scores.isinf()  # fewer continuations than beams
        ended = torch.where(fresh & ((token == layout.eos) | lost), at, ended)
    if append_last:
        cache.extend(name, token.reshape(-1, 1, 1), fresh.reshape(-1, 1))
    best = (scores / ended.clamp(min=1) if joint is None else joint.joined(scores)).argmax(1)
    select(cache, first[:, 0] + best)
    row = torch.arange(count, device=device)
    return history[row, best][..., None], ended[row, best].cpu().numpy()
