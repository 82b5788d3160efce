"""Continuous batching: whenever prompts join, each gets what it would get alone."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import tiny_model
from slow import STATISTICS, prompts
from zipper.config import SamplingConfig
from zipper.errors import ConfigError
from zipper.generation.cache import BLOCK
from zipper.generation.continuous import ContinuousBatch
from zipper.generation.generate import generate


@given(
    to=st.sampled_from(["text", "speech"]),
    temperature=st.sampled_from([0.0, 1.3]),
    count=st.integers(1, 6),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=25)
def test_prompts_that_join_at_any_time_get_what_they_would_get_alone(to, temperature, count, seed):
    model, draw = tiny_model(), random.Random(seed)
    decode = {to: SamplingConfig(temperature=temperature)}
    todo = prompts(model, count, "speech" if to == "text" else "text", seed=seed)
    alone = [generate(model, [one], [to], STATISTICS, decode)[0][0] for one in todo]
    batch, rows = ContinuousBatch(model, to, STATISTICS, decode), []
    while len(rows) < count or batch.rows:
        if len(rows) < count and (not batch.rows or draw.random() < 0.2):
            rows += batch.add(todo[len(rows) : len(rows) + draw.randint(1, 2)])
        for left in batch.step():
            assert left.output is not None
    for row, expected in zip(rows, alone, strict=True):
        assert torch.equal(row.output.tokens, expected.tokens)
        assert torch.equal(row.output.content, expected.content)
        assert row.output.finish_reason == expected.finish_reason


def test_memory_follows_what_is_generated_not_what_was():
    model = tiny_model()
    batch, longest = ContinuousBatch(model, "speech", STATISTICS), 0
    for one in prompts(model, 300, "text"):
        batch.add([one])
        batch.step()
        longest = max(longest, batch.cache.length["speech"])
    assert batch.rows  # there always was one
    assert longest < 2 * BLOCK  # of 300 timesteps


def test_beam_search_is_refused():
    with pytest.raises(ConfigError, match="beams=4"):
        ContinuousBatch(tiny_model(), "text", STATISTICS, {"text": SamplingConfig(beams=4)})
