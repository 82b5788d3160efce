"""Build the model of a config and load its pre-trained weights."""

import itertools
from collections.abc import Collection, Mapping
from typing import NamedTuple

from torch import nn

from zipper.config import ModelConfig, RunConfig
from zipper.data.documents import directions
from zipper.data.statistics import DatasetStatistics
from zipper.hub import model_folder
from zipper.models.insertion import InsertionModel
from zipper.models.lora import freeze_all_but_lora
from zipper.models.mixture import MixtureModel
from zipper.models.multimodal import MultimodalModel, Pair
from zipper.models.pretrained import load_weights, read_tower, tower_info
from zipper.models.single_decoder import SingleDecoderModel
from zipper.models.zipper import ZipperModel


def build_model(
    cfg: ModelConfig, rates: dict[str, float], seconds: Mapping[str, list[float]] | None = None
) -> MultimodalModel:
    """Model of a resolved config, with random weights. rates, seconds: see `ZipperModel.set_times`."""
    match cfg.kind:
        case "single_decoder":
            return SingleDecoderModel(cfg)
        case "insertion":
            return InsertionModel(cfg)
        case "mixture":
            return MixtureModel(cfg)
    return ZipperModel(cfg, rates, seconds)


def load_pretrained(model: MultimodalModel) -> None:
    """Load the weights of every tower whose `init` is set. Raises DataError if they do not fit this
    version."""
    for name in model.names:
        init = model.cfg.towers[name].init
        if not init:
            continue
        if isinstance(model, SingleDecoderModel):
            model.start_from(read_tower(model_folder(init)))
        else:
            load_weights(model.tower(name), model_folder(init))


def pretrained_modalities(model: MultimodalModel) -> set[str]:
    """Modalities whose weights are pre-trained before the run."""
    known = {name for name in model.names if model.cfg.towers[name].init}
    if isinstance(model, SingleDecoderModel) and known:
        (first,) = known
        shape = tower_info(model_folder(model.cfg.towers[first].init or ""))["shape"]
        return {*model.names} if shape["vocabulary"] == len(model.decoder.embedding.weight) else known
    return known


class TrainedModel(NamedTuple):
    """Network, statistics of its training data, and resolved config."""

    network: MultimodalModel
    statistics: DatasetStatistics
    config: RunConfig


def build_untrained(cfg: RunConfig, statistics: DatasetStatistics) -> TrainedModel:
    """Model with random weights, from a resolved config and the statistics of its data. Towers are frozen
    and zip directions are in use as the config says."""
    model = build_model(cfg.model, statistics.rates, statistics.seconds)
    model.used = directions(cfg.train.tasks)
    set_trainable(model, cfg.model)
    return TrainedModel(model, statistics, cfg)


def set_trainable(model: MultimodalModel, cfg: ModelConfig, trained: Collection[Pair] | None = None) -> None:
    """Freeze frozen towers, unused zips, and all but LoRA in towers with LoRA. trained: directions whose zips
    are trained; by default all that are used."""
    model.requires_grad_(True)  # an earlier training may have had other directions
    for name in model.names:
        if cfg.towers[name].frozen:
            model.tower(name).requires_grad_(False)
        elif cfg.towers[name].lora:
            freeze_all_but_lora(model.tower(name))
    for part in [*idle_parts(model, trained).values(), *kept_parts(model)]:
        part.requires_grad_(False)


def kept_parts(model: MultimodalModel) -> list[nn.Module]:
    """Parts of the model in `model.init`, which stay as they are."""
    if not isinstance(model, ZipperModel):
        return []
    kept = model.cfg.kept
    zips = [
        model.zip(stage, *pair) for stage in range(model.stages) for pair in itertools.permutations(kept, 2)
    ]
    projections = [model.projections[name] for name in kept if name in model.projections]
    pairs = itertools.permutations(kept, 2)
    heads = [head for pair in pairs if model.ctc and (head := model.ctc.get(*pair)) is not None]
    return [*zips, *projections, *heads, *(model.tower(name) for name in kept)]


def exported_weights(model: MultimodalModel, cfg: ModelConfig) -> list[nn.Parameter]:
    """Weights that an export writes in `export_bits`: all but those of frozen towers, of the model in
    `model.init` and of zips that no task uses."""
    frozen = [model.tower(name) for name in model.names if cfg.towers[name].frozen]
    others = {
        weight
        for part in (*frozen, *kept_parts(model), *idle_parts(model).values())
        for weight in part.parameters()
    }
    return [weight for weight in model.parameters() if weight not in others]


def idle_parts(model: MultimodalModel, used: Collection[Pair] | None = None) -> dict[str, nn.Module]:
    """Zips of directions that are not used (by default `model.used`). They are not computed and get no
    gradient."""
    if not isinstance(model, ZipperModel):
        return {}
    used = model.used if used is None else used
    return {
        f"zips.{stage}.{query}_from_{source}": model.zip(stage, query, source)
        for stage in range(model.stages)
        for query, source in model.pairs
        if (query, source) not in used
    }
