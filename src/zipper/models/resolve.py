"""Resolve a config: vocabularies, codebooks and shapes that follow from the data and the pre-trained
towers."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from zipper.config import RunConfig, TowerConfig, modalities_of
from zipper.config.fields import check_modalities
from zipper.corpora.utterance import FIRST, sentences_hash
from zipper.data.dataset import EncodedDataset, sentences_of
from zipper.data.documents import directions
from zipper.errors import ConfigError, DataError
from zipper.hub import model_folder
from zipper.modalities.base import Modality
from zipper.models.pretrained import check_no_language_model, tower_info, with_shape_of

PER_MODALITY = ("vocabulary", "codebooks", "pattern", "specials", "init")  # not shared by a single decoder


def check_towers(cfg: RunConfig) -> None:
    """Check towers, tasks and `export` before the data is encoded.

    Raises ConfigError if a task needs a modality without a tower, a shape does not fit, nothing would be
    trained, or what is trained could not be exported; DataError if a pre-trained tower is damaged.
    """
    _check_tasks(cfg)
    if cfg.export:
        _check_export(cfg, Path(cfg.export))
    towers = dict(cfg.model.towers)
    for name in cfg.model.modalities:
        if init := towers[name].init:
            towers[name] = with_shape_of(towers[name], model_folder(init))
            towers[name].check_interval()
    joins = cfg.model.kind != "mixture" and directions(cfg.train.tasks)
    if not joins and all(towers[name].frozen and not towers[name].lora for name in cfg.model.modalities):
        raise ConfigError(
            f"Every tower of model.modalities={cfg.model.modalities} is frozen, and nothing else would be "
            "trained. Leave out a model.towers.NAME.frozen."
        )
    if cfg.model.kind == "zipper":
        replace(cfg.model, towers=towers).check_widths()
    stages = {name: towers[name].layers // towers[name].interval for name in cfg.model.modalities}
    known = min((stages[name] for name in cfg.model.kept), default=0)
    if few := [name for name, count in stages.items() if count < known]:
        raise ConfigError(
            f"model.init={cfg.model.init} has zips after {known} stages of layers, but model.towers.{few[0]} "
            f"has {stages[few[0]]}. Give it more layers, or a smaller interval."
        )


def _check_export(cfg: RunConfig, folder: Path) -> None:
    """Raises ConfigError if no task joins several towers, or the folder holds a language model."""
    check_no_language_model(folder)
    model, tasks = cfg.model, cfg.train.tasks
    alone = not directions(tasks) and not model.init and not cfg.train.init
    if alone and len(model.modalities) > 1 and model.kind != "single_decoder":
        raise ConfigError(
            f"export={folder}: train.tasks={[*tasks]} join none of the towers of model.modalities="
            f"{model.modalities}, and an export holds one tower or joined ones. Pre-train each alone (zipper "
            "pretrain), or train a task that joins them, such as asr."
        )


def resolve(cfg: RunConfig, dataset: EncodedDataset) -> RunConfig:
    """Config with the shape of every tower.

    Raises as `check_towers`, and DataError if a pre-trained tower uses other units than the data, or was
    trained on sentences that the data holds out.
    """
    _check_tasks(cfg)
    cfg = resolve_layouts(cfg, dataset.modalities)
    if cfg.data.corpora == ["spoken"] and cfg.data.text_folder is None:
        for name in cfg.model.modalities:
            _check_sentences(name, cfg.model.towers[name].init, dataset)
    return cfg


def resolve_layouts(cfg: RunConfig, modalities: Mapping[str, Modality]) -> RunConfig:
    """Resolve a config before there is data."""
    check_modalities("model.modalities", cfg.model.modalities, modalities)
    weights = cfg.train.codebook_weights
    several = {n: modalities[n].codebooks for n in cfg.model.modalities if modalities[n].codebooks > 1}
    if wrong := [
        f"{name} has {books}" for name, books in several.items() if weights and books != len(weights)
    ]:
        raise ConfigError(
            f"train.codebook_weights={weights}: {wrong[0]} codebooks. Give one weight per codebook, or none."
        )
    single = cfg.model.kind == "single_decoder"
    towers: dict[str, TowerConfig] = {}
    for name in cfg.model.modalities:
        tower = cfg.model.towers[name]
        if single and towers:
            tower = _with_decoder_shape(next(iter(towers.values())), name, tower)
        towers[name] = _resolve_tower(name, tower, modalities, cfg.model.modalities if single else [name])
    return replace(cfg, model=replace(cfg.model, towers=towers))


def _check_tasks(cfg: RunConfig) -> None:
    shares = cfg.train.tasks
    if not shares:
        raise ConfigError(
            "train.tasks: every share is 0, nothing would be trained. Give one a share, such as asr or tts."
        )
    wrong = [
        task
        for task in shares
        if len(modalities_of(task)) > 1 and modalities_of(task)[-1] != cfg.model.modalities[0]
    ]
    if cfg.model.kind == "insertion" and wrong:
        raise ConfigError(
            f"train.tasks: {wrong[0]}, but with model.kind=insertion the first of model.modalities="
            f"{cfg.model.modalities} gives all answers. Name that of the answer first."
        )
    needed = {name for task in shares for name in modalities_of(task)}
    if missing := sorted(needed - set(cfg.model.modalities)):
        raise ConfigError(
            f"train.tasks={shares} needs towers for {missing}; model.modalities={cfg.model.modalities}. Name "
            "them there, or leave the task out."
        )


def _with_decoder_shape(decoder: TowerConfig, name: str, tower: TowerConfig) -> TowerConfig:
    """Tower of a single decoder: its own vocabulary, all else from the decoder."""
    plain = TowerConfig()
    for key in (f.name for f in fields(TowerConfig) if f.name not in PER_MODALITY):
        if getattr(tower, key) not in (getattr(plain, key), getattr(decoder, key)):
            raise ConfigError(
                f"model.towers.{name}.{key}={getattr(tower, key)}, but a single decoder has one set of "
                f"layers, with {key}={getattr(decoder, key)}. Leave it out."
            )
    return replace(decoder, vocabulary=tower.vocabulary, codebooks=tower.codebooks, init=None)


def _resolve_tower(
    name: str, tower: TowerConfig, modalities: Mapping[str, Modality], shared: Sequence[str]
) -> TowerConfig:
    """shared: modalities of the decoder that the tower belongs to."""
    modality = modalities[name]
    layout = modality.layout
    count = layout.vocabulary
    if tower.init:
        folder = model_folder(tower.init)
        info = tower_info(folder)
        joint = joint_fingerprint([modalities[one] for one in shared])
        if info["reads"] not in (modality.fingerprint, joint):
            raise DataError(
                f"model.towers.{name}.init={tower.init} was trained on {info['reads']!r}, but the "
                f"encoded dataset holds {modality.fingerprint!r}. Use the codec or tokenizer of that tower, "
                "or pre-train a tower on these units."
            )
        # Grown: a single decoder, with the vocabulary of all modalities.
        grown = info["reads"] != modality.fingerprint
        known = info.get("pattern", "delay")
        for one in (modalities[other] for other in (shared if grown else [name])):
            if one.codebooks > 1 and one.layout.pattern != known:
                raise ConfigError(
                    f"codec.pattern={one.layout.pattern}, but model.towers.{name}.init={tower.init} was "
                    f"trained on {known}. Use that pattern, or pre-train a tower with this one."
                )
        if grown:
            shape = with_shape_of(replace(tower, vocabulary=0, codebooks=0), folder)
            tower = replace(shape, vocabulary=tower.vocabulary, codebooks=tower.codebooks)
        else:
            tower = with_shape_of(tower, folder)
            # Embeddings of pre-trained models are often padded beyond their tokenizer.
            count = max(count, tower.vocabulary)
        tower.check_interval()
    elif tower.specials:  # of a trained model, whose embeddings can be padded, too
        count = max(count, tower.vocabulary)
    if tower.vocabulary not in (0, count) or tower.codebooks not in (0, layout.codebooks):
        raise ConfigError(
            f"model.towers.{name}: vocabulary={tower.vocabulary}, codebooks={tower.codebooks}, but the "
            f"dataset has {count} and {layout.codebooks}. Leave both out."
        )
    if tower.pattern not in ("delay", layout.pattern):
        raise ConfigError(
            f"model.towers.{name}.pattern={tower.pattern}, but codec.pattern={layout.pattern}. Leave it out."
        )
    return replace(
        tower, vocabulary=count, codebooks=layout.codebooks, pattern=layout.pattern, specials=layout.specials
    )


def joint_fingerprint(modalities: Sequence[Modality]) -> str:
    """Fingerprint of the tokens of a single decoder of these modalities."""
    return " + ".join(one.fingerprint for one in modalities)


def _check_sentences(name: str, init: str | None, dataset: EncodedDataset) -> None:
    known = tower_info(model_folder(init))["trained_on"] if init else None  # None: unknown
    train = sentences_of(dataset.splits["train"], "text")
    if known not in (None, dataset.info["trained_on"], *map(sentences_hash, (train, train[:FIRST]))):
        raise DataError(
            f"model.towers.{name}.init={init} was trained on other sentences of the grammar than "
            "this training split, so dev and test may contain some of them. Keep the data.seed and the "
            f"data.train of its training (shipped towers: {FIRST} or more; data.only limits the training "
            "split), or pre-train towers on this dataset."
        )
