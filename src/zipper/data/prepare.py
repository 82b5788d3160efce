"""`zipper prepare`: corpus, codec and subwords to a store, each made only where it is missing."""

from dataclasses import replace
from pathlib import Path

from zipper.clock import Clock
from zipper.codecs.load import load_codec
from zipper.config import RunConfig, asset
from zipper.corpora.open import open_corpus
from zipper.data.dataset import Store
from zipper.data.encode import prepare_store
from zipper.disk import check_places
from zipper.hub import model_folder
from zipper.modalities.normalise import unreadable
from zipper.modalities.tokenizer import Subwords


def given_subwords(cfg: RunConfig) -> Subwords | None:
    """The tokenizer that the config names, or that of its pre-trained text tower; none: one is to be
    trained."""
    if cfg.data.tokenizer:
        return Subwords.load(asset(cfg.data.tokenizer))
    tower = cfg.model.towers.get("text")
    return Subwords.load(model_folder(tower.init) / "tokenizer.json") if tower and tower.init else None


def prepare(cfg: RunConfig, clock: Clock) -> Store:
    """Opens the store of a config, after making what is missing. Codec and tokenizer are checked first."""
    check_places(cfg)
    codec = load_codec(cfg.codec)
    given = given_subwords(cfg)
    with clock.stage("speak"):
        utterances = open_corpus(cfg)
    texts = (u.text for u in utterances if u.split == "train" and u.text and not unreadable(u.text))
    subwords = given or Subwords.train(texts, cfg.data.subwords)
    with clock.stage("encode"):
        store = prepare_store(
            Path(cfg.build) / "stores",
            utterances,
            codec,
            subwords,
            cfg.codec.batch_seconds,
            cfg.data.max_seconds,
            cfg.train,
        )
    if store.facts["skipped"]:
        print(
            f"{store.facts['skipped']} utterances were skipped: {store.folder}/skipped.jsonl lists them and "
            "why"
        )
    return replace(store, pattern=cfg.codec.pattern)
