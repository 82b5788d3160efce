"""Errors that a user can cause. Each message names the key, its value, the reason and the fix."""


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
