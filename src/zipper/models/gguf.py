"""`zipper import-gguf`: a language model in a GGUF file to a folder in Hugging Face format, by
transformers."""

import json
import os
import struct
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file

from zipper.disk import check_writable
from zipper.errors import ConfigError, DataError
from zipper.models.hf import CONFIG, FAMILIES, ONE_FILE

ELSEWHERE = ("_name_or_path", "_model_name_or_path", "quantization_config", "transformers_version")


def import_gguf(file: Path, folder: Path) -> None:
    """Writes config.json, model.safetensors (float32, whatever the file was quantised to) and tokenizer.json.

    Raises ConfigError where packages or the file are missing or the folder is taken, DataError on a file that
    transformers cannot read or whose architecture towers do not have.
    """
    if lacking := [name for name in ("transformers", "gguf", "accelerate") if find_spec(name) is None]:
        raise ConfigError(
            f"import-gguf needs {', '.join(lacking)}: run `make setup-pretrained`, or pip install "
            "'zipper[pretrained]'."
        )
    if not file.is_file():
        raise ConfigError(f"{file} does not exist. Give a .gguf file.")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: name another folder; nothing is written over.")
    check_writable(folder, 10 * file.stat().st_size, f"folder {folder}", "another folder")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise DataError(
            f"{file} cannot be read as GGUF ({str(error).splitlines()[0]}). Fetch it again, or another one."
        ) from error
    architecture = type(model).__name__
    if architecture not in FAMILIES:
        raise DataError(
            f"{file} holds a {architecture}, which towers do not have. Known are {', '.join(FAMILIES)}."
        )
    tied = bool(model.config.tie_word_embeddings)
    weights = {
        name: w.contiguous()
        for name, w in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    config = {k: v for k, v in model.config.to_dict().items() if k not in ELSEWHERE}
    save_file(weights, folder / ONE_FILE)
    (folder / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(pretty=True), encoding="utf-8")
    # Last: with it, the folder is a model's.
    aside = folder / f"{CONFIG}.{os.getpid()}.part"
    aside.write_text(
        json.dumps({**config, "architectures": [architecture]}, indent=2) + "\n", encoding="utf-8"
    )
    aside.rename(folder / CONFIG)
