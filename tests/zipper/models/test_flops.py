"""Counted from shapes = counted by torch while it runs."""

import random

import pytest
import torch
from test_arms import KINDS
from test_arms import joined as arm
from test_single_decoder import single_decoder
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from conftest import as_batch, interleaving, module_for, tiny_model
from slow import prompts
from zipper.config import TowerConfig
from zipper.data.documents import Document
from zipper.data.schedule import BatchSchedule
from zipper.evaluation.cost import flops_per_token
from zipper.models.flops import document_flops
from zipper.models.lora import freeze_all_but_lora
from zipper.models.losses import stream_loss

PAPER = {"layers": 3, "width": 24, "heads": 4, "kv_heads": 4, "hidden": 64}  # 3 x 64 = 8 x 24: 24 d^2 a token


def one_document(model) -> Document:
    draw = random.Random(3)
    while True:
        document = interleaving(model, draw, 2)
        if len({segment.modality for segment in document.segments}) == 2:
            return document


def tokens_of(document) -> tuple[dict[str, int], dict[str, int]]:
    lengths = {segment.modality: len(segment.tokens) for segment in document.segments}
    return lengths, {name: count - 1 for name, count in lengths.items()}


def counted(model, batch, train: bool) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        states = model(batch)
        loss = sum(stream_loss(model.tower(n), states[n], s) for n, s in batch.streams.items())
        if train:
            loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", ["zipper", "frozen text", "single decoder", "elsewhere", "lora", *KINDS])
@pytest.mark.parametrize("train", [False, True])
def test_counted_from_shapes_equals_torchs_counter(kind, train):
    model = (
        arm(kind)
        if kind in KINDS
        else single_decoder()
        if kind == "single decoder"
        else tiny_model(elsewhere=kind == "elsewhere", lora=2 * (kind == "lora"))
    )
    if kind == "lora":
        freeze_all_but_lora(model.tower("text"))
    if kind == "frozen text":
        model.tower("text").requires_grad_(False)
    forth = one_document(model)
    back = Document("back", forth.segments[::-1], True)  # both directions of the zips, and no padding
    found = [document_flops(model, *tokens_of(document), causal=False) for document in (forth, back)]
    expected = counted(model, as_batch(model, [forth, back]), train)
    assert sum(one.training if train else one.forward for one in found) == expected


def test_equal_to_the_formulas_of_the_paper():
    sizes = {"text": TowerConfig(**PAPER, vocabulary=11, codebooks=1)}
    sizes["speech"] = TowerConfig(
        **{**PAPER, "width": 16, "hidden": 43}, vocabulary=9, codebooks=3, specials=[6, 7, 8]
    )
    text, speech, d_t, d_s, layers = 5, 40, 24, 16, 3
    model = tiny_model(layers=3, projection_depth=3)
    model.cfg.towers.update(sizes)
    for tower in model.cfg.towers.values():
        tower.input_projection = "none"
    model.projections = torch.nn.ModuleDict()
    model.stages, model.used = 2, [("text", "speech")]
    exact = 2 * speech * layers * (3 * d_s * 43 - 8 * d_s**2)  # 43 is not 8 / 3 x 16
    towers = sum(n * 24 * d**2 * layers + 2 * n**2 * d * layers for n, d in ((text, d_t), (speech, d_s)))
    zips = 2 * (text * 20 * d_t**2 + speech * (2 * d_s * d_t + 8 * d_t**2) + 4 * text * speech * d_t)
    found = document_flops(model, {"speech": speech, "text": text}, {}).forward
    assert found == towers + exact + zips


@pytest.mark.parametrize("model", [single_decoder(), arm("insertion")], ids=["single decoder", "insertion"])
def test_a_document_of_one_modality_is_counted(model):
    (document,) = prompts(model, 1, "speech")
    found = document_flops(model, *tokens_of(document), causal=False).forward
    assert found == counted(model, as_batch(model, [document]), False)


def test_flops_of_a_token_are_a_mean_whatever_the_share_of_a_task(dataset):
    model = module_for(dataset).model
    half, whole = (BatchSchedule(dataset, "train", {"asr": share}, 400, 1, 0, 0.0) for share in (0.5, 1.0))
    assert flops_per_token(model, half) == flops_per_token(model, whole)
