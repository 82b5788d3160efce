"""Model files from a local folder or from a repository on the Hugging Face hub."""

import os
import re
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub  # loads its parts when they are used

from zipper.config import ROOT, asset, read_json
from zipper.errors import ConfigError, DataError

REPOSITORY = r"[\w.-]+/[\w.-]+(@[\w.-]+)?"  # user/name, optionally with a revision
TASK_NAMES = {"asr": "speech recognition", "tts": "speech synthesis", "speech": "speech", "text": "text"}
USE = {
    "asr": 'model.transcribe("recording.flac")',
    "tts": 'model.synthesize("a sentence", "spoken.wav")',
}
CARD, MESSAGE = "README.md", "Exported by zipper"
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
        return Path(
            huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=WANTED)
        )
    except Exception as error:  # the client raises many types
        cache = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
        raise DataError(
            f"{name} is not a folder, and could not be downloaded from the hub ({_first_line(error)}). Name "
            f"an existing folder, or copy the model to the cache from another machine: {cache}"
        ) from error


def push(folder: Path, repository: str, private: bool) -> str:
    """Uploads an exported model or tower to the hub and returns its URL.

    Uses the user's token (HF_TOKEN, or `hf auth login`). Raises ConfigError if the folder holds no model,
    DataError if the hub rejects the upload or cannot be reached.
    """
    described = any((folder / name).is_file() for name in ("zipper.json", "tower.json", "config.json"))
    if not described or not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"{folder} holds no exported model. Give a folder written by `export=`, such as assets/zipped."
        )
    info = folder / "zipper.json"
    init = read_json(info)["config"]["model"].get("init") if info.is_file() else None
    shipped = init and not Path(init).is_absolute() and (ROOT / init).exists()
    if init and not shipped and (asset(init).exists() or not re.fullmatch(REPOSITORY, init)):
        raise ConfigError(
            f"{folder} holds a part of its model alone: the rest is model.init={init}, a folder of this "
            "machine, which nobody else has. Push that first, and train with model.init=user/name."
        )
    card = None if (folder / CARD).exists() else model_card(folder, repository).encode()
    sent = [*WANTED, CARD]
    if left := [
        one.name for one in sorted(folder.iterdir()) if not any(fnmatch(one.name, of) for of in sent)
    ]:
        print(f"not uploaded, since others could not load it: {', '.join(left)}")
    api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=sent, commit_message=MESSAGE,
            delete_patterns=WANTED,  # a codec, say, of another model that was there
        )  # fmt: skip
        if card:
            api.upload_file(
                path_or_fileobj=card, path_in_repo=CARD, repo_id=repository, commit_message=MESSAGE
            )
    except Exception as error:  # the client raises many types
        raise DataError(
            f"{repository}: the upload failed ({_first_line(error)}). Log in with `hf auth login`, or set "
            "HF_TOKEN to a token with write access."
        ) from error
    return f"{api.endpoint}/{repository}"


def model_card(folder: Path, repository: str) -> str:
    """The page that the hub shows of an exported model or tower: tasks, data, figures with their command,
    licence and use. A README.md of the folder's own takes its place."""
    described = [folder / name for name in ("zipper.json", "tower.json", "config.json")]
    info = read_json(next(file for file in described if file.is_file()))
    config = info.get("config", {})
    inits = {one.get("init") for one in config.get("model", {}).get("towers", {}).values()}
    theirs = sorted(init for init in inits if init and not init.startswith("assets/"))
    found = [init for init in theirs if re.fullmatch(REPOSITORY, init) and not asset(init).exists()]
    bases = ", ".join(init.partition("@")[0] for init in found)
    ours = not theirs and "architectures" not in info  # a language model has a licence of its own
    front = [f"base_model: [{bases}]" if bases else "", "license: apache-2.0" if ours else ""]
    shares = config.get("train", {}).get("tasks", {})
    tasks = [TASK_NAMES.get(task, task) for task, share in shares.items() if share]
    tasks = tasks or [
        "none, it is not trained yet" if config else f"{info.get('modality', 'text')}, a tower alone"
    ]
    corpus = config.get("data", {}).get("corpus", "")
    rows = [
        f"| {key} | {100 * value:.1f} % |"
        for key, value in info.items()
        if key.endswith("wer") and isinstance(value, float)
    ]
    figures = ["| figure | value |", "|---|---|", *rows] if rows else ["No figures came with it."]
    if config:
        use = [
            f'model = zipper.Zipper.from_pretrained("{repository}")',
            *(line for task, line in USE.items() if shares.get(task)),
        ]
    else:
        modality = info.get("modality", "text")
        use = [f'model = zipper.Zipper.from_towers({modality}="{repository}", ...)  # and the other towers']
    return "\n".join(
        [
            "---", *filter(None, front), "library_name: zipper", "tags: [zipper, speech, multimodal]", "---",
            f"# {repository.partition('/')[2]}", "",
            "Pre-trained decoder towers joined by gated cross-attention (Zipper, arXiv 2405.18669).", "",
            f"- Tasks: {', '.join(tasks)}", f"- Trained on: {corpus or 'not named'}",
            f"- Made by: `{info.get('command', 'not named')}`, commit {info.get('commit', 'unknown')}",
            "- Licence: Apache-2.0, where that of the towers and of the data allows it", "",
            "## Use", "", "```python", "import zipper", *use, "```", "", "## Figures", "", *figures, "",
        ]
    )  # fmt: skip


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
