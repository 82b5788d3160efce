"""Unimodal perplexity of each modality before and after training, to measure forgetting."""

import math

import torch

from zipper.config import RunConfig
from zipper.data.dataset import EncodedDataset
from zipper.data.schedule import BatchSchedule
from zipper.data.statistics import DatasetStatistics
from zipper.evaluation.result_file import UnimodalPerplexity
from zipper.models.building import build_model, load_pretrained, pretrained_modalities
from zipper.models.multimodal import MultimodalModel
from zipper.models.tower import cross_entropy


def unimodal_perplexities(
    model: MultimodalModel, dataset: EncodedDataset, statistics: DatasetStatistics, cfg: RunConfig
) -> dict[str, UnimodalPerplexity]:
    """Unimodal perplexity of every modality, on single-modality documents of cfg.evaluate.split."""
    fresh = build_model(cfg.model, statistics.rates, statistics.seconds)
    load_pretrained(fresh)
    fresh.to(next(model.parameters()).device)
    known = pretrained_modalities(fresh)
    return {
        name: UnimodalPerplexity(
            before=unimodal_perplexity(fresh, dataset, cfg, name) if name in known else None,
            after=unimodal_perplexity(model, dataset, cfg, name),
        )
        for name in model.names
    }


@torch.no_grad()
def unimodal_perplexity(model: MultimodalModel, dataset: EncodedDataset, cfg: RunConfig, name: str) -> float:
    """Perplexity of one modality's documents. Sets the model to eval."""
    model.eval()
    device = next(model.parameters()).device
    split = cfg.evaluate.split
    only = cfg.data.only if split == "train" else None
    steps = BatchSchedule(dataset, split, {name: 1.0}, cfg.train.tokens, 1, 0, 0.0, only)
    codebooks = {other: cfg.model.towers[other].codebooks for other in model.names}
    nats = count = 0.0
    for step in range(steps.epoch_length(0)):
        batch = steps.batch(step, 0, codebooks).on(device)
        target, states = batch.streams[name].target, model(batch)[name]
        due = (target != -100).any(-1)
        logits = model.tower(name).logits(states[due])
        nats += float(cross_entropy(logits, target[due]).double().sum())
        count += float((target != -100).sum())
    return math.exp(nats / count)
