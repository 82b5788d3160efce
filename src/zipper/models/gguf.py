"""`zipper import-gguf`: convert a language model from GGUF to Hugging Face format with transformers."""

import json
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from zipper.disk import check_folder, check_writable, write_atomic
from zipper.errors import ConfigError, DataError
from zipper.models.hf import CONFIG, FAMILIES, ONE_FILE

DROPPED_KEYS = ("_name_or_path", "_model_name_or_path", "quantization_config", "transformers_version")


def import_gguf(file: Path, folder: Path) -> None:
    """Write config.json, model.safetensors (float32, dequantised) and tokenizer.json.

    Raises ConfigError if packages or the file are missing or the folder is not empty, DataError on a file
    that transformers cannot read in full, or an unsupported architecture.
    """
    if missing := [name for name in ("transformers", "gguf", "accelerate") if find_spec(name) is None]:
        raise ConfigError(
            f"import-gguf needs {', '.join(missing)}: run `make setup-pretrained`, or pip install -e "
            "'.[pretrained]'."
        )
    if not file.is_file():
        raise ConfigError(f"{file} does not exist. Give a .gguf file.")
    check_folder(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: choose another folder.")
    check_writable(folder, 10 * file.stat().st_size, f"folder {folder}", "another folder")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model, report = AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, struct.error) as error:
        raise DataError(
            f"{file} cannot be read as GGUF ({str(error).splitlines()[0]}). Fetch it again, or another one."
        ) from error
    architecture = type(model).__name__
    if architecture not in FAMILIES:
        raise DataError(
            f"{file} holds a {architecture}, an unsupported architecture. Supported: {', '.join(FAMILIES)}."
        )
    _check_rope(file, model.config.to_dict())
    tied = bool(model.config.tie_word_embeddings)
    _check_weights(file, report, tied)
    weights = {
        name: w.contiguous()
        for name, w in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    config = {k: v for k, v in model.config.to_dict().items() if k not in DROPPED_KEYS}
    write_atomic(folder / ONE_FILE, save(weights))
    (folder / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(pretty=True), encoding="utf-8")
    # Written last, because it marks the folder as complete.
    described = json.dumps({**config, "architectures": [architecture]}, indent=2) + "\n"
    write_atomic(folder / CONFIG, described.encode())


def _check_rope(file: Path, config: dict[str, Any]) -> None:
    """Raise DataError if a file scales its rotary positions, as Llama 3.x does, and transformers lost it."""
    from gguf import GGUFReader

    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        return
    reader = GGUFReader(file)
    scaled = [tensor.name for tensor in reader.tensors if tensor.name == "rope_freqs.weight"]
    for name, entry in reader.fields.items():
        if name.endswith(".rope.scaling.type") and bytes(entry.parts[-1]) != b"none":
            scaled.append(name)
    if scaled:
        raise DataError(
            f"{file} scales its rotary positions ({scaled[0]}), which transformers does not read from GGUF: "
            "the model would be another one. Take its safetensors."
        )


def _check_weights(file: Path, report: dict[str, Any], tied: bool) -> None:
    """Raise DataError if a file lacks weights, which transformers then makes up. report: of its loading."""
    derived = {"lm_head.weight"} if tied else set()
    found = {*report["missing_keys"], *map(str, report["mismatched_keys"])} - derived
    if lacking := sorted(found):
        raise DataError(
            f"{file} does not hold {lacking[0]} (or not in its shape), nor {len(lacking) - 1} more. Join the "
            "parts of a file that is split, or fetch it again."
        )
