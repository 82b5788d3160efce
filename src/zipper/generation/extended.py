"""Further towers for a model that is zipped already (`model.init`), whose own parts stay as they are."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from zipper.codecs.load import with_copied_codec
from zipper.config import ModelConfig, RunConfig, asset, from_dict, read_json
from zipper.data.documents import directions
from zipper.data.statistics import DatasetStatistics, saved_statistics
from zipper.errors import ConfigError, DataError, ZipperError
from zipper.hub import model_folder
from zipper.models.building import idle_parts
from zipper.models.multimodal import MultimodalModel, Pair

INFO, TOKENIZER = "zipper.json", "tokenizer.json"


def extended(cfg: RunConfig) -> RunConfig:
    """Config with the towers, zips and codec of the exported model in `model.init`, frozen; unchanged without
    one. Raises ConfigError if it is no such model, or if the config lacks its modalities."""
    if not cfg.model.init:
        return cfg
    folder = exported_folder("model.init", cfg.model.init)
    saved = read_exported(folder)[0]
    old = saved.model
    if cfg.export:
        check_no_part(Path(cfg.export), cfg)
    if missing := [name for name in old.modalities if name not in cfg.model.modalities]:
        raise ConfigError(
            f"model.init={cfg.model.init} has {missing}, but model.modalities={cfg.model.modalities}. Name "
            "its modalities too: they stay as they are."
        )
    if kinds := {old.kind, cfg.model.kind} - {"zipper"}:
        raise ConfigError(
            f"model.init={cfg.model.init} has model.kind={old.kind}, this model {cfg.model.kind}: towers are "
            f"added to zipped ones alone, and {min(kinds)} has no zips. Train a model.kind=zipper first."
        )
    if cfg.model.next_modality_head:
        raise ConfigError(
            "model.next_modality_head=true with model.init: the next-modality heads know the old modalities "
            "alone. Leave it out."
        )
    for key in ("position", "heads"):  # a step of the cache has one of each
        if (mine := getattr(cfg.model.zip, key)) != (known := getattr(old.zip, key)):
            raise ConfigError(
                f"model.zip.{key}={mine}, but the zips of model.init={cfg.model.init} have {known}. Give "
                f"model.zip.{key}={known}."
            )
    # A tower that was trained with its zips has other weights than those that it started from.
    towers = {
        name: tower if tower.frozen else replace(tower, frozen=True, lora=0, init=None)
        for name, tower in without_lost_towers(old).towers.items()
    }
    zips = {
        f"{a}_from_{b}": old.zips.get(f"{a}_from_{b}", old.zip) for a, b in permutations(old.modalities, 2)
    }
    model = replace(cfg.model, towers={**cfg.model.towers, **towers}, zips=zips)
    return with_units_of_init(replace(cfg, model=model))


def without_lost_towers(model: ModelConfig) -> ModelConfig:
    """Config whose towers do not name folders that are gone. A trained model does not need them."""
    towers = {
        name: replace(tower, init=None) if tower.init and not asset(tower.init).exists() else tower
        for name, tower in model.towers.items()
    }
    return replace(model, towers=towers)


def with_units_of_init(cfg: RunConfig) -> RunConfig:
    """Config with the tokenizer and the codec of the model in `model.init`, where that lies on this machine;
    unchanged without one."""
    if not cfg.model.init:
        return cfg
    folder = exported_folder("model.init", cfg.model.init)
    own = cfg.data.tokenizer
    tokenizer: str | None = str(folder / TOKENIZER)
    if own and asset(own).is_file():
        tokenizer = own
    elif not (folder / TOKENIZER).is_file():  # of an extended model of an earlier version: its base has it
        tokenizer = read_exported(folder)[0].data.tokenizer
    data = replace(cfg.data, tokenizer=tokenizer)
    return replace(cfg, data=data, codec=with_copied_codec(read_exported(folder)[0].codec, folder))


def without_places_of_init(cfg: RunConfig) -> RunConfig:
    """Config to export: without the places of this machine that `with_units_of_init` names."""
    if not cfg.model.init:
        return cfg
    folder = exported_folder("model.init", cfg.model.init)
    own = cfg.data.tokenizer if cfg.data.tokenizer != str(folder / TOKENIZER) else None
    codec = from_dict(read_json(folder / INFO)["config"]).codec
    return replace(cfg, data=replace(cfg.data, tokenizer=own), codec=codec)


def kept_statistics(cfg: RunConfig, measured: DatasetStatistics) -> DatasetStatistics:
    """Statistics of the training data, but for the old modalities those of `model.init`: their tokens stay
    where they were in time."""
    if not cfg.model.init:
        return measured
    old = read_exported(exported_folder("model.init", cfg.model.init))[1]
    ratio = {name: {**measured.ratio.get(name, {}), **old.ratio.get(name, {})} for name in measured.reads}
    return replace(
        measured,
        rates={**measured.rates, **old.rates},
        seconds={**measured.seconds, **old.seconds},
        longest={**measured.longest, **old.longest},
        ratio=ratio,
        repeats={**measured.repeats, **old.repeats},
    )


def trained_directions(info: Mapping[str, Any]) -> list[Pair]:
    """(query, source) directions that the model of a zipper.json was trained for: by its last training, by
    those before, and by that of `model.init`."""
    cfg = from_dict(info["config"])
    before = [(query, source) for query, source in info.get("directions", [])]
    if cfg.model.init:
        before += trained_directions(read_json(exported_folder("model.init", cfg.model.init) / INFO))
    return sorted({*before, *directions(cfg.train.tasks)})


def read_exported(folder: Path) -> tuple[RunConfig, DatasetStatistics, dict[str, Any]]:
    """Config, statistics and all of the zipper.json of an exported model. Raises DataError if it is
    damaged."""
    info = read_json(folder / INFO)
    try:
        config, statistics = from_dict(info["config"]), saved_statistics(info)
        parts(config)
        trained_directions(info)
        for name in config.model.modalities:
            if not (statistics.rates[name] > 0 and statistics.reads[name]):
                raise ValueError(f"no rate or fingerprint of {name}")
        return with_units_of_init(config), statistics, info
    except ZipperError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OmegaConfBaseException) as error:
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise DataError(
            f"{folder / INFO} is damaged, or not of this version ({why}). Restore it, or export the model "
            "again."
        ) from error


def parts(cfg: RunConfig) -> list[Path]:
    """Folders of the models that a model needs: that of `model.init`, of its own model.init, and so on, as
    far as they are on this machine. Raises DataError if they lead back to one another."""
    found: list[Path] = []
    while cfg.model.init and (asset(cfg.model.init) / INFO).is_file():
        folder = asset(cfg.model.init).resolve()
        if folder in found:
            raise DataError(f"model.init of {folder} leads back to itself. Restore the model that it was.")
        found.append(folder)
        cfg = from_dict(read_json(folder / INFO)["config"])
    return found


def check_no_part(folder: Path, cfg: RunConfig) -> None:
    """Raises ConfigError if a folder to write holds a model that the written one needs."""
    if folder.resolve() in parts(cfg):
        raise ConfigError(
            f"{folder} holds the model of model.init={cfg.model.init}, of which this one needs the weights. "
            "Name another folder."
        )


def kept_names(network: MultimodalModel) -> list[str]:
    """Names of the state of a network that `model.init` holds already."""
    parts = tuple(
        f"{part}."
        for name in network.cfg.kept
        for part in (f"towers.{name}", f"projections.{name}", f"next_modality_heads.{name}")
    )
    zips = {f"{a}_from_{b}" for a, b in permutations(network.cfg.kept, 2)}
    return [
        name
        for name in network.state_dict()
        if name.startswith(parts) or (name.startswith("zips.") and name.split(".")[2] in zips)
    ]


def untrained_names(network: MultimodalModel) -> list[str]:
    """Names of the state of zips in directions that no task has trained."""
    idle = tuple(f"{part}." for part in idle_parts(network))
    return [name for name in network.state_dict() if idle and name.startswith(idle)]


def exported_folder(setting: str, init: str) -> Path:
    """Folder of the exported model that a setting names. Raises ConfigError if it is none, DataError if it
    is not to be had."""
    try:
        folder = model_folder(init)
    except DataError as error:
        raise DataError(f"{setting}={init}: {error}") from error
    if not (folder / INFO).is_file():
        raise ConfigError(
            f"{setting}={init} is no exported model: it holds no {INFO}. Name assets/zipped, or "
            "write one: zipper export RUN FOLDER."
        )
    return folder
