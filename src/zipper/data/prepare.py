"""`zipper prepare`: corpus, codec and tokenizer to an encoded dataset. Only missing parts are made."""

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


def configured_tokenizer(cfg: RunConfig) -> Tokenizer | None:
    """Tokenizer of the config or of its pre-trained text tower; None: it is trained on the corpus."""
    if cfg.data.tokenizer:
        return Tokenizer.load(asset(cfg.data.tokenizer))
    tower = cfg.model.towers.get("text")
    return Tokenizer.load(model_folder(tower.init) / "tokenizer.json") if tower and tower.init else None


def prepare(cfg: RunConfig, clock: Clock) -> EncodedDataset:
    """Open the dataset of a config, after making what is missing. Codec and tokenizer are checked first."""
    check_output_paths(cfg)
    return encode(cfg, clock, load_codec(cfg.codec), configured_tokenizer(cfg))


def encode(cfg: RunConfig, clock: Clock, codec: Codec, tokenizer: Tokenizer | None) -> EncodedDataset:
    """As `prepare`, with a given codec and tokenizer. tokenizer=None: train one on the corpus."""
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
            f"{dataset.info['skipped']} utterances were skipped: {dataset.folder}/skipped.jsonl lists "
            "them with the reasons"
        )
    return replace(dataset, pattern=cfg.codec.pattern)
