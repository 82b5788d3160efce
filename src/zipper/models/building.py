"""The model of a config, and what it starts from."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from zipper.config import ModelConfig, RunConfig
from zipper.data.documents import directions
from zipper.data.statistics import DatasetStatistics
from zipper.hub import model_folder
from zipper.models.lora import train_lora_alone
from zipper.models.multimodal import MultimodalModel
from zipper.models.pretrained import load_weights, read_tower, tower_info
from zipper.models.single_decoder import SingleDecoderModel
from zipper.models.zipper import ZipperModel


def build_model(
    cfg: ModelConfig, rates: dict[str, float], seconds: Mapping[str, list[float]] | None = None
) -> MultimodalModel:
    """From a resolved config, with random weights. rates, seconds: as Zipper takes them."""
    return SingleDecoderModel(cfg) if cfg.kind == "single_decoder" else ZipperModel(cfg, rates, seconds)


def load_pretrained(model: MultimodalModel) -> None:
    """Fills in every tower that the config names a folder for. DataError where other code wrote it."""
    for name in model.names:
        init = model.cfg.towers[name].init
        if not init:
            continue
        if isinstance(model, SingleDecoderModel):
            model.start_from(read_tower(model_folder(init)))
        else:
            load_weights(model.tower(name), model_folder(init))


def trained_before(model: MultimodalModel) -> set[str]:
    """The modalities that its weights know before it is trained: those that a folder was named for."""
    known = {name for name in model.names if model.cfg.towers[name].init}
    if isinstance(model, SingleDecoderModel) and known:
        (first,) = known
        shape = tower_info(model_folder(model.cfg.towers[first].init or ""))["shape"]
        return {*model.names} if shape["vocabulary"] == len(model.decoder.embedding.weight) else known
    return known


class TrainedModel(NamedTuple):
    """A network, the statistics of the data that it is trained on, and its resolved config."""

    network: MultimodalModel
    statistics: DatasetStatistics
    config: RunConfig


def untrained(cfg: RunConfig, statistics: DatasetStatistics) -> TrainedModel:
    """Random weights, from a resolved config and the statistics of its data: towers are frozen as it says,
    and the zips that its tasks need are in use."""
    model = build_model(cfg.model, statistics.rates, statistics.seconds)
    model.used = directions(cfg.train.tasks.shares())
    set_trainable(model, cfg.model)
    return TrainedModel(model, statistics, cfg)


def set_trainable(model: MultimodalModel, cfg: ModelConfig) -> None:
    """All learns but frozen towers, zips of idle directions, and what else towers with LoRA have."""
    model.requires_grad_(True)  # an earlier training may have had other directions
    for name in model.names:
        if cfg.towers[name].frozen:
            model.tower(name).requires_grad_(False)
        elif cfg.towers[name].lora:
            train_lora_alone(model.tower(name))
    for part in idle_parts(model).values():
        part.requires_grad_(False)


def idle_parts(model: MultimodalModel) -> dict[str, nn.Module]:
    """Zips whose direction no task of the run uses: not computed, no gradient, no weight decay."""
    if not isinstance(model, ZipperModel):
        return {}
    return {
        f"zips.{stage}.{query}_from_{source}": model.zip(stage, query, source)
        for stage in range(model.stages)
        for query, source in model.pairs
        if (query, source) not in model.used
    }
