"""Data-dependent initialisation of zips: the source states are whitened, and the output gets the scale of the
query tower's states.

The states of a pre-trained tower are anisotropic: a few directions hold nearly all variance, while the
directions that separate words of similar use (Helen, Laura) hold the least. A random projection g passes
mainly the former, and learns the latter last.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from zipper.config import ZipConfig
from zipper.data.batches import collate, has_direction
from zipper.data.documents import Document
from zipper.data.schedule import BatchSchedule
from zipper.models.multimodal import MultimodalModel, Pair
from zipper.models.zip_block import ZipBlock
from zipper.models.zipper import ZipperModel

DOCUMENTS = 256  # documents for the initialisation
FLOOR = 1e-4  # minimum variance, relative to the mean
BATCH = 16  # documents


def start_zips(model: MultimodalModel, cfg: ZipConfig, steps: BatchSchedule) -> None:
    """Whiten and rescale the zips of a new model on training documents, if its config says so."""
    if isinstance(model, ZipperModel) and model.stages:
        if cfg.whiten:
            whiten_zips(model, steps.first_documents(DOCUMENTS))
        if cfg.rescale:
            rescale_zips(model, steps.first_documents(DOCUMENTS))


@torch.no_grad()
def rescale_zips(model: ZipperModel, documents: list[Document]) -> None:
    """Multiply the output of every zip in use by the median RMS, over tokens, of the query tower's states.

    The output of a block has an RMS of about 1. The states of a language model of 30 layers are 6 to 30 times
    larger (SmolLM2), and a gate cannot compensate, because tanh is at most 1.
    """
    for block, states in _record_inputs(model, documents, lambda block: block.query_norm, 0):
        scale = float(states.square().mean(-1).sqrt().median())
        narrow = block.feed_forward[-1]
        assert isinstance(narrow, nn.Linear)
        for linear in (block.to_out, narrow):
            linear.weight.mul_(scale / block.scale)
        block.scale = scale


@torch.no_grad()
def whiten_zips(model: ZipperModel, documents: list[Document]) -> None:
    """Set the first layer of every g in use so that the source states of these documents get mean 0 and
    covariance 2 I (or a projection of it), a scale that a ReLU preserves. A few hundred documents suffice."""
    for block, kept in _record_inputs(model, documents, lambda block: block.projection[0], 1):
        linear, states = block.projection[0], kept.double()
        assert isinstance(linear, nn.Linear)
        mean, covariance = states.mean(0), states.T.cov()
        values, vectors = torch.linalg.eigh(covariance)
        scale = values.clamp(min=FLOOR * float(values.mean())).rsqrt()
        turn = nn.init.orthogonal_(torch.empty_like(linear.weight), 2**0.5).double()
        weight = turn @ (vectors * scale) @ vectors.T
        linear.weight.copy_(weight)
        linear.bias.copy_(-(weight @ mean))


def _record_inputs(
    model: ZipperModel, documents: list[Document], part: Callable[[ZipBlock], nn.Module], side: int
) -> list[tuple[ZipBlock, Tensor]]:
    """Inputs of one part of every new zip in use (not of those of `model.init`): states [N, D] of the valid
    tokens of one tower of the pair (side 0: query, 1: source), in the documents that its direction attends
    in, or in all if there are none. Leaves the model in eval mode.
    """
    pairs = [pair for pair in model.used if not {*pair} <= {*model.cfg.kept}]
    model.eval()
    device = next(model.parameters()).device
    kept: dict[ZipBlock, list[Tensor]] = {}
    valid: dict[Pair, Tensor] = {}
    hooks = []
    for stage in range(model.stages):
        for pair in pairs:
            block = model.zip(stage, *pair)
            kept[block] = []
            hooks.append(part(block).register_forward_pre_hook(partial(_keep, kept[block], valid, pair)))
    own = {pair: [has_direction(one, *pair) for one in documents] for pair in pairs}
    own |= {pair: [True] * len(documents) for pair, having in own.items() if not any(having)}
    for start in range(0, len(documents), BATCH):
        batch = collate(documents[start : start + BATCH], model.cfg.codebooks).on(device)
        for pair in pairs:
            rows = batch.attends_to[pair]  # all, if none of the batch has the direction
            seen = batch.multimodal & torch.tensor(own[pair][start : start + BATCH], device=device)
            valid[pair] = batch.streams[pair[side]].valid[rows] & seen[rows, None]
        model(batch)
    for hook in hooks:
        hook.remove()
    return [(block, torch.cat(parts)) for block, parts in kept.items()]


def _keep(
    kept: list[Tensor], valid: dict[Pair, Tensor], pair: Pair, _: nn.Module, inputs: tuple[Tensor]
) -> None:
    kept.append(inputs[0][valid[pair]])
