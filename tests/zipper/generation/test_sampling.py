"""Drawing and searching: what is chosen among what may stand."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_single_decoder import single_decoder
from torch._dynamo.testing import CompileCounter

from conftest import RATES, as_batch, tiny_model
from slow import STATISTICS, prompts, slow_greedy
from zipper.config import SamplingConfig
from zipper.data.documents import Document, Segment
from zipper.generation.beam import beam_search
from zipper.generation.cache import KVCache
from zipper.generation.generate import _length, generate, prefill
from zipper.generation.sampling import sample
from zipper.generation.stopping import StoppingCriteria
from zipper.modalities.layout import TokenLayout


@pytest.mark.parametrize(
    "how", [SamplingConfig(1.5), SamplingConfig(1.0, top_k=3), SamplingConfig(2.0, top_p=0.6)]
)
def test_sampling_follows_from_the_seed_and_never_leaves_its_modality(how):
    model = tiny_model(layers=3)
    given, decode = prompts(model, 12, "text"), {"speech": how, "text": how}
    together = generate(model, given, ["speech", "text"], STATISTICS, decode, seed=3)
    again = [generate(model, [one], ["speech", "text"], STATISTICS, decode, seed=3)[0] for one in given]
    other = generate(model, given, ["speech", "text"], STATISTICS, decode, seed=4)
    tokens = [[s.tokens.tolist() for s in segments] for segments in together]
    assert tokens == [[s.tokens.tolist() for s in segments] for segments in again]
    assert tokens != [[s.tokens.tolist() for s in segments] for segments in other]
    for speech, text in together:
        assert speech.content.shape[0] == 3
        assert not speech.content.numel() or 0 <= speech.content.min() <= speech.content.max() < 6
        assert not ({0, 1} & set(text.content[0].tolist()))
    assert {s.finish_reason for segments in together for s in segments} >= {"stop", "length"}


@given(
    logits=st.lists(st.floats(-5, 5), min_size=2, max_size=9),
    hidden=st.integers(0, 8),
    temperature=st.floats(0.1, 3),
    top_k=st.one_of(st.none(), st.integers(1, 9)),
    top_p=st.floats(0.01, 1),
    uniform=st.sampled_from([0.0, 0.3, 0.999999, 1 - 2**-24]),
)
def test_a_token_that_may_not_stand_is_never_chosen(logits, hidden, temperature, top_k, top_p, uniform):
    row = torch.tensor(logits)
    row[hidden % len(logits)] = float("-inf")
    how = SamplingConfig(temperature, top_k, top_p)
    assert int(sample(row, how, torch.tensor(uniform))) != hidden % len(logits)


@pytest.mark.parametrize("tiny", [1e-5, 1e-30, 1e-38, 1e-45, 1e-60, 5e-324])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_tiny_temperature_or_share_is_greedy(tiny, dtype):
    row = torch.tensor([1.0, 30.0, 29.0, float("-inf"), -30.0], dtype=dtype)
    for uniform in (0.0, 0.5, 1 - 2**-24):
        for how in (SamplingConfig(tiny), SamplingConfig(1.0, top_p=tiny)):
            assert int(sample(row, how, torch.tensor(uniform))) == 1


@pytest.mark.parametrize("temperature", [1e9, 1e38])
def test_a_huge_temperature_draws_among_what_may_stand(temperature):
    row = torch.tensor([1.0, 30.0, float("-inf"), -30.0]).expand(300, -1)
    drawn = sample(row, SamplingConfig(temperature), torch.arange(300) / 300)
    assert {*drawn.tolist()} == {0, 1, 3}


def test_drawn_shares_are_those_of_the_softmax():
    row = torch.tensor([0.0, 1.0, 2.0, float("-inf")]).expand(20_000, -1)
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    drawn = sample(row, SamplingConfig(0.7), uniform)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, (row[0] / 0.7).softmax(-1), atol=0.01, rtol=0)
    kept = sample(row, SamplingConfig(0.7, top_p=0.5), uniform)
    assert set(kept.tolist()) == {2}
    assert set(sample(row, SamplingConfig(0.7, top_k=2), uniform).tolist()) == {1, 2}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_token_can_be_drawn_in_any_dtype(dtype):
    """As many as a codebook has."""
    uniform = (torch.arange(1024) + 0.5) / 1024
    drawn = sample(torch.zeros(1024, 1024, dtype=dtype), SamplingConfig(1.0), uniform)
    assert len({*drawn.tolist()}) == 1024


def test_a_beam_of_one_is_greedy():
    model = tiny_model()
    given = prompts(model, 6, "speech")
    greedy = [s.tokens.tolist() for (s,) in generate(model, given, ["text"], STATISTICS)]
    caps = [STATISTICS.cap("text", "speech", _length(model, "speech", p.segments[-1].tokens)) for p in given]
    assert greedy == [found.tolist() for found in searched(model, given, caps, 1)]


@pytest.mark.parametrize("build", [tiny_model, single_decoder])
def test_a_wide_beam_finds_the_likeliest_of_all_texts(build):
    """Beams of a Single Decoder share a cache with their prompts. Three tokens: the end after the last is
    free, so two would not show whether the first one's keys follow their beam."""
    model = build().eval()
    given = prompts(model, 3, "speech")
    every = [list(ids) for n in range(4) for ids in itertools.product(range(2, 11), repeat=n)]
    for doc, found in zip(given, searched(model, given, [3, 3, 3], len(every)), strict=True):
        likely = [mean_likelihoods(model, doc, [ids for ids in every if len(ids) == n], 3) for n in range(4)]
        assert found[1:-1, 0].tolist() == every[int(torch.cat(likely).argmax())]


@torch.no_grad()
def searched(model, given: list[Document], caps: list[int], beams: int) -> list[torch.Tensor]:
    layout = TokenLayout.of(model.cfg.towers["text"])
    rows = list(range(len(given)))
    tokens, ended = beam_search(prefill(model, given), "text", layout, rows, caps, beams, append_last=False)
    return [row[: end + 1] for row, end in zip(tokens, ended.tolist(), strict=True)]


@torch.no_grad()
def mean_likelihoods(model, doc: Document, texts: list[list[int]], cap: int) -> torch.Tensor:
    """Log probability a token [N], of N texts of one length and their ends; an end that the cap forces costs
    nothing."""
    tokens = torch.tensor([[0, *ids, 1] for ids in texts])
    segments = [Segment("text", one[:, None], one[:, None] > 0, 1.0) for one in tokens]
    batch = as_batch(model, [Document(doc.id, [*doc.segments, one], True) for one in segments])
    count = int(batch.streams["text"].valid[0].sum())
    states = model(batch)["text"][:, count - tokens.shape[1] : count - 1]
    logits = model.tower("text").logits(states)[:, :, 0]
    logits[..., 0] = float("-inf")
    likely = logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
    return likely[:, : len(texts[0]) if len(texts[0]) == cap else None].sum(1) / likely.shape[1]


def test_a_compiled_step_is_one_graph_and_writes_the_same(monkeypatch):
    """By dynamo alone: no C++ compiler is needed."""
    counter = CompileCounter()
    step = torch.compile(KVCache._run, backend=counter, fullgraph=True, dynamic=False)
    monkeypatch.setattr("zipper.generation.cache.compiled", lambda: step)
    monkeypatch.setattr(KVCache, "set_compiled", lambda cache, on: setattr(cache, "graph", on))  # as on a GPU
    model = tiny_model()
    given = prompts(model, 3, "text")
    plain = generate(model, given, ["speech", "text"], STATISTICS)
    how = {"speech": SamplingConfig(compile=True), "text": SamplingConfig(compile=True)}
    fast = generate(model, given, ["speech", "text"], STATISTICS, how)
    written, expected = ([[s.tokens.tolist() for s in one] for one in several] for several in (fast, plain))
    assert written == expected
    assert 0 < counter.frame_count <= 4  # text and speech, and not every column anew


def test_text_may_be_searched_in_the_middle_of_a_chain():
    model = tiny_model()
    given = prompts(model, 3, "speech")
    out = generate(model, given, ["text", "speech"], STATISTICS, {"text": SamplingConfig(beams=4)})
    for doc, (text, speech) in zip(given, out, strict=True):
        hop = Document(doc.id, [text.as_prompt()], True)
        cap = STATISTICS.cap("speech", "text", text.content.shape[1])
        assert torch.equal(speech.tokens, slow_greedy(model, hop, "speech", cap))


def test_what_is_drawn_for_a_prompt_is_its_own():
    """Two utterances of the same words are two samples."""
    model = tiny_model(layers=3)
    (doc,) = prompts(model, 1, "text")
    same = [replace(doc, id=str(at)) for at in range(8)]
    found = generate(model, same, ["speech"], STATISTICS, {"speech": SamplingConfig(1.5)}, seed=3)
    assert len({str(one.tokens.tolist()) for [one] in found}) > 4


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.lists(st.integers(1, 4), max_size=3))
def test_a_loop_of_any_period_is_found_where_it_has_repeated_too_often(tokens, most):
    criteria, expected = StoppingCriteria(TokenLayout.after(4, 1), [0], np.array([99]), most), False
    for at, token in enumerate(tokens):
        criteria.add(np.array([token]))
        for period, limit in enumerate(most, 1):
            back = range(at, period - 1, -1)
            run = [*itertools.takewhile(lambda i, p=period: tokens[i] == tokens[i - p], back)]
            expected |= len(run) >= limit
        assert bool(criteria.looping[0]) == expected


def test_beams_whose_words_take_different_times_keep_their_own():
    """As fitted to a training, a long word takes longer than a short one."""
    model = tiny_model(seed=1)
    model.set_times(RATES, {"text": [0.05, 0.0, *(0.05 * (1 + 5 * i % 7) for i in range(9))]})
    given = prompts(model, 8, "speech")
    every = [list(ids) for n in range(4) for ids in itertools.product(range(2, 11), repeat=n)]
    for doc, found in zip(given, searched(model, given, [3] * 8, len(every)), strict=True):
        likely = [mean_likelihoods(model, doc, [ids for ids in every if len(ids) == n], 3) for n in range(4)]
        assert found[1:-1, 0].tolist() == every[int(torch.cat(likely).argmax())]
