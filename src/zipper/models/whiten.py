"""The start of the zips, measured on the towers: what they ask for is whitened, so that all of it is equally
easy to read; what they add is given the scale of what it is added to.

The states of a pre-trained tower are far from round: a few directions hold nearly all of their variance,
and what tells one word from others that are used alike (Helen from Laura) stands in those that hold the
least. A g with random weights passes on the former alone, and learns the latter last.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zipper.config import ZipConfig
from zipper.data.batches import collate
from zipper.data.documents import Document
from zipper.data.schedule import BatchSchedule
from zipper.models.multimodal import MultimodalModel, Pair
from zipper.models.zip_block import ZipBlock
from zipper.models.zipper import ZipperModel

DOCUMENTS = 256  # documents that the zips' start is measured on
FLOOR = 1e-4  # of the mean variance; directions with less are not raised any further
BATCH = 16  # documents


def start_zips(model: MultimodalModel, cfg: ZipConfig, steps: BatchSchedule) -> None:
    """Whitens and rescales the zips of a new model, where its config wants it, by documents of the
    training."""
    if isinstance(model, ZipperModel):
        if cfg.whiten:
            whiten_zips(model, steps.first_documents(DOCUMENTS))
        if cfg.rescale:
            rescale_zips(model, steps.first_documents(DOCUMENTS))


@torch.no_grad()
def rescale_zips(model: ZipperModel, documents: list[Document]) -> None:
    """Multiplies what every zip in use adds by the median RMS, over tokens, of the states that it is added
    to.

    A block adds about 1; the states of a language model of 30 layers are 6 to 30 times that (SmolLM2), and
    gates alone cannot make up for it: tanh ends at 1.
    """
    for block, states in _read(model, documents, lambda block: block.query_norm, 0):
        scale = states.square().mean(-1).sqrt().median()
        block.to_out.weight.mul_(scale)
        narrow = block.feed_forward[-1]
        assert isinstance(narrow, nn.Linear)
        narrow.weight.mul_(scale)


@torch.no_grad()
def whiten_zips(model: ZipperModel, documents: list[Document]) -> None:
    """Sets the first layer of every g in use: after it, states of these documents have mean 0 and covariance
    2 I (or a projection of it), whose scale a ReLU keeps. A few hundred are enough."""
    for block, kept in _read(model, documents, lambda block: block.projection[0], 1):
        linear, states = block.projection[0], kept.double()
        assert isinstance(linear, nn.Linear)
        mean, covariance = states.mean(0), states.T.cov()
        values, vectors = torch.linalg.eigh(covariance)
        scale = values.clamp(min=FLOOR * float(values.mean())).rsqrt()
        turn = nn.init.orthogonal_(torch.empty_like(linear.weight), 2**0.5).double()
        weight = turn @ (vectors * scale) @ vectors.T
        linear.weight.copy_(weight)
        linear.bias.copy_(-(weight @ mean))


def _read(
    model: ZipperModel, documents: list[Document], part: Callable[[ZipBlock], nn.Module], side: int
) -> list[tuple[ZipBlock, Tensor]]:
    """What a part of every zip in use is given: states [N, D] of the valid tokens of the tower on that side
    of the pair (0 asks, 1 is asked), in the documents that its direction looks at. The model is left in
    eval."""
    model.eval()
    device = next(model.parameters()).device
    kept: dict[ZipBlock, list[Tensor]] = {}
    valid: dict[Pair, Tensor] = {}
    hooks = []
    for stage in range(model.stages):
        for pair in model.used:
            block = model.zip(stage, *pair)
            kept[block] = []
            hooks.append(part(block).register_forward_pre_hook(_keeper(kept[block], valid, pair)))
    codebooks = {name: model.cfg.towers[name].codebooks for name in model.names}
    for start in range(0, len(documents), BATCH):
        batch = collate(documents[start : start + BATCH], codebooks).on(device)
        for pair in model.used:
            rows = batch.attends_to[pair]
            valid[pair] = batch.streams[pair[side]].valid[rows] & batch.multimodal[rows, None]
        model(batch)
    for hook in hooks:
        hook.remove()
    return [(block, torch.cat(parts)) for block, parts in kept.items()]


def _keeper(
    kept: list[Tensor], valid: dict[Pair, Tensor], pair: Pair
) -> Callable[[nn.Module, tuple[Tensor]], None]:
    def keep(_: nn.Module, inputs: tuple[Tensor]) -> None:
        kept.append(inputs[0][valid[pair]])

    return keep
