"""What a user can cause. Each message names the thing, the value, the reason and the fix."""


class ZipperError(ValueError):
    """A mistake in the input; the command line prints it without a traceback."""


class ConfigError(ZipperError):
    """A setting that cannot work."""


class DataError(ZipperError):
    """Audio, text, a corpus, a store or an asset that cannot be used."""
