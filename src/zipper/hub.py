"""Model files from a local folder or from a repository on the Hugging Face hub."""

import os
import re
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download

from zipper.config import asset
from zipper.errors import ConfigError, DataError

REPOSITORY = r"[\w.-]+/[\w.-]+(@[\w.-]+)?"  # user/name, optionally with a revision
WANTED = ["*.json", "*.safetensors"]  # no code, no pickles


def model_folder(name: str) -> Path:
    """Local folder of a model: an existing folder, or the cached download of `user/name[@revision]`.

    Raises DataError if the name is neither a folder nor a repository, or if the hub cannot be reached; the
    message names the cache folder.
    """
    folder = asset(name)
    if folder.exists() or not re.fullmatch(REPOSITORY, name):
        return folder
    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=WANTED))
    except Exception as error:  # the client raises many types
        cache = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
        raise DataError(
            f"{name} is not a folder, and could not be downloaded from the hub ({_first_line(error)}). Name "
            f"an existing folder, or copy the model to the cache from another machine: {cache}"
        ) from error


def push(folder: Path, repository: str, private: bool) -> str:
    """Uploads an exported model or tower to the hub and returns its URL.

    Uses the user's token (HF_TOKEN, or `hf auth login`). Raises ConfigError if the folder holds no model,
    DataError if the hub rejects the upload or cannot be reached.
    """
    if not any(folder.glob("*.safetensors")) or not any(folder.glob("*.json")):
        raise ConfigError(
            f"{folder} holds no exported model. Give a folder written by `export=`, such as assets/zipped."
        )
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=WANTED, commit_message="Exported by zipper"
        )
    except Exception as error:  # the client raises many types
        raise DataError(
            f"{repository}: the upload failed ({_first_line(error)}). Log in with `hf auth login`, or set "
            "HF_TOKEN to a token with write access."
        ) from error
    return f"{api.endpoint}/{repository}"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
