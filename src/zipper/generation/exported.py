"""Trained models in folders: checkpoints of runs, and exported models.

Files of an exported model: zipper.safetensors, zipper.json (config, statistics, hash, figures),
tokenizer.json, and codec.safetensors and codec.json of a codec that is not the shipped one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zipper.checkpoint_files import read_checkpoint
from zipper.config import ModelConfig, RunConfig, from_dict, read_json, to_dict, with_overrides
from zipper.data.statistics import DatasetStatistics, saved_statistics
from zipper.disk import check_folder, write_atomic
from zipper.errors import ConfigError, DataError, torch_message
from zipper.generation.extended import (
    INFO,
    check_no_part,
    exported_folder,
    kept_names,
    read_exported,
    trained_directions,
    untrained_names,
    without_places_of_init,
)
from zipper.hashes import sha256
from zipper.modalities.base import Modality, load_modalities
from zipper.models.building import TrainedModel, build_untrained, exported_weights
from zipper.models.certify import certificate, check_certificate, round_frozen
from zipper.models.ctc import CtcHeads
from zipper.models.lora import merged_state
from zipper.models.multimodal import MultimodalModel, Pair
from zipper.weight_files import as_kept, load_state, rounded, save_state

WEIGHTS = "zipper.safetensors"
ORIGIN = ("command", "commit", "steps", "minutes")  # figures of a training in zipper.json
OWN = ("init_sha256", "sha256", "certificate", "statistics", "directions", "config")  # what is no figure


def is_exported(folder: Path) -> bool:
    """Whether a folder was written by `save_exported`."""
    return (folder / INFO).is_file()


def save_exported(
    folder: Path, trained: TrainedModel, modalities: Mapping[str, Modality], figures: dict[str, Any]
) -> None:
    """Write weights in half precision (or fewer bits: `export_bits`), tokenizer, a codec that is not shipped,
    and zipper.json. figures: further entries of zipper.json. Raises ConfigError if `folder` is a file or
    holds a model that this one needs, or on a figure that JSON does not hold."""
    check_folder(folder)
    check_no_part(folder, trained.config)
    for name, figure in figures.items():
        if name in OWN:
            raise ConfigError(f"{name}=... is no figure: {INFO} has an entry of this name. Choose another.")
        try:
            json.dumps(figure, allow_nan=False)
        except (TypeError, ValueError) as error:  # before any file is replaced
            raise ConfigError(
                f"{name}={figure!r} cannot be written to {INFO}: it is a {type(figure).__name__}. Give "
                "finite numbers, text, lists or dicts (x.item() for a tensor)."
            ) from error
    init, config = trained.config.model.init, without_places_of_init(trained.config)
    base = {"init_sha256": read_json(exported_folder("model.init", init) / INFO)["sha256"]} if init else {}
    _take_certificate(trained)
    certified = certificate(trained.network)  # before a file is replaced: towers may be gone
    state = {name: weight.cpu() for name, weight in trained.network.state_dict().items()}
    heads = kept_heads(trained.config).items()
    spare = {*kept_names(trained.network)}  # what model.init holds
    spare |= {name for name, w in heads if name in state and torch.equal(w, state[name])}
    if trained.network.used:
        spare |= {*untrained_names(trained.network)}
    state = {name: weight for name, weight in state.items() if name not in spare}
    folder.mkdir(parents=True, exist_ok=True)
    save_state(folder / WEIGHTS, state, _small_names(trained, state), trained.config.export_bits)
    for name in trained.network.names:
        modalities[name].export(folder)
    info = {
        **figures,
        **base,
        "sha256": sha256(folder / WEIGHTS),
        "certificate": certified,
        "statistics": trained.statistics.to_dict(),
        "directions": [*trained.network.used] if trained.statistics.longest else [],
        "config": to_dict(config),
    }
    write_atomic(folder / INFO, (json.dumps(info, indent=1) + "\n").encode())


def with_bits(config: RunConfig, bits: int) -> RunConfig:
    """Config of an export. Half precision needs no training of its own (`train.quantise`). Raises ConfigError
    on another number of bits than 16, 8 or 4."""
    if not isinstance(bits, int) or bits not in (16, 8, 4):
        raise ConfigError(f"bits={bits!r} must be 16 (half precision), 8 or 4.")
    quantise = config.train.quantise and bits < 16
    return replace(config, export_bits=bits, train=replace(config.train, quantise=quantise))


def export(model: Path, folder: Path, bits: int, frozen_too: bool, overrides: Sequence[str] = ()) -> None:
    """Write a run's or an exported model with so many bits a weight. frozen_too: also those of frozen towers,
    whose certificate is then that of the rounded weights. overrides: settings of decoding. Raises as
    `load_model`, and DataError if a frozen tower is not as pre-trained."""
    if other := [one for one in overrides if not one.startswith("decode.")]:
        raise ConfigError(f"{other[0]}: an export can change decode.* alone; the rest is as it was trained.")
    check_folder(folder)
    network, statistics, config = load_model(model)
    trained = TrainedModel(network, statistics, with_overrides(with_bits(config, bits), overrides))
    for name, how in trained.config.decode.items():
        if how.ctc and not (network.ctc and name in {head.answer for head in network.ctc.own()}):
            raise ConfigError(
                f"decode.{name}.ctc={how.ctc:g}: this model has no head of CTC for {name}. Leave it "
                "out, or train with train.ctc."
            )
    _take_certificate(trained)
    if frozen_too:
        round_frozen(trained.network, bits)
    # WERs were those of other bits.
    figures = {name: figure for name, figure in _origin(model).items() if name in ORIGIN}
    save_exported(folder, trained, load_modalities(trained.config, model), figures)


def _origin(model: Path) -> dict[str, Any]:
    """How an exported model or that of a run was trained; nothing of a run that is not finished."""
    if is_exported(model):
        return read_json(model / INFO)
    result = model / "result.json"
    info = read_json(result) if result.is_file() else {}
    return {**info, "minutes": round(info["wall_seconds"] / 60, 1)} if info else {}


def figures_of(folder: Path) -> dict[str, Any]:
    """Entries of an exported model's zipper.json on how it was trained and measured; of a run, none."""
    info = read_json(folder / INFO) if is_exported(folder) else {}
    return {name: figure for name, figure in info.items() if name not in OWN}


def _take_certificate(trained: TrainedModel) -> None:
    """Give a network the certificate of the model that it was fine-tuned from or extends, unless it has
    one."""
    if trained.network.certificate:
        return
    model = trained.config.model
    if init := trained.config.train.init:
        folder, names = exported_folder("train.init", init), model.modalities
    elif model.init:
        folder, names = exported_folder("model.init", model.init), model.kept
    else:
        return
    known = read_json(folder / INFO).get("certificate", {})
    trained.network.certificate = {name: known[name] for name in names if name in known}


def _small_names(trained: TrainedModel, state: Mapping[str, Tensor]) -> list[str]:
    """Names of the weights to write in few bits: all, but for what this would change of frozen towers."""
    bits = trained.config.export_bits
    frozen = tuple(f"towers.{name}." for name, tower in trained.config.model.towers.items() if tower.frozen)
    return [
        name
        for name, weight in state.items()
        if not name.startswith(frozen) or (weight.ndim > 1 and torch.equal(rounded(weight, bits), weight))
    ]


def load_model(folder: Path) -> TrainedModel:
    """Model in eval mode of an exported model's folder or a run's. Raises ConfigError if there is none, and
    as `load_exported` and `load_trained`."""
    if is_exported(folder):
        return load_exported(folder)[0]
    if not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"{folder} is no model: it holds neither {INFO} (an exported model) nor config.yaml (a run). "
            "Run `make train`, or name assets/zipped."
        )
    checkpoint = folder / "checkpoints" / "best.ckpt"
    if not checkpoint.is_file():
        raise ConfigError(
            f"{folder} has no checkpoints/best.ckpt yet: its training has not reached a validation."
        )
    return load_trained(checkpoint)


def weights_written(folder: Path) -> int:
    """When the weights of a model were written, in nanoseconds."""
    file = folder / WEIGHTS if is_exported(folder) else folder / "checkpoints" / "best.ckpt"
    return file.stat().st_mtime_ns


def load_exported(folder: Path) -> tuple[TrainedModel, dict[str, Any]]:
    """Model in eval mode and zipper.json of a folder written by `save_exported`.

    Raises DataError if a file is damaged or does not match.
    """
    saved = read_json(folder / INFO)
    if not (folder / WEIGHTS).is_file() or sha256(folder / WEIGHTS) != saved.get("sha256"):
        raise DataError(
            f"{folder / WEIGHTS} is missing, or not the file that {INFO} describes. Restore both."
        )
    config, statistics, _ = read_exported(folder)
    weights = {**kept_weights(config, saved.get("init_sha256")), **load_state(folder / WEIGHTS)}
    why = f"{folder / WEIGHTS} has another shape than {INFO} says"
    trained = _load_state(config, statistics, weights, why, trained_directions(saved))
    trained.network.certificate = saved.get("certificate", {})
    return trained, saved


def check_units(
    folder: Path, model: ModelConfig, statistics: DatasetStatistics, modalities: Mapping[str, Modality]
) -> None:
    """Raise DataError if a codec or tokenizer is another one than the model in a folder was trained with."""
    for name in model.modalities:
        reads = statistics.reads[name]
        if reads != modalities[name].fingerprint:
            raise DataError(
                f"{folder} was trained on {name} units {reads!r}, but its codec or tokenizer has "
                f"{modalities[name].fingerprint!r}. Name the codec and tokenizer that it was trained with."
            )


def kept_weights(config: RunConfig, expected: str | None = None) -> dict[str, Tensor]:
    """Weights of the model in `model.init`, LoRA merged, as far as a model of this config has them.

    expected: SHA-256 of its file; raises DataError if it has another."""
    if not config.model.init:
        return {}
    old, info = load_exported(exported_folder("model.init", config.model.init))
    if expected and info["sha256"] != expected:
        raise DataError(
            f"model.init={config.model.init} is not the model that this one was trained with: its weights "
            "have changed. Restore it."
        )
    return {n: w for n, w in merged_state(old.network).items() if not n.startswith("next_modality_heads.")}


def load_kept(network: MultimodalModel, config: RunConfig) -> None:
    """Load the weights of the model in `model.init`, but for heads of CTC, into a new network."""
    kept = {name: weight for name, weight in kept_weights(config).items() if not name.startswith("ctc.")}
    network.load_state_dict({**network.state_dict(), **kept})


def kept_heads(config: RunConfig) -> dict[str, Tensor]:
    """Weights of the heads of CTC of the model in `model.init`, which a training leaves alone."""
    return {name: weight for name, weight in kept_weights(config).items() if name.startswith("ctc.")}


def certify(folder: Path) -> list[str]:
    """Check that the frozen towers of an export equal their pre-trained weights. Returns their modalities.

    Raises DataError if a tower differs, a file is damaged, or the export has no certificate.
    """
    if not is_exported(folder):
        raise ConfigError(
            f"{folder} is no exported model: it holds no {INFO}. Name assets/zipped, for example."
        )
    trained, saved = load_exported(folder)
    if "certificate" not in saved:
        raise DataError(
            f"{folder / INFO} holds no certificate: it was written by an older version. Export it again."
        )
    try:
        check_certificate(trained.network, saved["certificate"])
    except (LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder / INFO}: its certificate is damaged ({type(error).__name__}: {error}). Restore it."
        ) from error
    return [*saved["certificate"]]


def rounded_towers(folder: Path) -> dict[str, int]:
    """Bits of a weight of the frozen towers that an export has rounded, by modality."""
    certified = read_json(folder / INFO)["certificate"]
    return {name: entry["bits"] for name, entry in certified.items() if entry.get("bits", 16) < 16}


def load_trained(checkpoint: Path) -> TrainedModel:
    """Model of a training checkpoint, in eval mode; with weights as its export holds them, if it was trained
    for them. Raises DataError as `read_checkpoint`, and if the weights do not fit this version."""
    saved = read_checkpoint(checkpoint)
    kept = saved.get("hyper_parameters", {})
    if "cfg" not in kept:
        raise DataError(
            f"{checkpoint} is no checkpoint of this package: it has no hyper_parameters. Train it again."
        )
    own = {name.removeprefix("model."): w for name, w in saved["state_dict"].items()}
    weights = {**kept_heads(from_dict(kept["cfg"])), **own}
    why = f"{checkpoint} does not fit this version's model: use the version that wrote it"
    used = trained_directions({"config": kept["cfg"], "directions": saved.get("directions", [])})
    trained = _load_state(from_dict(kept["cfg"]), saved_statistics(kept), weights, why, used)
    if trained.config.train.quantise:
        for weight in exported_weights(trained.network, trained.config.model):
            weight.data = as_kept(weight.data, trained.config.export_bits)
    return trained


def _load_state(
    config: RunConfig, statistics: DatasetStatistics, weights: dict[str, Tensor], why: str, used: list[Pair]
) -> TrainedModel:
    with torch.random.fork_rng(devices=[]):  # zips that no task has trained are not exported: always the same
        torch.manual_seed(config.seed)
        trained = build_untrained(config, statistics)
    trained.network.ctc = CtcHeads.from_state(weights)
    trained.network.used = used
    state = trained.network.state_dict()
    weights = {**{name: state[name] for name in untrained_names(trained.network)}, **weights}
    try:
        trained.network.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(f"{why} ({torch_message(error)}).") from error
    trained.network.eval()
    return trained
