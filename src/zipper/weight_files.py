"""Files of weights: safetensors in half precision, or with matrices in 8 bits and a scale for each row."""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SCALE = ".scale"  # suffix of the name of a matrix's scales
SMALLEST = 4096  # numbers of a matrix that is worth 8 bits


def save_state(file: Path, state: Mapping[str, Tensor], int8: Collection[str] = ()) -> None:
    """Write a state in half precision; the matrices named in `int8` in 8 bits."""
    out = dict[str, Tensor]()
    for name, weight in state.items():
        weight = weight.detach().cpu()
        matrix = weight.is_floating_point() and weight.ndim > 1
        if name in int8 and matrix and weight.numel() >= SMALLEST:
            out[name], out[name + SCALE] = quantise(weight)
        else:
            out[name] = weight.half().contiguous() if weight.is_floating_point() else weight.contiguous()
    save_file(out, file)


def load_state(file: Path) -> dict[str, Tensor]:
    """State written by `save_state`, in float32."""
    state = load_file(file)
    scales = {name.removesuffix(SCALE): state.pop(name) for name in [*state] if name.endswith(SCALE)}
    return {
        name: dequantise(weight, scales[name]) if name in scales else _float(weight)
        for name, weight in state.items()
    }


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight float [N, ...] -> int8 [N, ...], scale float16 [N]: row by row, their product is near weight."""
    scale = (weight.float().flatten(1).abs().amax(1) / 127).half()
    steps = weight.float() / _over(scale, weight).clamp(min=1e-12)
    return steps.round().clamp(-127, 127).to(torch.int8), scale


def dequantise(weight: Tensor, scale: Tensor) -> Tensor:
    """weight int8 [N, ...], scale [N] -> float32 [N, ...]"""
    return weight.float() * _over(scale, weight)


def rounded(weight: Tensor) -> Tensor:
    """A matrix as a file in 8 bits holds it, float32."""
    return dequantise(*quantise(weight))


def as_kept(weight: Tensor) -> Tensor:
    """A weight as a file in 8 bits holds it, float32: small ones and vectors in half precision."""
    small = weight.ndim > 1 and weight.numel() >= SMALLEST
    return rounded(weight) if small else weight.half().float()


def _over(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.float().view(-1, *[1] * (weight.ndim - 1))


def _float(weight: Tensor) -> Tensor:
    return weight.float() if weight.is_floating_point() else weight
