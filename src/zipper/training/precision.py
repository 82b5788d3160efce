"""Precision `bf16-products`: float32, but linear layers round inputs and results to bfloat16.

For CPUs that multiply bfloat16 faster than float32. Weights, attention, norms, loss and optimiser stay in
float32. Lightning's `bf16-mixed` keeps activations and attention in bfloat16, too, which is slower on a CPU
than float32.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor
from torch.overrides import TorchFunctionMode


class BFloat16Products(Precision):
    """Applies to training and validation steps. Generation, and what is exported, is float32."""

    precision: Any = "bf16-products"

    @contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        with Products():
            yield


class Products(TorchFunctionMode):
    """Linear layers multiply in bfloat16, forward and backward."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.linear:
            return _linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = _Product.apply(x, weight)
    return product if bias is None else product + bias


class _Product(torch.autograd.Function):
    """x [..., D], weight [E, D] -> [..., E], all float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].bfloat16()
        to_x = (gradient @ weight).float() if ctx.needs_input_grad[0] else None
        to_weight = gradient.flatten(0, -2).T @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return to_x, None if to_weight is None else to_weight.float()
