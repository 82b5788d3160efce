"""Perplexity of a modality alone, and the loss of a split, equal to slow sums."""

import math

import pytest
import torch
from test_data import BOOKS

from conftest import module_for
from zipper.data.batches import collate
from zipper.data.documents import document
from zipper.evaluation.perplexity import split_loss, unimodal_perplexity


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
