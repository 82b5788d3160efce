"""Masking of what a tower hears in training: speech tokens become fillers, as SpecAugment does with spectra.

A small corpus is learnt by heart from its exact codes; who misses some of them has to use the rest.
"""

import torch
from torch import Tensor

from zipper.data.batch import Stream
from zipper.schema import MaskConfig


def mask_tokens(stream: Stream, cfg: MaskConfig, filler: int) -> Stream:
    """The stream with some input tokens [B, S, Q] replaced by `filler`; its targets stay as they are.

    Columns are masked in spans of all codebooks, tokens one by one. Draws from torch's global generator,
    which the caller seeds by step.
    """
    tokens = stream.tokens
    starts = torch.rand(tokens.shape[:2], device=tokens.device) < cfg.spans / cfg.span  # [B, S]
    hidden = (torch.rand(tokens.shape, device=tokens.device) < cfg.tokens) | spans(starts, cfg.span)[
        ..., None
    ]
    return stream._replace(tokens=torch.where(hidden, filler, tokens))


def spans(starts: Tensor, length: int) -> Tensor:
    """starts bool [B, S] -> bool [B, S]: each start and the length - 1 columns after it."""
    seen = starts.int().cumsum(1)
    before = torch.nn.functional.pad(seen, (length, 0))[:, : seen.shape[1]]
    return seen > before
