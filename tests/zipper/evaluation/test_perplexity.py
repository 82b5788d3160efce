"""Perplexity of a modality alone, and the loss of a split, equal to slow sums."""

import math
from dataclasses import replace

import pytest
import torch

from conftest import config, module_for
from zipper.data.batches import collate
from zipper.data.documents import document
from zipper.evaluation.perplexity import split_loss, unimodal_perplexity
from zipper.evaluation.result import chosen_rows

BOOKS = {"text": 1, "speech": 3}


def test_perplexity_is_that_of_a_token_of_any_codebook(dataset):
    """Equal to a slow sum, one document at a time."""
    module = module_for(dataset, "train.tasks={asr: 1, tts: 1}")
    model = module.model.eval()
    rows = dataset.splits["test"]
    for name in BOOKS:
        nats = []
        for row in rows:
            doc = document(dataset, row, name, 0.0)
            (part,) = doc.segments
            with torch.no_grad():
                shares = model.tower(name).logits(model(collate([doc], BOOKS))[name])[0].log_softmax(-1)
            for t, q in part.scored.nonzero().tolist():
                nats.append(-float(shares[t - 1, q, part.tokens[t, q]]))
        found = unimodal_perplexity(model, dataset, module.cfg, name)
        assert found == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-5)


def test_the_loss_of_a_split_is_the_mean_over_scored_tokens(dataset):
    module = module_for(dataset, "train.tasks={asr: 1, tts: 1}", "train.tokens=100")
    model, nats = module.model.eval(), []
    for row in dataset.splits["test"]:
        for task, name in (("asr", "text"), ("tts", "speech")):
            doc = document(dataset, row, task, 0.0)
            part = doc.segments[1]
            with torch.no_grad():
                shares = model.tower(name).logits(model(collate([doc], BOOKS))[name])[0].log_softmax(-1)
            for t, q in part.scored.nonzero().tolist():
                nats.append(-float(shares[t - 1, q, part.tokens[t, q]]))
    assert split_loss(model, dataset, module.cfg) == pytest.approx(sum(nats) / len(nats), rel=1e-5)


def test_losses_of_the_training_split_are_those_of_what_is_trained_on(dataset):
    """Of `data.only` utterances, and for each task of the corpora that it takes."""
    train = dataset.splits["train"]
    subsets = ["librispeech/a"] * 8 + ["libritts/a"] * (len(train) - 8)
    rows = train.remove_columns("subset").add_column("subset", subsets)
    given = replace(dataset, splits={**dataset.splits, "train": rows})
    some = replace(dataset, splits={**dataset.splits, "train": train.select(range(8))})
    words = ["evaluate.split=train", "train.tasks={asr: 1}", "data.corpus=librispeech+libritts"]
    module = module_for(dataset, *words)
    model, corpora = module.model.eval(), config(*words, "data.tasks={asr: [librispeech]}")
    assert split_loss(model, given, corpora) == pytest.approx(split_loss(model, some, module.cfg), rel=1e-6)
    few, first = config(*words[:2], "data.only=8"), config(*words[:2])
    assert split_loss(model, dataset, few) == pytest.approx(split_loss(model, some, first), rel=1e-6)
    alone = [unimodal_perplexity(model, one, cfg, "text") for one, cfg in ((dataset, few), (some, first))]
    assert alone[0] == pytest.approx(alone[1], rel=1e-6)
    fewer = config(*words[:2], "data.only=4")
    assert [len(chosen_rows(dataset, fewer, "asr", split)) for split in ("train", "dev")] == [4, 6]


def test_a_modality_alone_may_be_longer_than_the_steps_of_the_training(dataset):
    """Its perplexity is computed after the training of other tasks, which checked their own lengths."""
    module = module_for(dataset, "train.tasks={asr: 1, tts: 1}")
    found = []
    for tokens in (module.cfg.train.tokens, 20):
        cfg = replace(module.cfg, train=replace(module.cfg.train, tokens=tokens))
        found.append(unimodal_perplexity(module.model, dataset, cfg, "speech"))
    assert found[1] == pytest.approx(found[0], rel=1e-5)
