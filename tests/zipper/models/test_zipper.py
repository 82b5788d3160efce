"""Towers and zips together: order, exact preservation, and that nothing leaks."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import as_batch, interleaving, tiny_model
from zipper.data.documents import Document, Segment
from zipper.models.tower import rotate, rotation

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
