"""Fine-tuning: a training that starts from a trained model (`train.init`)."""

from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import zip_longest
from pathlib import Path

from zipper.codecs.load import with_copied_codec
from zipper.config import (
    CodecConfig,
    ModelConfig,
    RunConfig,
    SamplingConfig,
    TrainConfig,
    flat,
    to_dict,
)
from zipper.data.documents import directions
from zipper.data.statistics import DatasetStatistics
from zipper.errors import ConfigError
from zipper.generation.exported import check_units, load_exported
from zipper.generation.extended import exported_folder, read_exported, trained_directions
from zipper.generation.zipper import Zipper
from zipper.modalities.base import Modality
from zipper.models.building import TrainedModel

OBJECTIVE = (
    "tasks", "prompt_weight", "loss_mean", "ctc", "guide", "codebook_weights", "mask", "mask_span",
    "history_mask", "history_mask_span",
)  # fmt: skip


def fine_tuned(cfg: RunConfig) -> RunConfig:
    """Config with the model, codec and decoding of the exported model in `train.init`; unchanged without one.

    Its towers have no `init`: their weights are those of the model. Frozen towers stay frozen.

    Raises ConfigError if the folder holds no such model, if the config has a model of its own, or if a task
    needs a direction that the model was not trained for.
    """
    folder = start_folder(cfg)
    if folder is None:
        return cfg
    saved, _, info = read_exported(folder)
    towers = {name: replace(tower, init=None) for name, tower in saved.model.towers.items()}
    model, codec = replace(saved.model, towers=towers), with_copied_codec(saved.codec, folder)
    if cfg.model not in (ModelConfig(), model):
        raise ConfigError(
            f"train.init={cfg.train.init} brings its model, but the config has another. Leave the section "
            "model out."
        )
    known = trained_directions(info)
    if new := [task for task in cfg.train.tasks if not {*directions([task])} <= {*known}]:
        raise ConfigError(
            f"train.tasks: {new[0]}, but train.init={cfg.train.init} was trained for "
            f"{', '.join(saved.train.tasks)}. Leave that task out, or train from towers."
        )
    if cfg.data.tokenizer or cfg.codec not in (CodecConfig(), codec):
        raise ConfigError(
            f"train.init={cfg.train.init} brings its codec and tokenizer, but the config sets its own. Leave "
            "data.tokenizer and the section codec out."
        )
    decode = {name: _decoding(cfg.decode.get(name), how) for name, how in saved.decode.items()}
    tuned = replace(cfg, model=model, codec=codec, decode={**cfg.decode, **decode})
    return tuned if cfg.train.ctc else without_ctc(tuned)


def without_ctc(cfg: RunConfig) -> RunConfig:
    """Config whose decoding has no scores of CTC."""
    return replace(cfg, decode={name: replace(how, ctc=0.0) for name, how in cfg.decode.items()})


def _decoding(given: SamplingConfig | None, saved: SamplingConfig) -> SamplingConfig:
    """What a config says of decoding, over what the model has. All at its defaults means greedy."""
    if given is None or given == SamplingConfig():
        return given or saved
    own = {f.name: value for f in fields(given) if (value := getattr(given, f.name)) != f.default}
    return replace(saved, **own)


def for_new_training(cfg: RunConfig) -> RunConfig:
    """Config of a trained model for more training: its model, codec, tokenizer, decoding and training
    objective. All else (data, steps, machine, rounding) has its default."""
    train = TrainConfig(**{key: getattr(cfg.train, key) for key in OBJECTIVE})
    kept = {key: getattr(cfg, key) for key in ("seed", "model", "codec", "decode")}
    return replace(RunConfig(), **kept, data=cfg.data.of_another_corpus, train=train)


def start_folder(cfg: RunConfig) -> Path | None:
    """Folder of `train.init`; None without one."""
    return exported_folder("train.init", cfg.train.init) if cfg.train.init else None


def units_folder(cfg: RunConfig) -> Path | None:
    """Folder of `train.init` or `model.init`, whose tokenizer, codec and codebooks `load_modalities` reads;
    None without one."""
    init = cfg.model.init
    return start_folder(cfg) or (exported_folder("model.init", init) if init else None)


def continued(old: DatasetStatistics, new: DatasetStatistics) -> DatasetStatistics:
    """Statistics of new training data for a model that was trained before. Rates and durations of tokens
    stay, since zips attend by time; limits of lengths are the larger ones of both."""
    names = {*new.longest, *old.longest}
    ratio = {
        a: {b: max(one.ratio.get(a, {}).get(b, 0.0) for one in (old, new)) for b in names - {a}}
        for a in names
    }
    runs = {name: [old.repeats.get(name, []), new.repeats.get(name, [])] for name in names}
    return replace(
        new,
        rates={**new.rates, **old.rates},
        seconds={**new.seconds, **old.seconds},
        longest={name: max(one.longest.get(name, 0) for one in (old, new)) for name in names},
        ratio={a: {b: most for b, most in to.items() if most} for a, to in ratio.items() if any(to.values())},
        repeats={
            name: [max(both) for both in zip_longest(*each, fillvalue=0)]
            for name, each in runs.items()
            if any(each)
        },
    )


def started_from(cfg: RunConfig, modalities: Mapping[str, Modality]) -> TrainedModel | None:
    """The model of `train.init`, if there is one. Raises DataError if it, or that of `model.init`, is
    damaged, or was trained with another codec, tokenizer or codebooks than these modalities have."""
    if cfg.model.init:
        base = exported_folder("model.init", cfg.model.init)
        saved, statistics, _ = read_exported(base)
        check_units(base, saved.model, statistics, modalities)
    folder = start_folder(cfg)
    if folder is None:
        return None
    model, _ = load_exported(folder)
    check_units(folder, model.config.model, model.statistics, modalities)
    return model


def check_same(model: Zipper, saved: RunConfig, known: DatasetStatistics) -> None:
    """Raises ConfigError if a checkpoint is of another model, or of one with other tokens."""
    old, new = (flat(to_dict(one)["model"]) for one in (saved, model.config))
    changed = [
        f"model.{key}={old.get(key)}, not {new.get(key)}"
        for key in {*old, *new}
        if _decides(key) and old.get(key) != new.get(key)
    ]
    changed += [
        f"{name} of {reads!r}, not {model.modalities[name].fingerprint!r}"
        for name, reads in known.reads.items()
        if name in model.modalities and reads != model.modalities[name].fingerprint
    ]
    if changed:
        raise ConfigError(
            f"The checkpoint is of another model: {'; '.join(sorted(changed))}. Join the towers as for its "
            "training."
        )


def _decides(key: str) -> bool:
    """Whether a model setting changes what the weights mean, beside their shapes, which loading checks."""
    return not key.startswith("towers.") or key.endswith((".interval", ".lora", ".input_projection"))
