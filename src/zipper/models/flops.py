"""Floating-point operations of a model, 2 a multiply-add: from shapes and lengths alone.

The terms are those of the paper's cost (towers 24 d^2 L a token and 2 N^2 d L of causal attention; zips
20 d_q^2, 2 d_s d_q + 8 d_q^2 and 4 n_q n_s d_q for each active direction), with the real widths of heads and
feed-forwards. Norms, activations, softmaxes and look-ups are left out. Equal to torch's own counter
(tests/test_flops.py), but for a frozen tower without input projection, through whose first layers no gradient
passes.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from zipper.config import TowerConfig
from zipper.models.multimodal import MultimodalModel
from zipper.models.single_decoder import SingleDecoderModel
from zipper.models.zipper import ZipperModel


class Flops(NamedTuple):
    """Of one document."""

    forward: float
    training: float  # forward and backward


class Term(NamedTuple):
    """Operations of a forward pass, and how often a training does as many: 3 times with weights that learn
    (forward, gradient of the input, gradient of the weight) or none at all (attention), else 2 times."""

    forward: float
    times: int


def document_flops(
    model: MultimodalModel, lengths: Mapping[str, int], scored: Mapping[str, int], causal: bool = True
) -> Flops:
    """lengths: tokens of each modality, begin and end included, in the order in which they stand in the
    document; scored: those whose logits are made.

    causal: self-attention that skips the future does half of the work; False: all of it.
    """
    terms = [*_towers(model, lengths, causal), *_heads(model, scored)]
    if isinstance(model, ZipperModel):
        terms += [*_zips(model, lengths)]
    return Flops(sum(t.forward for t in terms), sum(t.forward * t.times for t in terms))


def _towers(model: MultimodalModel, lengths: Mapping[str, int], causal: bool) -> Iterator[Term]:
    backbones: dict[str, int] = {}
    for name, count in lengths.items():
        backbone = model.backbone(name)
        backbones[backbone] = backbones.get(backbone, 0) + count
    for name, count in backbones.items():
        cfg: TowerConfig = model.cfg.towers[name]
        attention = cfg.width * cfg.size * 2 * (cfg.heads + cfg.kv_heads)
        matrices = attention + 3 * cfg.width * cfg.hidden
        yield Term(2 * count * matrices * cfg.layers, _times(model, name))
        sides = 4 * cfg.width + 2 * (cfg.heads + cfg.kv_heads) * cfg.size + 3 * cfg.hidden
        yield Term(2 * count * cfg.lora * sides * cfg.layers, 3)
        yield Term((2 if causal else 4) * count**2 * cfg.size * cfg.heads * cfg.layers, 3)


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
            yield Term(layer, _times(model, name))  # nothing is before it but the embedding
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


def _times(model: MultimodalModel, name: str) -> int:
    return 3 if model.tower(name).embedding.weight.requires_grad else 2
