"""Zips of a pair that was not trained, made of those of two pairs that were."""

import torch
import torch.nn.functional as F
from torch import nn

from conftest import module_for, tiny_model
from reproduce.three_towers.bridges import (
    BridgedZip,
    Composed,
    both_sides,
    given,
    misplaced,
    pair_batches,
    shares,
)
from reproduce.three_towers.scores import accuracies, in_words
from zipper.models.zip_block import TimePositions


def test_a_bridged_zip_is_the_zip_itself_on_what_the_bridge_projects():
    block = tiny_model(("text", "speech")).zip(0, "text", "speech")
    block.projection, block.source_norm = nn.Identity(), nn.Identity()
    times = TimePositions(torch.arange(5.0)[None].double())
    states, x = torch.randn(1, 5, 16).double(), torch.randn(1, 3, 16).double()
    at, mask = TimePositions(torch.arange(3.0)[None].double()), torch.ones(1, 3, 5, dtype=torch.bool)
    bridge = nn.Linear(7, 16).double()
    bridged, raw = BridgedZip(block, bridge), torch.randn(1, 5, 7).double()
    expected = block(x, at, block.project_source(bridge(raw), times), mask)
    assert torch.equal(bridged(x, at, bridged.project_source(raw, times), mask), expected)
    assert not torch.equal(bridged.project_source(raw, times).key, block.project_source(states, times).key)


def test_a_composed_bridge_adds_what_attention_to_one_token_would_add():
    block = tiny_model(("text", "speech")).zip(0, "text", "speech")
    source, mean = torch.randn(1, 4, 24).double(), torch.randn(16).double()
    at, times = (TimePositions(torch.zeros(1, n).double()) for n in (1, 4))
    mask = torch.zeros(1, 1, 4, dtype=torch.bool)
    mask[..., 2] = True
    added = block.attend(torch.randn(1, 1, 16).double(), at, block.project_source(source, times), mask)
    reader = tiny_model(("text", "speech")).zip(0, "speech", "text")
    found = Composed(block, mean, reader)(source)
    expected = reader.projected(mean + block.attention_gate.tanh() * added[:, 0])
    torch.testing.assert_close(found[:, 2], expected)


def test_states_and_queries_that_are_taken_out_give_what_the_zips_added(dataset):
    model = module_for(dataset, "train.tasks={tts: 1}").model.eval()
    (batch,) = pair_batches(model, dataset, [*dataset.splits["train"]][:4], "tts")
    added = []
    hooks = [
        model.zip(stage, "speech", "text").register_forward_hook(lambda _, given, out: added.append(out))
        for stage in range(model.stages)
    ]
    source, queries = both_sides(model, batch, "speech", "text")
    for hook in hooks:
        hook.remove()
    assert len(added) == model.stages > 0
    for stage, out in enumerate(added):
        reader = model.zip(stage, "speech", "text")
        found = given(reader, queries.states[stage], queries.times, source.states[stage], source)
        valid = batch.streams["speech"].valid
        torch.testing.assert_close(found[valid], out[valid])


def test_a_timestep_shares_in_the_token_that_the_query_before_it_predicts():
    attention = torch.tensor([[[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]]])  # of queries 0 to 2
    text, source = torch.tensor([[True, True, True]]), torch.tensor([[True, True, False]])
    expected = torch.tensor([[[0.0, 0.9, 0.2], [0.0, 0.1, 0.7], [0.0, 0.0, 0.0]]])
    torch.testing.assert_close(shares(attention, text, source), expected)


def test_projected_states_are_misplaced_by_nothing_if_they_are_those_of_the_tokens_and_by_1_at_their_mean():
    tokens = torch.randn(1, 4, 8)
    share = F.one_hot(torch.tensor([[1, 1, 3, 2, 0]]), 4).float()
    right = tokens[:, [1, 1, 3, 2, 0]]
    assert misplaced(right, tokens, share) == 0
    torch.testing.assert_close(misplaced(right.mean(1, keepdim=True), tokens, share), torch.tensor(1.0))


def test_words_are_counted_one_by_one():
    rows = [{"text": "page two of the red book shows three dogs"}] * 2
    found = accuracies(rows, ["page two of the blue book shows three dogs", "page two of the red book"])
    assert found["number"] == 0.5
    assert found["exact"] == found["color"] == 0
    assert found["slots"] == 3 / 8
    assert found["wer"] == round(4 / 18, 4)


def test_a_transcript_with_digits_is_read_in_words():
    assert in_words("Page 3 of the Red Book shows 2 dogs.") == "page three of the red book shows two dogs"
