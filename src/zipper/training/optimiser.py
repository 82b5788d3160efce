"""Optimiser and learning rate schedule of a training."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from zipper.config import TrainConfig
from zipper.errors import ConfigError
from zipper.models.zip_block import is_gate


def optimiser_of(
    model: nn.Module, train: TrainConfig, steps: int, fused: bool
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Optimiser of what is trained, and its schedule: a linear warm-up, then constant, or a cosine that ends
    at 0 after `steps` steps. fused: one kernel for all parameters. Raises ConfigError if all are frozen."""
    groups = parameter_groups(model, train.lr, train.gate_lr, train.weight_decay)
    if not groups:
        raise ConfigError("Every weight is frozen, nothing would be trained. Leave out a `frozen`.")
    optimiser: torch.optim.Optimizer
    if train.optimiser == "adafactor":
        optimiser = torch.optim.Adafactor(groups, lr=train.lr)
    else:
        optimiser = torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, fused=fused)

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / max(train.warmup, 1))
        fall = 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))) if train.schedule == "cosine" else 1.0
        return rise * fall

    return optimiser, LambdaLR(optimiser, factor)


def parameter_groups(
    model: nn.Module, lr: float, gate_lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Optimiser groups: matrices with weight decay; norms, biases and embeddings without; gates without,
    and with their own learning rate."""
    gates, decayed, rest = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if is_gate(name):
            gates.append(parameter)
        elif parameter.ndim == 1 or name.endswith(("embedding.weight", ".head")):
            rest.append(parameter)
        else:
            decayed.append(parameter)
    groups = [  # named as in the metrics of the learning rate
        {"name": "matrices", "params": decayed, "weight_decay": weight_decay},
        {"name": "vectors", "params": rest, "weight_decay": 0.0},
        {"name": "gates", "params": gates, "weight_decay": 0.0, "lr": lr * gate_lr},
    ]
    return [group for group in groups if group["params"]]
