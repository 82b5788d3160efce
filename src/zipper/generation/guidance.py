"""Classifier-free guidance: logits are extrapolated from those of a model without the prompt.

A prompt has two rows of the cache, the second without it: there a Zipper's tower runs alone, as if its zips
were closed (arXiv 2207.12598; of language models 2306.17806).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from zipper.data.documents import Document
from zipper.generation.cache import KVCache


def with_unprompted(prompts: Sequence[Document]) -> list[Document]:
    """Each prompt, and after it a document without segments."""
    return [one for prompt in prompts for one in (prompt, Document(prompt.id, [], multimodal=False))]


def next_logits(cache: KVCache, name: str, tokens: Tensor, goes_on: Tensor, scale: float) -> Tensor:
    """Logits [B, Q, V] of what follows tokens int64 [B, Q] of tower `name`, which are appended to the cache
    in the prompts' rows for which `goes_on`, bool [B], holds.

    scale: 1 leaves the logits as they are; with another one they are log probabilities, without the prompt
    plus `scale` times their difference to those with it.
    """
    if cache.rows_each > 1:
        tokens = tokens.repeat_interleave(2, 0)
        goes_on = torch.stack([goes_on, goes_on & (scale != 1)], 1).flatten()
    states = cache.extend(name, tokens[:, None], goes_on[:, None])
    logits = cache.logits(name, states[:, -1])
    if scale == 1:
        return logits[:: cache.rows_each].contiguous()
    exact = torch.promote_types(logits.dtype, torch.float32)  # the difference of two is small
    prompted, unprompted = logits.log_softmax(-1, dtype=exact).unflatten(0, (-1, 2)).unbind(1)
    return (unprompted + scale * (prompted - unprompted)).contiguous()
