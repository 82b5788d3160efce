"""Floating-point operations of a model, computed from shapes and lengths; a multiply-add counts as 2.

The terms are those of the paper's cost: towers take 24 d^2 L per token and 2 N^2 d L for causal attention;
zips take 20 d_q^2, 2 d_s d_q + 8 d_q^2 and 4 n_q n_s d_q for each direction in use, with the actual widths of
heads and feed-forwards. Norms, activations, softmaxes and look-ups are not counted. The result equals torch's
own counter (tests/zipper/models/test_flops.py), except for a frozen tower without input projection, whose
first layers have no backward pass.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from zipper.config import TowerConfig
from zipper.models.insertion import DEPTH, InsertionModel
from zipper.models.mixture import MixtureModel
from zipper.models.multimodal import MultimodalModel
from zipper.models.single_decoder import SingleDecoderModel
from zipper.models.zipper import ZipperModel


class Flops(NamedTuple):
    """Operations per document."""

    forward: float
    training: float  # forward and backward


class Term(NamedTuple):
    """Operations of a forward pass, and the factor of a training step: 3 for trained weights (forward,
    gradient of the input, gradient of the weight) and for attention, which has no weights, else 2."""

    forward: float
    times: int


def document_flops(
    model: MultimodalModel, lengths: Mapping[str, int], scored: Mapping[str, int], causal: bool = True
) -> Flops:
    """Operations of a document.

    lengths: tokens of each modality, with BOS and EOS, in document order. scored: tokens whose logits are
    computed. causal: count half of self-attention, as a causal kernel does; False: count all of it.
    """
    terms = [*_towers(model, lengths, causal), *_heads(model, scored)]
    if isinstance(model, ZipperModel):
        terms += [*_zips(model, lengths)]
    if isinstance(model, InsertionModel):
        terms += [*_insertions(model, lengths)]
    return Flops(sum(t.forward for t in terms), sum(t.forward * t.times for t in terms))


def _towers(model: MultimodalModel, lengths: Mapping[str, int], causal: bool) -> Iterator[Term]:
    sequences: dict[str, int] = {}  # tokens that attend to one another
    for name, count in lengths.items():
        backbone = model.backbone(name)
        sequences[backbone] = sequences.get(backbone, 0) + count
    through: Mapping[str, int] = sequences  # tokens by the tower whose layers they run through
    if isinstance(model, InsertionModel):  # inserted ones run through their own tower, too
        through = {**{name: count for name, count in lengths.items() if name != model.answer}, **sequences}
    if isinstance(model, MixtureModel):
        through = lengths
    for name, count in through.items():
        keys = sequences[model.backbone(name)] if isinstance(model, MixtureModel) else count
        cfg: TowerConfig = model.cfg.towers[name]
        attention = cfg.width * cfg.size * 2 * (cfg.heads + cfg.kv_heads)
        matrices = attention + 3 * cfg.width * cfg.hidden
        yield Term(2 * count * matrices * cfg.layers, _times(model, name))
        sides = 4 * cfg.width + 2 * (cfg.heads + cfg.kv_heads) * cfg.size + 3 * cfg.hidden
        yield Term(2 * count * cfg.lora * sides * cfg.layers, 3)
        yield Term((2 if causal else 4) * count * keys * cfg.size * cfg.heads * cfg.layers, 3)


def _heads(model: MultimodalModel, scored: Mapping[str, int]) -> Iterator[Term]:
    for name, count in scored.items():
        cfg = model.cfg.towers[name]
        first = model.joint if isinstance(model, SingleDecoderModel) else cfg.vocabulary
        rows = first + (cfg.codebooks - 1) * cfg.vocabulary
        yield Term(2 * count * rows * cfg.width, _times(model, name))


def _zips(model: ZipperModel, lengths: Mapping[str, int]) -> Iterator[Term]:
    for name, count in lengths.items():
        if name in model.projections:
            layer = 2 * count * model.cfg.towers[name].width ** 2
            # Its input needs no gradient unless the embedding is trained.
            yield Term(layer, _times(model, name))
            yield Term(2 * layer, 3)
    depth, wide = model.cfg.zip.projection_depth, model.cfg.zip.feed_forward
    order = list(lengths)
    for query, source in model.directions_used:
        if source not in order or query not in order[order.index(source) :]:
            continue
        q, s = model.cfg.towers[query].width, model.cfg.towers[source].width
        queries, sources = lengths[query], lengths[source]
        each = queries * (4 * q**2 + 4 * wide * q**2)  # query, output; feed-forward
        each += sources * (2 * s * q + 2 * (depth - 1) * q**2 + 4 * q**2)  # g; keys, values
        each += 4 * queries * sources * q
        yield Term(model.stages * each, 3)


def _insertions(model: InsertionModel, lengths: Mapping[str, int]) -> Iterator[Term]:
    width = model.cfg.towers[model.answer].width
    for name in model.projections:
        count = lengths.get(name, 0)
        yield Term(2 * count * width * (model.cfg.towers[name].width + (DEPTH - 1) * width), 3)


def _times(model: MultimodalModel, name: str) -> int:
    return 3 if model.tower(name).embedding.weight.requires_grad else 2
