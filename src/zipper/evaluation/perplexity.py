"""Mean loss of a split, and scores of each modality by itself, to measure forgetting."""

import math
from collections.abc import Iterator

import torch

from zipper.config import RunConfig
from zipper.data.batches import Batch
from zipper.data.dataset import EncodedDataset, column
from zipper.data.documents import eligible
from zipper.data.schedule import BatchSchedule
from zipper.data.statistics import DatasetStatistics
from zipper.evaluation.cloze import questions, share_right
from zipper.evaluation.result_file import BeforeAfter, UnimodalScores
from zipper.models.building import build_model, load_pretrained, pretrained_modalities
from zipper.models.losses import stream_loss
from zipper.models.multimodal import MultimodalModel
from zipper.models.tower import cross_entropy


@torch.no_grad()
def split_loss(model: MultimodalModel, dataset: EncodedDataset, cfg: RunConfig) -> float:
    """Mean loss in nats over all scored (token, codebook) pairs of the split. Sets the model to eval."""
    model.eval()
    tasks, train, split = dict.fromkeys(cfg.train.tasks, 1.0), cfg.train, cfg.evaluate.split
    only = cfg.data.only if split == "train" else None
    steps = BatchSchedule(
        dataset, split, tasks, train.tokens, 1, 0, train.prompt_weight, only, corpora=cfg.data.tasks
    )
    loss = weight = 0.0
    for batch in _batches(model, steps):
        states = model(batch)
        loss += sum(
            float(stream_loss(model.tower(name), states[name], batch.streams[name])) for name in model.names
        )
        weight += sum(batch.total.values())
    return loss / weight


def unimodal_scores(
    model: MultimodalModel, dataset: EncodedDataset, statistics: DatasetStatistics, cfg: RunConfig
) -> dict[str, UnimodalScores]:
    """Perplexity of every modality, and cloze scores of text, on single-modality documents of
    cfg.evaluate.split."""
    fresh = build_model(cfg.model, statistics.rates, statistics.seconds)
    load_pretrained(fresh)
    fresh.to(next(model.parameters()).device)
    known = pretrained_modalities(fresh)
    found = {}
    rows = dataset.splits[cfg.evaluate.split]
    for name in model.names:
        if not eligible(dataset, rows, name):  # only kept for its zips (model.init)
            continue
        before = fresh if name in known else None
        tests = questions(dataset, cfg.evaluate.split, name)
        found[name] = UnimodalScores(
            before=None if before is None else unimodal_perplexity(before, dataset, cfg, name),
            after=unimodal_perplexity(model, dataset, cfg, name),
            cloze={
                test: BeforeAfter(
                    before=None if before is None else share_right(before, name, asked),
                    after=share_right(model, name, asked),
                )
                for test, asked in tests.items()
            },
        )
    return found


@torch.no_grad()
def unimodal_perplexity(model: MultimodalModel, dataset: EncodedDataset, cfg: RunConfig, name: str) -> float:
    """Perplexity of one modality's documents. Sets the model to eval."""
    model.eval()
    split, one = cfg.evaluate.split, dataset.modalities[name]
    only = cfg.data.only if split == "train" else None
    # A modality that no task has may be longer than the steps of the training.
    longest = int(column(dataset.splits[split], one.length_column).max()) + one.layout.extra_timesteps
    tokens = max(cfg.train.tokens, longest)
    nats = count = 0.0
    for batch in _batches(model, BatchSchedule(dataset, split, {name: 1.0}, tokens, 1, 0, 0.0, only)):
        target, states = batch.streams[name].target, model(batch)[name]
        due = (target != -100).any(-1)
        logits = model.tower(name).logits(states[due])
        nats += float(cross_entropy(logits, target[due]).double().sum())
        count += float((target != -100).sum())
    return math.exp(nats / count)


def _batches(model: MultimodalModel, steps: BatchSchedule) -> Iterator[Batch]:
    """Batches of one epoch, on the device of the model."""
    device = next(model.parameters()).device
    for step in range(steps.epoch_length(0)):
        yield steps.batch(step, 0, model.cfg.codebooks).on(device)
