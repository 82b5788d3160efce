"""The official EnCodec of 24 kHz (arXiv 2210.13438)."""

import warnings
from pathlib import Path
from pickle import UnpicklingError

import torch
from encodec import EncodecModel

from zipper.codecs.codec import Codec
from zipper.errors import ConfigError, DataError
from zipper.hashes import sha256

CODEBOOKS_AT_KBPS = {1.5: 2, 3.0: 4, 6.0: 8, 12.0: 16, 24.0: 32}
OFFICIAL_FILE = "encodec_24khz-d7cc33bc.th"  # the name holds the start of its SHA-256
OFFICIAL_URL = f"https://dl.fbaipublicfiles.com/encodec/v0/{OFFICIAL_FILE}"


def load_official(kbps: float | None, weights: Path | None) -> Codec:
    """encodec_24khz at 1.5, 3, 6, 12 or 24 kbps. weights: a file; default the cache of torch.hub, else a
    download.

    The hash of the official file is checked. A file of another name is loaded without a check.
    """
    if kbps not in CODEBOOKS_AT_KBPS:
        known = ", ".join(f"{k} ({q} codebooks)" for k, q in CODEBOOKS_AT_KBPS.items())
        raise ConfigError(
            f"codec.bandwidth_kbps={kbps} is not supported by EnCodec 24 kHz. Use one of {known}."
        )
    file = weights or Path(torch.hub.get_dir(), "checkpoints", OFFICIAL_FILE)
    if weights is None and not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(OFFICIAL_URL, str(file), hash_prefix="d7cc33bc")
        except OSError as error:
            raise DataError(
                f"{OFFICIAL_URL} cannot be reached ({error}). Put it at {file}, or set codec.weights=FILE."
            ) from error
    if not file.is_file():
        raise DataError(f"codec.weights={file} does not exist.")
    if file.name == OFFICIAL_FILE and not sha256(file).startswith("d7cc33bc"):
        raise DataError(
            f"{file} is damaged: its SHA-256 does not begin with d7cc33bc. Delete it and download it again."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = EncodecModel.encodec_model_24khz(pretrained=False)
    try:
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except (RuntimeError, UnpicklingError, TypeError, LookupError, EOFError, OSError) as error:
        why = " ".join(str(error).split())[:200]
        raise DataError(f"{file} does not hold the weights of encodec_24khz: {why}") from error
    return Codec(model, CODEBOOKS_AT_KBPS[kbps], 1.0, "encodec_24khz")
