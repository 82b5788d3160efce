"""`zipper prepare`: corpus, codec and subwords to a store, each made only where it is missing."""

from dataclasses import replace
from pathlib import Path

from zipper.clock import Clock
from zipper.codecs.codec import Codec
from zipper.codecs.load import load_codec
from zipper.config import RunConfig, asset
from zipper.corpora.open import open_corpus
from zipper.data.dataset import EncodedDataset
from zipper.data.encode import prepare_dataset
from zipper.disk import check_output_paths
from zipper.hub import model_folder
from zipper.modalities.normalise import unreadable
from zipper.modalities.tokenizer import Tokenizer


def given_tokenizer(cfg: RunConfig) -> Tokenizer | None:
    """The tokenizer that the config names, or that of its pre-trained text tower; none: one is to be
    trained."""
    if cfg.data.tokenizer:
        return Tokenizer.load(asset(cfg.data.tokenizer))
    tower = cfg.model.towers.get("text")
    return Tokenizer.load(model_folder(tower.init) / "tokenizer.json") if tower and tower.init else None


def prepare(cfg: RunConfig, clock: Clock) -> EncodedDataset:
    """Opens the dataset of a config, after making what is missing. Codec and tokenizer are checked first."""
    check_output_paths(cfg)
    return encode(cfg, clock, load_codec(cfg.codec), given_tokenizer(cfg))


def encode(cfg: RunConfig, clock: Clock, codec: Codec, tokenizer: Tokenizer | None) -> EncodedDataset:
    """As `prepare`, with this codec and tokenizer; none: one is trained on the corpus."""
    with clock.stage("speak"):
        utterances = open_corpus(cfg)
    if tokenizer is None:
        texts = (u.text for u in utterances if u.split == "train" and u.text and not unreadable(u.text))
        tokenizer = Tokenizer.train(texts, cfg.data.subwords)
    with clock.stage("encode"):
        dataset = prepare_dataset(
            Path(cfg.build) / "stores",
            utterances,
            codec,
            tokenizer,
            cfg.codec.batch_seconds,
            cfg.data.max_seconds,
            cfg.train,
        )
    if dataset.info["skipped"]:
        print(
            f"{dataset.info['skipped']} utterances were skipped: {dataset.folder}/skipped.jsonl lists them "
            "with the reasons"
        )
    return replace(dataset, pattern=cfg.codec.pattern)
