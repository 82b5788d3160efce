"""Quantisation-aware training: the loss is that of the weights which an export in few bits holds."""

from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

from zipper.errors import ConfigError
from zipper.weight_files import as_kept


def refuse_averages(trainer: L.Trainer) -> None:
    """Raise ConfigError if a callback averages weights: it exchanges them while they are rounded."""
    callbacks: list[L.Callback] = vars(trainer)["callbacks"]  # which Lightning sets without declaring it
    if any(isinstance(one, WeightAveraging) for one in callbacks):
        raise ConfigError(
            "train.quantise=true with a callback that averages weights, which would keep rounded ones. Leave "
            "out one of them."
        )


class RoundedWeights:
    """Weights rounded to few bits for loss and gradient, exact for the update (straight-through estimator,
    arXiv:1308.3432)."""

    def __init__(self, weights: Sequence[nn.Parameter], bits: int) -> None:
        self.weights, self.bits = weights, bits
        self.exact: list[Tensor] = []  # while they are rounded

    def round(self) -> None:
        """Replace the weights by rounded ones."""
        self.restore()  # after a step that was cut off
        self.exact = [weight.data for weight in self.weights]
        for weight in self.weights:
            weight.data = as_kept(weight.data, self.bits).to(weight.dtype)

    def restore(self) -> None:
        """Put the exact weights back, if they are rounded."""
        for weight, exact in zip(self.weights, self.exact, strict=False):
            weight.data = exact
        self.exact = []


class RestoreWeights(L.Callback):
    """Restores the exact weights after a step that an error or Ctrl-C has cut off."""

    def on_exception(self, trainer: L.Trainer, module: Any, error: BaseException) -> None:
        """module: the ZipperModule that brought this callback."""
        module.rounded.restore()
