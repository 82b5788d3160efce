"""Errors that a user can cause. Each message names the key, its value, the reason and the fix."""

import math


class ZipperError(ValueError):
    """Base class; the command line prints the message without a traceback."""


class ConfigError(ZipperError):
    """Invalid setting."""


class DataError(ZipperError):
    """Unusable audio, text, corpus, encoded dataset or asset."""


class TrainingError(ZipperError):
    """Training cannot continue: the loss or gradient of a step is not finite."""


def torch_message(error: RuntimeError) -> str:
    """First line of a PyTorch error about weights, without its heading."""
    heading, *rest = str(error).splitlines() or [""]
    return (rest or [heading])[0].strip()


def check_finite(loss: float, step: int, lr: float) -> None:
    """Raise TrainingError if the loss of a codec's training is not finite. step: before this one."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"step {step + 1}: the loss is {loss}. Checkpoints are unchanged. Train under another name "
            f"(name=...) with a learning rate below {lr:g} (train_codec.lr), or check the recordings."
        )
