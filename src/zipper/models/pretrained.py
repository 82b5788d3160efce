"""Pre-trained towers in folders: tower.safetensors and tower.json (shape, hash, origin), or a language
model in Hugging Face format (`models.hf`)."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from zipper.config import TowerConfig, read_json
from zipper.errors import ConfigError, DataError, torch_message
from zipper.hashes import file_hashes, joint_hash, sha256
from zipper.hub import model_folder
from zipper.modalities.tokenizer import Tokenizer
from zipper.models.hf import is_llama, read_weights, shape_of
from zipper.models.lora import merged_state
from zipper.models.tower import Tower
from zipper.weight_files import load_state, save_state

WEIGHTS, INFO = "tower.safetensors", "tower.json"
SHAPE = (
    "layers", "width", "heads", "kv_heads", "hidden", "head_size", "rope_base", "rope_scaling", "qkv_bias",
    "qk_norm", "tied", "norm_eps", "vocabulary", "codebooks",
)  # fmt: skip


def save_tower(folder: Path, tower: Tower, info: dict[str, Any], bits: int = 16) -> None:
    """Write weights in half precision, or matrices in fewer bits, with LoRA merged, and shape. info: further
    entries of tower.json: training data, command, metrics; `reads`: id of its units. Raises ConfigError as
    `check_no_language_model`."""
    check_no_language_model(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = merged_state(tower)
    save_state(folder / WEIGHTS, state, state, bits)
    shape = {name: getattr(tower.cfg, name) for name in SHAPE}
    written = {"shape": shape, "sha256": sha256(folder / WEIGHTS), **info}
    (folder / INFO).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def check_no_language_model(folder: Path) -> None:
    """Raise ConfigError if a folder to write holds a language model, which would be read in its place."""
    if is_llama(folder):
        raise ConfigError(
            f"{folder} holds a pre-trained language model (config.json), which would be read in place of "
            "what is written there. Name another folder."
        )


def tower_info(folder: Path) -> dict[str, Any]:
    """tower.json, or its equivalent for a Hugging Face model: `shape`, `reads` (id of its units) and
    `trained_on` (hash of its sentences; None if unknown).

    Raises DataError if the folder holds no tower or its weights do not match.
    """
    if is_llama(folder):
        shape, subwords = shape_of(folder), Tokenizer.load(folder / "tokenizer.json")
        if subwords.vocabulary > shape["vocabulary"]:
            raise DataError(
                f"{folder}/tokenizer.json has {subwords.vocabulary} tokens, but the embedding in config.json "
                f"has {shape['vocabulary']} rows. Restore the tokenizer that belongs to the model."
            )
        return {"shape": shape, "reads": subwords.fingerprint, "trained_on": None}
    described = (folder / INFO).is_file()
    info = read_json(folder / INFO, needed=("sha256", "shape", "reads")) if described else {}
    file = _weights_file(folder, info)
    if "weights" in info and not file.is_file():
        raise DataError(f"{folder / INFO} refers to the weights in {file}, which do not exist. Restore them.")
    if not info or not file.is_file():
        raise DataError(
            f"init={folder} holds no {WEIGHTS} and {INFO}, and no config.json of a pre-trained language "
            "model. Pre-train it (`make pretrain`; on real speech `make train-real`, docs/training.md), or "
            "give a tower's folder or the Hub id user/name of a model."
        )
    if sha256(file) != info["sha256"]:
        raise DataError(
            f"{file} is not the file that {folder / INFO} describes (its hash differs). Restore both."
        )
    return info


def _weights_file(folder: Path, info: Mapping[str, Any]) -> Path:
    """Its own, or that of an exported model, which `weights` of tower.json names."""
    return folder / info.get("weights", WEIGHTS)


def tower_hashes(towers: Mapping[str, TowerConfig], kept: Path) -> dict[str, str]:
    """Hashes of the weights that towers start from, by modality; towers with random weights have none.
    kept: cache of `file_hashes`."""
    hashes = {}
    for name, cfg in towers.items():
        if cfg.init:
            folder = model_folder(cfg.init)
            own = sorted(folder.glob("*.safetensors")) or [_weights_file(folder, read_json(folder / INFO))]
            hashes[name] = joint_hash(file_hashes(own, kept))
    return hashes


def with_shape_of(cfg: TowerConfig, folder: Path) -> TowerConfig:
    """Config with the shape of the tower in a folder. Raises ConfigError if it sets another one."""
    info = tower_info(folder)
    plain = TowerConfig()
    for name, value in info["shape"].items():
        if getattr(cfg, name) not in (getattr(plain, name), value):
            raise ConfigError(
                f"{name}={getattr(cfg, name)}, but the tower in init={folder} has {name}={value}. "
                f"Leave {name} out, or init."
            )
    return replace(cfg, **info["shape"])


def read_tower(folder: Path) -> Tower:
    """Tower of a folder. Raises DataError as `tower_info` and `load_weights`."""
    tower = Tower(with_shape_of(TowerConfig(), folder))
    load_weights(tower, folder)
    return tower


def load_weights(tower: Tower, folder: Path) -> None:
    """Load a folder's weights into a tower of the same shape, strictly. Raises DataError if they do not
    fit this version."""
    state = read_weights(folder) if is_llama(folder) else _own_weights(folder)
    own = {name: tensor for name, tensor in tower.state_dict().items() if ".lora_" in name}
    try:
        tower.load_state_dict({**own, **state})
    except RuntimeError as error:
        raise DataError(
            f"{folder}: its weights do not fit this version's towers ({torch_message(error)}). "
            "Pre-train it again, or use the version that wrote it."
        ) from error


def _own_weights(folder: Path) -> dict[str, Tensor]:
    info = read_json(folder / INFO)
    prefix = info.get("prefix", "")
    state = load_state(_weights_file(folder, info))
    return {key.removeprefix(prefix): weight for key, weight in state.items() if key.startswith(prefix)}
