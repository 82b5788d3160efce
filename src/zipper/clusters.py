"""Clusters of vectors."""

import torch
from torch import Tensor


def nearest(x: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest centre of each row: x [N, D], centres [V, D] -> int64 [N]."""
    return (centres.square().sum(1) - 2 * x @ centres.T).argmin(1)


def k_means(x: Tensor, count: int, rounds: int) -> Tensor:
    """k-means: x [N, D] -> centres [count, D]. An empty centre moves to a random row."""
    centres = x[torch.randperm(len(x), device=x.device)[:count]].clone()
    for _ in range(rounds):
        code = nearest(x, centres)
        centres = means(x, code, count)
        empty = torch.bincount(code, minlength=count) == 0
        centres[empty] = x[torch.randint(len(x), (int(empty.sum()),), device=x.device)]
    return centres


def means(x: Tensor, code: Tensor, count: int) -> Tensor:
    """Mean of the rows x [N, D] of each code int64 [N] -> [count, D]; 0 for a code without rows."""
    size = torch.bincount(code, minlength=count).clamp(min=1)
    return x.new_zeros(count, x.shape[1]).index_add_(0, code, x) / size[:, None]
