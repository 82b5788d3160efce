"""Towers and zips together: order, exact preservation, and that nothing leaks."""

import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conftest import RATES, as_batch, interleaving, tiny_model
from zipper.config import TowerConfig
from zipper.data.documents import Document, Segment
from zipper.models.tower import Tower, cross_entropy, rotate, rotation
from zipper.models.zipper import InputProjection, recorded_attention

TWO, THREE = ("text", "speech"), ("text", "speech", "music")


@given(st.sampled_from([TWO, THREE]), st.integers(0, 2**20), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=8)
def test_no_gradient_comes_from_later_tokens_padding_or_neighbours(names, seed, own, other):
    draw = random.Random(seed)
    model = tiny_model(names, seed=seed % 5)
    batch = as_batch(model, [interleaving(model, draw, parts) for parts in (own, other)])
    embedded = {}
    for name in names:
        model.tower(name).embedding.register_forward_hook(
            lambda _, __, out, name=name: embedded.update({name: out.requires_grad_()})
        )
    states = model(batch)
    for query in names:
        stream = batch.streams[query]
        for t in range(stream.tokens.shape[1]):
            if not stream.valid[0, t]:
                continue
            grads = torch.autograd.grad(
                states[query][0, t].sum(), [embedded[n] for n in names], retain_graph=True, allow_unused=True
            )
            for source, grad in zip(names, grads, strict=True):
                other = batch.streams[source]
                reached = torch.zeros_like(other.valid) if grad is None else grad.abs().sum((-1, -2)) > 0
                allowed = other.valid[0] & (other.order[0] <= stream.order[0, t])
                assert not (reached[0] & ~allowed).any()
                assert not reached[1].any()
                if source == query:
                    assert torch.equal(reached[0], allowed)


@pytest.mark.parametrize("names", [TWO, THREE])
def test_what_stands_before_in_another_modality_is_seen(names):
    draw = random.Random(5)
    model = tiny_model(names)
    batch = as_batch(model, [interleaving(model, draw, 8)])
    changed = {
        n: s._replace(tokens=(s.tokens + 1) % model.cfg.towers[n].vocabulary)
        for n, s in batch.streams.items()
    }
    states = model(batch)
    for source in names:
        mixed = model(batch._replace(streams={**batch.streams, source: changed[source]}))
        for query in set(names) - {source}:
            first = batch.streams[source].order[0][batch.streams[source].valid[0]].min()
            later = batch.streams[query].valid[0] & (batch.streams[query].order[0] > first)
            differs = (mixed[query] != states[query]).any(-1)[0]
            assert torch.equal(differs & batch.streams[query].valid[0], later)


def segment(model, name: str) -> Segment:
    cfg = model.cfg.towers[name]
    tokens = torch.randint(cfg.vocabulary, (5, cfg.codebooks))
    return Segment(name, tokens, tokens >= 0, 1.0)


def test_a_document_of_one_modality_gives_the_towers_own_logits_bit_for_bit():
    draw = random.Random(0)
    model = tiny_model()
    for name in TWO:
        doc = Document("x", [segment(model, name)], False)
        # Beside a multimodal neighbour, which does use projections and zips.
        batch = as_batch(model, [doc, interleaving(model, draw, 4)])
        count = len(doc.segments[0].tokens)
        alone = model.tower(name)(batch.streams[name].tokens)
        together = model(batch)[name]
        assert torch.equal(together[0, :count], alone[0, :count])
        logits = model.tower(name).logits
        assert torch.equal(logits(together)[0, :count], logits(alone)[0, :count])


def test_multimodal_documents_use_the_input_projection_from_their_first_token():
    model = tiny_model()
    draw = random.Random(0)
    doc = interleaving(model, draw, 1)
    name = doc.segments[0].modality
    states = model(as_batch(model, [doc]))[name]
    plain = model(as_batch(model, [Document("x", doc.segments, False)]))[name]
    assert (states[0, 0] != plain[0, 0]).any()


def test_unused_directions_change_nothing_that_is_scored():
    model = tiny_model()
    batch = as_batch(model, [Document("asr", [segment(model, name) for name in ("speech", "text")], True)])
    every = model(batch)["text"]
    model.used = [("text", "speech")]
    assert torch.equal(model(batch)["text"], every)


def test_stages_are_the_fewest_that_all_towers_have_and_layers_left_over_run_last():
    model = tiny_model(THREE, layers=5)
    assert model.stages == 2
    assert [list(model.layers("text", s)) for s in range(3)] == [[0, 1], [2, 3], [4]]
    assert [list(model.layers("music", s)) for s in range(3)] == [[0, 1], [2, 3], []]


@pytest.mark.parametrize("name", TWO)
def test_the_states_that_zips_read_are_those_before_any_update(name):
    """With two stages' worth of layers but one zip, swapping the order of the pairs cannot matter."""
    model = tiny_model()
    batch = as_batch(model, [interleaving(model, random.Random(2), 6)])
    forward = model(batch)
    model.pairs.reverse()
    torch.testing.assert_close(model(batch)[name], forward[name], rtol=0, atol=1e-12)


def test_rotation_is_llamas_and_its_gradient_is_exact():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    by = rotation(torch.arange(5)[None] + torch.tensor([[0], [70]]), 8, 100.0, torch.float64)
    cos, sin = (part.repeat(1, 1, 1, 2) for part in by)
    a, b = x.chunk(2, dim=-1)
    torch.testing.assert_close(rotate(x, by), x * cos + torch.cat([-b, a], dim=-1) * sin, rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(lambda x: rotate(x, by), (x,))
    assert rotate(x.detach().bfloat16(), rotation(torch.arange(5)[None], 8, 100.0, torch.bfloat16)).dtype == (
        torch.bfloat16
    )


def test_a_frozen_tower_below_its_first_zip_keeps_no_graph():
    model = tiny_model()
    model.used = [("text", "speech")]
    model.towers["speech"].requires_grad_(False)
    del model.projections["speech"]
    graphs = []
    for index, layer in enumerate(model.tower("speech").layers):
        layer.register_forward_hook(
            lambda _, __, out, index=index: graphs.append((index, out[0].requires_grad))
        )
    model(as_batch(model, [interleaving(model, random.Random(1), 6)]))
    assert graphs == [(index, False) for index in range(5)]


def test_a_zip_computes_the_documents_in_which_it_sees_something_and_no_others():
    model = tiny_model(("text", "speech"))
    draw = random.Random(5)
    documents = [interleaving(model, draw, 2) for _ in range(24)]
    batch = as_batch(model, documents)
    found: dict[tuple[str, str], int] = {}

    def count(pair):
        return lambda block, inputs, _: found.update({pair: len(inputs[0])})

    for pair in model.pairs:
        model.zip(0, *pair).register_forward_hook(count(pair))
    states = model(batch)
    for query, source in model.pairs:
        sees = [i for i, d in enumerate(documents) if [s.modality for s in d.segments] == [source, query]]
        assert 0 < len(sees) < 24
        assert batch.attends_to[query, source].tolist() == sees
        assert found[query, source] == len(sees)
    for row, document in enumerate(documents):  # and nothing is lost by it
        alone = as_batch(model, [document])
        for name, expected in model(alone).items():
            valid = batch.streams[name].valid[row]
            torch.testing.assert_close(states[name][row][valid], expected[0][alone.streams[name].valid[0]])


def test_a_direction_that_no_document_needs_still_gets_its_zero_gradients():
    model = tiny_model(("text", "speech"))
    parts = [segment(model, name) for name in ("speech", "text")]
    states = model(as_batch(model, [Document("x", parts, True)]))
    sum(state.sum() for state in states.values()).backward()
    for parameter in model.zip(0, "speech", "text").parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_a_token_is_in_the_middle_of_its_span_and_asks_at_the_end_of_the_one_that_it_predicts():
    model = tiny_model()
    model.set_times(RATES, {"text": [i / 8 for i in range(11)]})
    tokens, valid = torch.tensor([[3, 0, 5, 7]])[..., None], torch.tensor([[True, True, True, False]])
    source, query, end = model.times("text", tokens, valid, torch.tensor([[2.0]]))
    assert source.time[0, :3].tolist() == [2 + 1.5 / 8, 2 + 3 / 8, 2 + 5.5 / 8]
    assert query.time[0, :3].tolist() == [
        2 + 3 / 8 + 0.25,
        2 + 3 / 8 + 0.25,
        2 + 1 + 0.25,
    ]  # 4 tokens a second
    assert end.tolist() == [[3.0]]  # padding takes no time


@pytest.mark.parametrize("kind", ["paper", "residual"])
def test_an_input_projection_is_that_of_its_kind(kind):
    torch.manual_seed(0)
    projection, x = InputProjection(kind, 8), torch.randn(2, 5, 8)
    if kind == "residual":
        assert torch.equal(projection(x), x)  # at the start
        nn.init.constant_(projection.gate, 0.8)
    y = projection.mlp(x)
    expected = F.relu(y) if kind == "paper" else x + torch.tanh(torch.tensor(0.8)) * y
    torch.testing.assert_close(projection(x), expected)


def test_what_is_recorded_is_the_mean_over_heads_of_the_weights_of_each_zip():
    model, every = tiny_model(), []
    for stage in range(model.stages):
        block = model.zip(stage, "text", "speech")
        block.register_forward_hook(lambda block, inputs, _: every.append(block.weights(*inputs)))
    with recorded_attention(model, "text", "speech") as found:
        model(as_batch(model, [interleaving(model, random.Random(2), 6)]))
    assert len(found) == len(every) == 2
    for mean, heads in zip(found, every, strict=True):
        torch.testing.assert_close(mean, (heads[:, 0] + heads[:, 1]) / 2)
        assert not torch.allclose(heads[:, 0], heads[:, 1])


@pytest.mark.parametrize("layers", [2, 8])
def test_what_layers_add_at_the_start_does_not_grow_with_their_number(layers):
    torch.manual_seed(0)
    tower = Tower(
        TowerConfig(layers=layers, width=128, heads=4, kv_heads=4, hidden=256, vocabulary=50, codebooks=1)
    )
    for layer in tower.layers:
        for linear in (layer.attention.to_out, layer.feed_forward.down):
            assert float(linear.weight.detach().std()) == pytest.approx(0.02 / (2 * layers) ** 0.5, rel=0.05)


def test_in_bfloat16_losses_and_angles_are_those_of_float32():
    """Logits of bfloat16 have three digits, and it does not tell position 1000 from 1001."""
    torch.manual_seed(0)
    logits, target = (8 * torch.randn(50, 99)).bfloat16(), torch.randint(99, (50,))
    found = cross_entropy(logits, target)
    assert torch.equal(found, F.cross_entropy(logits.float(), target, reduction="none"))
    position = torch.arange(990, 1010)[None]
    for one, exact in zip(
        *(rotation(position, 8, 1e4, t) for t in (torch.bfloat16, torch.float32)), strict=True
    ):
        assert torch.equal(one, exact)


def test_times_are_exact_in_a_model_of_bfloat16():
    """At 30 s its steps are an eighth of a second."""
    model = tiny_model().bfloat16()
    tokens = torch.ones(1, 800, 3, dtype=torch.int64)
    for at in model.times("speech", tokens, torch.ones(1, 800, dtype=torch.bool))[:2]:
        assert at.time.dtype == torch.float32
        assert len({*at.time[0].tolist()}) == 800
