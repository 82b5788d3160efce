"""Mean cross-entropy loss of a split."""

import torch

from zipper.config import RunConfig
from zipper.data.dataset import EncodedDataset
from zipper.data.schedule import BatchSchedule
from zipper.models.losses import stream_loss
from zipper.models.multimodal import MultimodalModel


@torch.no_grad()
def split_loss(model: MultimodalModel, dataset: EncodedDataset, cfg: RunConfig) -> float:
    """Mean loss in nats over all scored (token, codebook) pairs of the split. Sets the model to eval."""
    model.eval()
    device = next(model.parameters()).device
    tasks = dict.fromkeys(cfg.train.tasks, 1.0)
    steps = BatchSchedule(dataset, cfg.evaluate.split, tasks, cfg.train.tokens, 1, 0, cfg.train.prompt_weight)
    codebooks = {name: cfg.model.towers[name].codebooks for name in model.names}
    loss = weight = 0.0
    for step in range(steps.epoch_length(0)):
        batch = steps.batch(step, 0, codebooks).on(device)
        states = model(batch)
        loss += sum(
            float(stream_loss(model.tower(name), states[name], batch.streams[name])) for name in model.names
        )
        weight += sum(batch.total.values())
    return loss / weight
