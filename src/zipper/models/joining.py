"""Join pre-trained towers by untrained zips (paper 3.1)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from zipper.config import RunConfig, check_list, with_overrides
from zipper.data.statistics import DatasetStatistics
from zipper.errors import ConfigError, DataError
from zipper.hub import model_folder
from zipper.modalities.base import Modality, load_modalities
from zipper.models.building import TrainedModel, build_model, load_pretrained, set_trainable
from zipper.models.certify import certificate
from zipper.models.resolve import resolve_layouts


def join_towers(
    towers: Mapping[str, str | Path],
    interval: Mapping[str, int],
    frozen: Iterable[str],
    seed: int,
    overrides: Sequence[str],
) -> tuple[TrainedModel, dict[str, Modality]]:
    """Untrained model of pre-trained towers, with empty statistics, and its modalities. Arguments and errors:
    those of `Zipper.from_towers`."""
    frozen = frozen if isinstance(frozen, str) else [*frozen]
    if not towers or isinstance(frozen, str) or not isinstance(interval, Mapping):
        raise ConfigError(
            f"from_towers({', '.join(towers)}, frozen={frozen!r}, interval={interval!r}): give at least "
            "one tower, a list of modalities for frozen, and a dict for interval, {'text': 2}."
        )
    if unknown := sorted({*frozen, *interval} - {*towers}):
        raise ConfigError(f"{unknown[0]!r} has no tower: towers are given for {', '.join(towers)}.")
    check_list(overrides)
    if empty := [name for name, init in towers.items() if not str(init)]:
        raise ConfigError(f"{empty[0]}='' names no tower. Give a folder, or user/name of the hub.")
    if gone := [init for init in towers.values() if not model_folder(str(init)).is_dir()]:
        raise DataError(f"{gone[0]} is no folder, and no user/name of the hub. Give a tower's folder.")
    settings = [f"model.modalities={json.dumps([*towers])}", f"seed={seed}"]
    for name, init in towers.items():
        settings += [f"model.towers.{name}.init={init}", f"model.towers.{name}.frozen={name in frozen}"]
        settings += [f"model.towers.{name}.interval={interval[name]}"] if name in interval else []
    config = with_overrides(RunConfig(), [*settings, *overrides])
    if config.model.init or config.train.init:
        raise ConfigError(
            "model.init and train.init are settings of `zipper train`: towers are joined by new zips here. "
            "Leave them out, or start from Zipper.from_pretrained."
        )
    modalities = load_modalities(config)
    config = resolve_layouts(config, modalities)
    rates = {name: modalities[name].rate for name in towers}
    reads = {name: modalities[name].fingerprint for name in towers}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_model(config.model, rates)
    load_pretrained(network)
    set_trainable(network, config.model)
    network.certificate = certificate(network)  # now: the towers' folders may move later
    return TrainedModel(network, DatasetStatistics("", reads, rates, {}, {}, {}, {}), config), modalities
