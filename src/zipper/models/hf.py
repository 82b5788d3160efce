"""Checkpoints of the Llama family in Hugging Face format: config.json, and one or more .safetensors files.

Supported: Llama (with 3.x rope scaling), SmolLM2, Mistral, Qwen2, Qwen2.5 and Qwen3. No remote code runs:
shapes come from config.json, weights from safetensors, and both are checked against the tower.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from zipper.config import read_json
from zipper.errors import DataError, ZipperError

CONFIG, INDEX, ONE_FILE = "config.json", "model.safetensors.index.json", "model.safetensors"
# By architecture: bias of queries, keys and values; norm of queries and keys.
FAMILIES = {
    "LlamaForCausalLM": (False, False),  # SmolLM2 too
    "MistralForCausalLM": (False, False),
    "Qwen2ForCausalLM": (True, False),  # Qwen2.5 too
    "Qwen3ForCausalLM": (False, True),
}
NEEDED = (
    "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "rms_norm_eps",
    "vocab_size",
)  # fmt: skip
SCALINGS: dict[str, tuple[str, ...]] = {  # of rotary positions, with their numbers
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
HELD = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # of weights; not those of 8 bits
WINDOW = 2048  # tokens; a longer sliding window never truncates utterances
OURS = {
    "model.embed_tokens.weight": "embedding.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "head",
}
PARTS = {  # of a layer: tensors of the checkpoint that are concatenated to one of the tower
    "attention_norm.weight": ["input_layernorm.weight"],
    "attention.to_qkv.weight": [f"self_attn.{part}_proj.weight" for part in "qkv"],
    "attention.to_qkv.bias": [f"self_attn.{part}_proj.bias" for part in "qkv"],
    "attention.query_norm.weight": ["self_attn.q_norm.weight"],
    "attention.key_norm.weight": ["self_attn.k_norm.weight"],
    "attention.to_out.weight": ["self_attn.o_proj.weight"],
    "feed_forward_norm.weight": ["post_attention_layernorm.weight"],
    "feed_forward.gate_up.weight": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    "feed_forward.down.weight": ["mlp.down_proj.weight"],
}


def is_llama(folder: Path) -> bool:
    """Whether a folder holds a model in Hugging Face format."""
    return (folder / CONFIG).is_file()


def shape_of(folder: Path) -> dict[str, Any]:
    """Tower settings of the model in a folder. Raises DataError on an unsupported architecture or option, or
    if config.json is damaged."""
    config = read_json(folder / CONFIG)
    try:
        return _shape(folder, config)
    except ZipperError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise DataError(
            f"{folder / CONFIG} is damaged ({type(error).__name__}: {error}). Restore it from the model's "
            "source."
        ) from error


def _shape(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    named = config.get("architectures") or ["none"]
    architecture = " and ".join(named) if isinstance(named, list) else str(named)
    if architecture not in FAMILIES:
        raise DataError(
            f"{folder / CONFIG}: architecture {architecture!r} is not supported. "
            f"Supported: {', '.join(FAMILIES)}."
        )
    if lacking := [key for key in NEEDED if key not in config]:
        raise DataError(f"{folder / CONFIG} lacks {', '.join(lacking)}. Restore it from the model's source.")
    if wrong := [key for key in NEEDED if type(config[key]) is not int and key != "rms_norm_eps"]:
        raise DataError(
            f"{folder / CONFIG}: {wrong[0]}={config[wrong[0]]!r} must be a whole number. Restore it from the "
            "model's source."
        )
    bias, norms = FAMILIES[architecture]
    _refuse_foreign_parts(folder, config, architecture)
    heads, width = config["num_attention_heads"], config["hidden_size"]
    size = config.get("head_dim") or width // heads
    rope, older = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    if rope and older and _without_base(rope) != _without_base(older):
        raise DataError(
            f"{folder / CONFIG}: rope_parameters={rope} and rope_scaling={older} differ, and readers "
            "differ in which of them counts. Leave the wrong one out."
        )
    rope = rope or older
    return {
        "layers": config["num_hidden_layers"],
        "width": width,
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "hidden": config["intermediate_size"],
        "head_size": 0 if size * heads == width else size,
        "rope_base": float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        "rope_scaling": _scaling(folder, rope),
        "qkv_bias": bias,
        "qk_norm": norms,
        "tied": bool(config.get("tie_word_embeddings", False)),
        "norm_eps": float(config["rms_norm_eps"]),
        "vocabulary": config["vocab_size"],
        "codebooks": 1,
    }


def _refuse_foreign_parts(folder: Path, config: dict[str, Any], architecture: str) -> None:
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise DataError(f"{folder / CONFIG}: {key}=true, but towers have no such biases.")
    if config.get("hidden_act", "silu") != "silu":
        raise DataError(f"{folder / CONFIG}: hidden_act={config['hidden_act']!r}; a tower's is 'silu'.")
    window = config.get("sliding_window")
    used = config.get("use_sliding_window", not architecture.startswith("Qwen"))  # defaults of transformers
    if window and used and window < WINDOW:
        raise DataError(
            f"{folder / CONFIG}: sliding_window={window} is too short: towers attend to all tokens, which is "
            f"equivalent only from {WINDOW} on."
        )


def _without_base(rope: dict[str, Any]) -> dict[str, Any]:
    """Settings of a scaling under their present names, without the base, which has two places."""
    return {
        "rope_type" if key == "type" else key: value for key, value in rope.items() if key != "rope_theta"
    }


def _scaling(folder: Path, rope: dict[str, Any]) -> list[float]:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in SCALINGS:
        raise DataError(
            f"{folder / CONFIG}: rope scaling {kind!r} is not supported. Supported: {', '.join(SCALINGS)}."
        )
    if lacking := [key for key in SCALINGS[kind] if key not in rope]:
        raise DataError(
            f"{folder / CONFIG}: rope scaling {kind!r} lacks {', '.join(lacking)}. Restore it from the "
            "model's source."
        )
    return [float(rope[key]) for key in SCALINGS[kind]]


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model under the names of a tower, in the dtype of the file.

    Raises DataError on missing or damaged files, on missing or unexpected tensors, and on tensors that are
    not of finite floating-point numbers.
    """
    shape = shape_of(folder)
    theirs: dict[str, Tensor] = {}
    for file in _files(folder):
        try:
            theirs.update(load_file(file))
        except (OSError, SafetensorError) as error:
            raise DataError(f"{file} is missing or damaged ({error}). Fetch the model again.") from error
    # Some checkpoints contain derived tensors.
    derived = {name for name in theirs if name.endswith("rotary_emb.inv_freq")}
    head = theirs.pop("lm_head.weight", None) if shape["tied"] else None
    if head is not None and not torch.equal(head, theirs.get("model.embed_tokens.weight", head)):
        raise DataError(
            f"{folder}: {CONFIG} ties the embeddings, but lm_head.weight is another matrix than "
            "model.embed_tokens.weight. Set tie_word_embeddings=false if the model has a head of its own."
        )
    for name in theirs.keys() - derived:
        if theirs[name].dtype not in HELD or not theirs[name].isfinite().all():
            raise DataError(
                f"{folder}: {name} ({theirs[name].dtype}) does not hold finite floating-point numbers. Fetch "
                "the model again, in half precision if it was quantised."
            )
    ours, used, missing = {}, set(derived), []
    for name, parts in _names(shape):
        used.update(parts)
        if lacking := [part for part in parts if part not in theirs]:
            missing += lacking
            continue
        try:
            ours[name] = torch.cat([theirs[part] for part in parts]) if len(parts) > 1 else theirs[parts[0]]
        except RuntimeError as error:
            raise DataError(f"{folder}: {' and '.join(parts)} do not fit one another ({error}).") from error
    extra = sorted(set(theirs) - used)
    if missing or extra:
        raise DataError(
            f"{folder}: its tensors do not match {CONFIG}: missing {_first_names(missing)}; unexpected "
            f"{_first_names(extra)}. Fetch the model again, or correct {CONFIG}."
        )
    return ours


def _files(folder: Path) -> list[Path]:
    """Files of weights. Beside a single file an index is of another model, as transformers has it."""
    if (folder / ONE_FILE).is_file():
        return [folder / ONE_FILE]
    if (folder / INDEX).is_file():
        places = read_json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise DataError(f"{folder / INDEX} is damaged: it has no weight_map. Fetch the model again.")
        return [folder / name for name in sorted({*places.values()})]
    raise DataError(
        f"{folder} holds {CONFIG} but neither {ONE_FILE} nor {INDEX}. Save the model as safetensors."
    )


def _names(shape: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    for theirs, ours in OURS.items():
        if ours != "head" or not shape["tied"]:
            yield ours, [theirs]
    for layer in range(shape["layers"]):
        for ours, parts in PARTS.items():
            if ours.endswith("bias") and not shape["qkv_bias"]:
                continue
            if ours.startswith(("attention.query_norm", "attention.key_norm")) and not shape["qk_norm"]:
                continue
            yield f"layers.{layer}.{ours}", [f"model.layers.{layer}.{part}" for part in parts]


def _first_names(names: list[str]) -> str:
    shown = ", ".join(names[:3]) or "none"
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
