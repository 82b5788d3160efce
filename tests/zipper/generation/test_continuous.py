"""Continuous batching: whenever prompts join, each gets what it would get alone."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_single_decoder import single_decoder

from conftest import tiny_model
from slow import STATISTICS, prompts
from zipper.config import SamplingConfig
from zipper.data.documents import Document, Segment
from zipper.errors import ConfigError
from zipper.generation.cache import BLOCK
from zipper.generation.continuous import ContinuousBatch
from zipper.generation.generate import generate
from zipper.generation.stream import stream

# Segments of many lengths, some longer than a block of the cache, and all three ends.
LONG = replace(
    STATISTICS, longest={"text": 60, "speech": 90}, ratio={"text": {"speech": 9}, "speech": {"text": 30}},
    repeats={"speech": [3, 3]},
)  # fmt: skip


@given(
    waits=st.lists(st.integers(0, 30), min_size=1, max_size=9),
    to=st.sampled_from(["text", "speech"]),
    temperature=st.sampled_from([0.0, 1.3]),
    guidance=st.sampled_from([1.0, 1.6]),
    make=st.sampled_from([tiny_model, single_decoder]),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=25)
def test_prompts_that_join_at_any_time_get_what_they_would_get_alone(
    waits, to, temperature, guidance, make, seed
):
    """And whoever leaves unfinished has the beginning of it. waits: timesteps from one prompt to the next."""
    model, draw = make(), random.Random(seed)
    decode = {to: SamplingConfig(temperature=temperature, guidance=guidance)}
    todo = prompts(model, len(waits), "speech" if to == "text" else "text", seed=seed)
    todo = [replace(one, id=str(at)) for at, one in enumerate(todo)]
    batch, rows = ContinuousBatch(model, to, LONG, decode), []
    for one, wait in zip(todo, waits, strict=True):
        rows += batch.add([one])
        for _ in range(wait):
            if batch.rows:
                batch.step()
        if batch.rows and draw.random() < 0.2:
            draw.choice(batch.rows).wanted = False
    while batch.rows:
        batch.step()
    for one, row in zip(todo, rows, strict=True):
        [[alone]] = generate(model, [one], [to], LONG, decode)
        assert torch.equal(torch.stack(row.tokens), alone.tokens[: len(row.tokens)])
        if row.wanted or row.output is not None:
            assert row.output.finish_reason == alone.finish_reason
            assert torch.equal(row.output.tokens, alone.tokens)
            assert torch.equal(row.output.content, alone.content)


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
    several = {"speech": SamplingConfig(temperature=1, candidates=3)}
    with pytest.raises(ConfigError, match="candidates=3"):
        ContinuousBatch(tiny_model(), "speech", STATISTICS, several)
    (doc,) = prompts(model := tiny_model(), 1, "text")
    with pytest.raises(ConfigError, match="candidates=3: the best is known at the end"):
        next(stream(model, doc, "speech", STATISTICS, several))


@pytest.mark.parametrize("to", ["text", "speech"])
def test_long_prompts_that_join_a_short_one_are_read_to_their_end(to):
    model, draw = tiny_model(), torch.Generator().manual_seed(0)
    given = "speech" if to == "text" else "text"
    cfg, decode, todo = model.cfg.towers[given], {to: SamplingConfig(temperature=2)}, []
    for at, count in enumerate((5, 40, 90, 30, 50, 70)):
        tokens = torch.randint(cfg.vocabulary, (count, cfg.codebooks), generator=draw)
        todo.append(Document(str(at), [Segment(given, tokens, tokens >= 0, 0.0)], True))
    batch = ContinuousBatch(model, to, LONG, decode)
    rows = [row for one in todo for row in batch.add([one])]
    while batch.rows:
        batch.step()
    for one, row in zip(todo, rows, strict=True):
        [[alone]] = generate(model, [one], [to], LONG, decode)
        assert torch.equal(row.output.tokens, alone.tokens)


@pytest.mark.parametrize(("temperature", "guidance"), [(0.0, 1.0), (1.3, 1.0), (0.0, 1.2)])
def test_a_stream_joined_is_the_segment_and_each_piece_is_a_frame(temperature, guidance):
    how = {"speech": SamplingConfig(temperature, guidance=guidance)}
    model, longest = tiny_model(seed=4), 0
    for prompt in prompts(model, 5, "text"):
        [[whole]] = generate(model, [prompt], ["speech"], LONG, how)
        frames = [*stream(model, prompt, "speech", LONG, how)]
        assert torch.equal(torch.cat([whole.content[:, :0], *frames], dim=1), whole.content)
        assert all(frame.shape == (3, 1) for frame in frames)
        longest = max(longest, len(frames))
    assert longest > 10  # `tiny_model()` says nothing at all
