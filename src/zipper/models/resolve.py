"""Resolve a config: vocabularies, codebooks and shapes that follow from the data and the pre-trained
towers."""

from dataclasses import fields, replace
from typing import NamedTuple

from zipper.codecs.codec import Codec
from zipper.config import TASKS, RunConfig, TowerConfig
from zipper.corpora.utterance import FIRST, sentences_hash
from zipper.data.dataset import EncodedDataset
from zipper.data.statistics import units_id
from zipper.errors import ConfigError, DataError
from zipper.hub import model_folder
from zipper.modalities.delay import Pattern, vocabulary
from zipper.modalities.tokenizer import Tokenizer
from zipper.models.pretrained import tower_info, with_shape_of

PER_MODALITY = (
    "vocabulary",
    "codebooks",
    "pattern",
    "init",
)  # not shared by a single decoder


def check_towers(cfg: RunConfig) -> None:
    """Check towers and tasks before the data is encoded.

    Raises ConfigError if a task needs a modality without a tower or a shape does not fit, DataError if a
    pre-trained tower is damaged.
    """
    _check_tasks(cfg)
    towers = dict(cfg.model.towers)
    for name in cfg.model.modalities:
        if init := towers[name].init:
            towers[name] = with_shape_of(towers[name], model_folder(init))
            towers[name].check_interval()
    if cfg.model.kind == "zipper":
        replace(cfg.model, towers=towers).check_widths()


class Units(NamedTuple):
    """Units of the towers. ids: id of the codec or tokenizer by modality. sizes: vocabulary and number of
    codebooks by modality. specials: BOS and EOS ids of text."""

    ids: dict[str, str]
    sizes: dict[str, tuple[int, int]]
    specials: list[int]
    pattern: Pattern

    @classmethod
    def of(cls, tokenizer: Tokenizer, codec: Codec, pattern: Pattern) -> "Units":
        """Units of a tokenizer and a codec, before any data is encoded."""
        return cls(
            {"text": tokenizer.fingerprint, "speech": codec.fingerprint},
            {"text": (tokenizer.vocabulary, 1), "speech": (vocabulary(codec.codes), codec.codebooks)},
            [tokenizer.bos, tokenizer.eos],
            pattern,
        )

    @classmethod
    def of_dataset(cls, dataset: EncodedDataset) -> "Units":
        """Units of an encoded dataset."""
        tokenizer = dataset.tokenizer
        return cls(
            {name: units_id(dataset, name) for name in ("text", "speech")},
            {"text": (tokenizer.vocabulary, 1), "speech": (vocabulary(dataset.codes), dataset.codebooks)},
            [tokenizer.bos, tokenizer.eos],
            dataset.pattern,
        )

    @property
    def joint_id(self) -> str:
        """Id of the units of a single decoder that is trained on all modalities."""
        return " + ".join(self.ids.values())


def resolve(cfg: RunConfig, dataset: EncodedDataset) -> RunConfig:
    """Config with the shape of every tower.

    Raises as `check_towers`, and DataError if a pre-trained tower uses other units than the data, or was
    trained on sentences that the data holds out.
    """
    _check_tasks(cfg)
    cfg = resolve_units(cfg, Units.of_dataset(dataset))
    if cfg.data.corpora == ["spoken"] and cfg.data.text_folder is None:
        for name in cfg.model.modalities:
            _check_sentences(name, cfg.model.towers[name].init, dataset)
    return cfg


def resolve_units(cfg: RunConfig, units: Units) -> RunConfig:
    """Resolve a config before there is data."""
    _, books = units.sizes["speech"]
    if cfg.train.codebook_weights and len(cfg.train.codebook_weights) != books:
        raise ConfigError(
            f"train.codebook_weights={cfg.train.codebook_weights}: the encoded dataset has {books} "
            "codebooks. Give one weight per codebook, or none."
        )
    single = cfg.model.kind == "single_decoder"
    towers: dict[str, TowerConfig] = {}
    for name in cfg.model.modalities:
        tower = cfg.model.towers[name]
        if single and towers:
            tower = _with_decoder_shape(next(iter(towers.values())), name, tower)
        towers[name] = _resolve_tower(name, tower, units, single)
    return replace(cfg, model=replace(cfg.model, towers=towers))


def _check_tasks(cfg: RunConfig) -> None:
    shares = cfg.train.tasks.shares()
    if not shares:
        raise ConfigError(
            f"train.tasks: every share is 0, nothing would be trained. Give one of {sorted(TASKS)} a share."
        )
    if unknown := [task for task in cfg.evaluate.tasks if task not in shares]:
        raise ConfigError(
            f"evaluate.tasks={cfg.evaluate.tasks}, but {unknown} is not trained: train.tasks={shares}. "
            "Give it a share there, or leave it out."
        )
    needed = {name for task in shares for name in TASKS[task]}
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


def _resolve_tower(name: str, tower: TowerConfig, units: Units, single: bool) -> TowerConfig:
    if name not in units.sizes:
        raise ConfigError(
            f"model.modalities names {name!r}, but the encoded dataset holds only {sorted(units.sizes)}."
        )
    count, books = units.sizes[name]
    if tower.init:
        folder = model_folder(tower.init)
        info = tower_info(folder)
        known = {units.ids[name], *([units.joint_id] if single else [])}
        if info["reads"] not in known:
            raise DataError(
                f"model.towers.{name}.init={tower.init} was trained on {info['reads']!r}, but the "
                f"encoded dataset holds {units.ids[name]!r}. Use the codec or tokenizer of that tower, or "
                "pre-train a tower on these units."
            )
        trained_on = info.get("pattern", "delay")
        if (
            info["reads"] != units.ids["text"]
            and trained_on != units.pattern
            and units.sizes["speech"][1] > 1
        ):
            raise ConfigError(
                f"codec.pattern={units.pattern}, but model.towers.{name}.init={tower.init} was trained on "
                f"{trained_on}. Use that pattern, or pre-train a tower with this one."
            )
        if info["reads"] == units.joint_id:  # a single decoder, with the vocabulary of all modalities
            shape = with_shape_of(replace(tower, vocabulary=0, codebooks=0), folder)
            tower = replace(shape, vocabulary=tower.vocabulary, codebooks=tower.codebooks)
        else:
            tower = with_shape_of(tower, folder)
        tower.check_interval()
    if name == "text":
        # Embeddings of pre-trained models are often padded beyond their tokenizer.
        tower = replace(tower, specials=units.specials)
        count = max(count, tower.vocabulary if tower.init else 0)
    if tower.vocabulary not in (0, count) or tower.codebooks not in (0, books):
        raise ConfigError(
            f"model.towers.{name}: vocabulary={tower.vocabulary}, codebooks={tower.codebooks}, but the "
            f"dataset has {count} and {books}. Leave both out."
        )
    if tower.pattern not in ("delay", units.pattern):
        raise ConfigError(
            f"model.towers.{name}.pattern={tower.pattern}, but codec.pattern={units.pattern}. Leave it out."
        )
    pattern = "delay" if name == "text" else units.pattern
    return replace(tower, vocabulary=count, codebooks=books, pattern=pattern)


def _check_sentences(name: str, init: str | None, dataset: EncodedDataset) -> None:
    known = tower_info(model_folder(init))["trained_on"] if init else None  # None: unknown
    train = dataset.splits["train"]
    if known not in (None, dataset.info["trained_on"], sentences_hash(train[:FIRST]["text"])):
        raise DataError(
            f"model.towers.{name}.init={init} was trained on other sentences of the grammar than "
            "this training split, so dev and test may contain some of them. Keep the data.seed and the "
            f"data.train of its training (shipped towers: {FIRST} or more; data.only limits the training "
            "split), or pre-train towers on this dataset."
        )
