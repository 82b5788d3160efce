"""What a user can cause. Each message names the thing, the value, the reason and the fix."""


class ZipperError(ValueError):
    """A mistake in the input; the command line prints it without a traceback."""


class ConfigError(ZipperError):
    """A setting that cannot work."""


class DataError(ZipperError):
    """Audio, text, a corpus, a store or an asset that cannot be used."""


class TrainingError(ZipperError):
    """A training that cannot go on: a step whose loss or gradient is not finite."""


def torch_message(error: RuntimeError) -> str:
    """What torch says against weights, in one line: past the heading, where there is one."""
    heading, *rest = str(error).splitlines() or [""]
    return (rest or [heading])[0].strip()
