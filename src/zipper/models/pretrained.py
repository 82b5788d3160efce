"""Towers in folders: our own (tower.safetensors, and tower.json with shape, hash and origin), or a
pre-trained language model in Hugging Face format (`model.llama`)."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from zipper.config import TowerConfig, read_json
from zipper.errors import ConfigError, DataError, torch_message
from zipper.hashes import file_hashes, joint_hash
from zipper.hub import model_folder
from zipper.modalities.tokenizer import Tokenizer
from zipper.models.hf import is_llama, read_weights, shape_of
from zipper.models.lora import merged_state
from zipper.models.tower import Tower

WEIGHTS, INFO = "tower.safetensors", "tower.json"
SHAPE = (
    "layers", "width", "heads", "kv_heads", "hidden", "head_size", "rope_base", "rope_scaling", "qkv_bias",
    "qk_norm", "tied", "norm_eps", "vocabulary", "codebooks",
)  # fmt: skip


def save_tower(folder: Path, tower: Tower, info: dict[str, Any]) -> None:
    """Writes weights, LoRA merged into them, and shape. facts: trained on what, by which command, how well;
    `reads`: its units."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in merged_state(tower).items()},
        folder / WEIGHTS,
    )
    shape = {name: getattr(tower.cfg, name) for name in SHAPE}
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    (folder / INFO).write_text(
        json.dumps({"shape": shape, "sha256": digest, **info}, indent=2) + "\n", encoding="utf-8"
    )


def tower_info(folder: Path) -> dict[str, Any]:
    """tower.json, or what stands for it in a model of elsewhere: `shape`, `reads` (its units), `trained_on`
    (its sentences; none where they are not known).

    Raises DataError where the folder is no tower's, or its weights are not those described.
    """
    if is_llama(folder):
        shape, subwords = shape_of(folder), Tokenizer.load(folder / "tokenizer.json")
        if subwords.vocabulary > shape["vocabulary"]:
            raise DataError(
                f"{folder}/tokenizer.json has {subwords.vocabulary} tokens, but the embedding that "
                "config.json "
                f"describes has {shape['vocabulary']} rows. Restore the tokenizer that belongs to the model."
            )
        return {"shape": shape, "reads": subwords.fingerprint, "trained_on": None}
    if not (folder / WEIGHTS).is_file() or not (folder / INFO).is_file():
        raise DataError(
            f"init={folder} holds no {WEIGHTS} and {INFO}, and no config.json of a pre-trained language "
            "model. "
            "Run `make pretrain`, or name a tower's folder, or user/name of a model on the hub."
        )
    info = read_json(folder / INFO)
    if hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest() != info["sha256"]:
        raise DataError(
            f"{folder / WEIGHTS} is not the file that {INFO} describes (its hash differs). Restore both."
        )
    return info


def tower_hashes(towers: Mapping[str, TowerConfig], kept: Path) -> dict[str, str]:
    """Of the weights that each tower starts from, by modality; what starts at random has none. kept: of
    `file_hashes`."""
    folders = {name: model_folder(cfg.init) for name, cfg in towers.items() if cfg.init}
    files = {name: sorted(folder.glob("*.safetensors")) for name, folder in folders.items()}
    return {name: joint_hash(file_hashes(several, kept)) for name, several in files.items()}


def with_shape_of(cfg: TowerConfig, folder: Path) -> TowerConfig:
    """The config with the shape that the folder gives. Raises ConfigError where it asks for another one."""
    info = tower_info(folder)
    plain = {f.name: f.default for f in fields(TowerConfig)}
    for name, value in info["shape"].items():
        if getattr(cfg, name) not in (plain[name], value):
            raise ConfigError(
                f"{name}={getattr(cfg, name)}, but the tower in init={folder} "
                f"has {name}={value}. Leave {name} out, or init."
            )
    return replace(cfg, **info["shape"])


def read_tower(folder: Path) -> Tower:
    """The tower of a folder. Raises DataError as `tower_facts` and `load_weights`."""
    tower = Tower(with_shape_of(TowerConfig(), folder))
    load_weights(tower, folder)
    return tower


def load_weights(tower: Tower, folder: Path) -> None:
    """Fills a tower of the folder's shape, strictly. Raises DataError where it was written by other code."""
    weights = read_weights(folder) if is_llama(folder) else load_file(folder / WEIGHTS)
    own = {name: tensor for name, tensor in tower.state_dict().items() if ".lora_" in name}
    try:
        tower.load_state_dict({**own, **weights})
    except RuntimeError as error:
        raise DataError(
            f"{folder}: its weights do not fit this version's towers ({torch_message(error)}). "
            "Pre-train it again, or use the version that wrote it."
        ) from error
