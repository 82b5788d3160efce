"""Precision `bf16-products`: float32, but linear layers round inputs and results to bfloat16.

For CPUs that multiply bfloat16 faster than float32. Weights, attention, norms, loss and optimiser stay in
float32. Lightning's `bf16-mixed` keeps activations and attention in bfloat16, too, which is slower on a CPU
than float32. Once products are fast, what is left counts more: RMSNorm passes over its input fewer times
here, and a random number is the mask of eight elements in dropout.

Where a CPU has no instructions for bfloat16, PyTorch takes nine times as long for its products. There the
rounded inputs are multiplied in float32, and the result is rounded: the same but for the order of sums.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zipper.cpu import MULTIPLIES_BFLOAT16


class BFloat16Products(Precision):
    """Applies to training and validation steps. Generation, and what is exported, is float32."""

    precision: Any = "bf16-products"

    @contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        with Products():
            yield


class Products(TorchFunctionMode):
    """Linear layers multiply in bfloat16, forward and backward; RMSNorm and dropout take less time."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if (own := OWN.get(func)) is not None:
            return own(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = _Product.apply(x, weight)
    return product if bias is None else product + bias


class _Product(torch.autograd.Function):
    """x [..., D], weight [E, D] -> [..., E], all float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = _rounded(x), _rounded(weight)
        ctx.save_for_backward(x, weight)
        return _rounded(F.linear(x, weight)).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = _rounded(gradients[0])
        to_x = _rounded(gradient @ weight).float() if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return to_x, None
        return to_x, _rounded(gradient.flatten(0, -2).T @ x.flatten(0, -2)).float()


def _rounded(x: Tensor) -> Tensor:
    """x in bfloat16; its values in float32 where the CPU does not multiply bfloat16."""
    return x.bfloat16() if MULTIPLIES_BFLOAT16 else x.bfloat16().float()


def _rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor, eps: float | None = None) -> Tensor:
    if len(shape) != 1:
        raise ValueError(f"RMSNorm over {len(shape)} dimensions: bf16-products knows that of one only")
    y: Tensor = _RmsNorm.apply(x, weight, torch.finfo(x.dtype).eps if eps is None else eps)
    return y


class _RmsNorm(torch.autograd.Function):
    """x [..., D], weight [D] -> [..., D]: x / rms(x) * weight. The backward pass gets both sums that it needs
    as products of one matrix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        product = gradients[0] * x
        to_weight = scale.flatten() @ product.flatten(0, -2) if ctx.needs_input_grad[1] else None
        along = (product @ weight)[..., None] * scale**3 / -x.shape[-1]
        return (gradients[0] * weight).mul_(scale).addcmul_(x, along), to_weight, None


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout in steps of 1 / 256, the share of elements to which it rounds p."""
    dropped = min(round(256 * p), 255)
    if not training or not dropped:
        return x
    words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
    return x * kept.to(x.dtype).mul_(256 / (256 - dropped))


OWN: Mapping[Any, Callable[..., Tensor]] = {
    F.linear: _linear, F.rms_norm: _rms_norm, F.dropout: _dropout,
}  # fmt: skip
