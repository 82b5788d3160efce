"""Files of weights: safetensors in half precision, or with matrices in 8 or 4 bits and their scales."""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from zipper.disk import write_atomic
from zipper.errors import DataError

SCALE = ".scale"  # suffix of the name of a matrix's scales
SMALLEST = 4096  # numbers of a matrix that is worth fewer bits
GROUP = 32  # numbers of a row that share a scale in 4 bits
CLIPS = (7.0, 7.5, 8.0, 8.5, 9.0, 10.0)  # steps of 4 bits in the largest number of a group: the nearest wins


def save_state(file: Path, state: Mapping[str, Tensor], small: Collection[str] = (), bits: int = 8) -> None:
    """Write a state in half precision; the matrices named in `small` in so many bits. Raises DataError on
    weights that half precision does not reach."""
    out = dict[str, Tensor]()
    for name, weight in state.items():
        weight = weight.detach().cpu()
        if name in small and _is_large(weight) and bits < 16:
            out[name], scale = quantise(weight.contiguous(), bits)
            out[name + SCALE] = _finite(name, weight, scale)
        else:
            out[name] = _halved(name, weight).contiguous()
    write_atomic(file, save(out))


def _halved(name: str, weight: Tensor) -> Tensor:
    if not weight.is_floating_point():
        return weight
    return _finite(name, weight, weight.half())


def _finite(name: str, weight: Tensor, half: Tensor) -> Tensor:
    """What is written of a weight in half precision. Raises DataError if that does not reach it."""
    if bool(half.isinf().any() and not weight.isinf().any()):
        raise DataError(
            f"{name} has weights up to {float(weight.abs().max()):.3g}, but files hold half precision, up "
            f"to {torch.finfo(torch.half).max:g}. Take another tower, or train with a lower train.lr."
        )
    return half


def load_state(file: Path) -> dict[str, Tensor]:
    """State written by `save_state`, in float32."""
    state = load_file(file)
    scales = {name.removesuffix(SCALE): state.pop(name) for name in [*state] if name.endswith(SCALE)}
    return {
        name: dequantise(weight, scales[name]) if name in scales else _float(weight)
        for name, weight in state.items()
    }


def quantise(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Whole numbers of 8 or 4 bits and scales float16, whose product is near weight float [N, ...].

    8 bits: int8 [N, ...], [N]. 4 bits: uint8 [N, M / 2], two numbers each, [N, M / GROUP], for a matrix
    [N, M] of whole groups; others are in 8 bits.
    """
    if bits == 4 and weight.ndim == 2 and weight.shape[1] % GROUP == 0:
        return _in_4_bits(weight.float())
    scale = (weight.float().flatten(1).abs().amax(1) / 127).half()
    steps = weight.float() / _over(scale, weight).clamp(min=1e-12)
    return steps.round().clamp(-127, 127).to(torch.int8), scale


def dequantise(weight: Tensor, scale: Tensor) -> Tensor:
    """What `quantise` returns -> float32 [N, ...]"""
    if weight.dtype == torch.uint8:
        numbers = torch.stack([weight & 15, weight >> 4], -1).flatten(1).float() - 8
        return (numbers.unflatten(1, (-1, GROUP)) * scale.float()[..., None]).flatten(1)
    return weight.float() * _over(scale, weight)


def rounded(weight: Tensor, bits: int = 8) -> Tensor:
    """A matrix as a file in so many bits holds it, float32."""
    return weight.half().float() if bits == 16 else dequantise(*quantise(weight, bits))


def as_kept(weight: Tensor, bits: int = 8) -> Tensor:
    """A weight as a file in so many bits holds it, float32: small ones and vectors in half precision."""
    return rounded(weight, bits) if _is_large(weight) else weight.half().float()


def _in_4_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight float32 [N, M] -> uint8 [N, M / 2], float16 [N, M / GROUP]"""
    groups = weight.unflatten(1, (-1, GROUP))
    largest = groups.abs().amax(-1, keepdim=True)
    scales = torch.stack([(largest / clip).half().float() for clip in CLIPS]).clamp(min=6e-8)
    steps = (groups / scales).round().clamp(-8, 7)  # [clips, N, M / GROUP, GROUP]
    best = (steps * scales - groups).square().sum(-1, keepdim=True).argmin(0, keepdim=True)
    scale = scales.gather(0, best)[0, ..., 0]
    numbers = (steps.gather(0, best.expand(1, *groups.shape))[0].flatten(1) + 8).to(torch.uint8)
    low, high = numbers.unflatten(1, (-1, 2)).unbind(-1)
    return low | (high << 4), scale.half()


def _is_large(weight: Tensor) -> bool:
    return weight.is_floating_point() and weight.ndim > 1 and weight.numel() >= SMALLEST


def _over(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.float().view(-1, *[1] * (weight.ndim - 1))


def _float(weight: Tensor) -> Tensor:
    return weight.float() if weight.is_floating_point() else weight
