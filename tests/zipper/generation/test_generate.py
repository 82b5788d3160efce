"""Cached equals uncached, batched equals single."""

import math
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import as_batch, config, interleaving, tiny_model, transcribe
from slow import STATISTICS, prompts, slow_greedy
from zipper.config import RunConfig, SamplingConfig, TowerConfig
from zipper.data.documents import Document, Segment
from zipper.data.statistics import DatasetStatistics, measure_statistics
from zipper.errors import ConfigError
from zipper.evaluation.task import mismatched_pairs, mismatched_rows
from zipper.generation.cache import KVCache
from zipper.generation.generate import MAX_SEGMENTS, GenerationOutput, _length, finished, generate, prefill
from zipper.generation.rows import generate_rows
from zipper.modalities.layout import TokenLayout
from zipper.models.resolve import resolve
from zipper.training.module import ZipperModule


@given(
    names=st.sampled_from([("text", "speech"), ("speech", "text"), ("text", "speech", "music")]),
    position=st.sampled_from(["none", "rotary"]),
    layers=st.integers(4, 6),
    parts=st.integers(1, 8),
    multimodal=st.booleans(),
    used=st.sampled_from([None, [("text", "speech")]]),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=25)
def test_cached_states_equal_uncached_ones_for_any_interleaving(
    names, position, layers, parts, multimodal, used, seed
):
    """And whatever directions are in use."""
    model = tiny_model(names, layers=layers, position=position)
    model.used = used or model.used
    doc = interleaving(model, random.Random(seed), parts, multimodal)
    batch = as_batch(model, [doc])
    whole = model(batch)
    cache = KVCache(model, batch.multimodal)
    done = dict.fromkeys(names, 0)
    for part in doc.segments:
        # Once token by token, once the segment at a time.
        pieces = part.tokens.split(1) if len(part.tokens) % 2 else [part.tokens]
        for piece in pieces:
            valid = torch.ones(1, len(piece), dtype=torch.bool)
            states = cache.extend(part.modality, piece[None], valid)
            start = done[part.modality]
            expected = whole[part.modality][:, start : start + len(piece)]
            torch.testing.assert_close(states, expected, rtol=0, atol=1e-10)
            done[part.modality] += len(piece)


ORDERS = [["text"], ["speech"], ["text", "speech"], ["speech", "text", "speech"]]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("guidance", [1.0, 9.0])
def test_greedy_writing_is_the_same_cached_or_not_batched_or_single(order, parts, guidance):
    model, how = tiny_model(), {name: SamplingConfig(guidance=guidance) for name in ("text", "speech")}
    given = alternating(model, 3, "text" if order[0] == "speech" else "speech", parts)
    assert len({tuple(len(s.tokens) for s in p.segments) for p in given}) > 1
    together = generate(model, given, order, STATISTICS, how)
    plain = generate(model, given, order, STATISTICS)
    assert (guidance == 1) == all(
        torch.equal(a.tokens, b.tokens)
        for one, other in zip(plain, together, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    for doc, segments in zip(given, together, strict=True):
        (alone,) = generate(model, [doc], order, STATISTICS, how)
        assert [s.modality for s in segments] == order
        hop = doc.segments[-1]
        for one, other in zip(segments, alone, strict=True):
            assert torch.equal(one.tokens, other.tokens)
            assert one.finish_reason == other.finish_reason
            cap = STATISTICS.cap(one.modality, hop.modality, _length(model, hop.modality, hop.tokens))
            read = Document(doc.id, [hop], doc.multimodal)
            assert torch.equal(one.tokens, slow_greedy(model, read, one.modality, cap, guidance))
            hop = Segment(one.modality, one.tokens, one.tokens >= 0, 1.0)


def alternating(model, count, last, parts):
    """Prompts of so many segments, text and speech by turns, whose last one is of that modality."""
    other = {"text": "speech", "speech": "text"}
    expected = [last if (parts - 1 - i) % 2 == 0 else other[last] for i in range(parts)]
    made, seed = [], 0
    while len(made) < count:
        doc, seed = interleaving(model, random.Random(seed), parts), seed + 1
        if [s.modality for s in doc.segments] == expected:
            made.append(doc)
    return made


def test_the_reason_of_every_stop_is_told():
    model = tiny_model(layers=3)
    towers = {name: TokenLayout.of(model.cfg.towers[name]) for name in model.names}
    speech = towers["speech"]
    with torch.no_grad():
        weight = model.tower("speech").embedding.weight
        model.tower("speech").norm.weight.zero_()
        model.tower("speech").norm.weight[0] = 1.0
        weight[:, 0] = 0.0
    (doc,) = prompts(model, 1, "text")

    def stop(statistics: DatasetStatistics) -> GenerationOutput:
        return generate(model, [doc], ["speech"], statistics)[0][0]

    # All logits are alike but that of one token of codebook 0: it is written for ever, or at once.
    state = prefill(model, [doc]).extend("speech", torch.full((1, 1, 3), speech.bos), torch.ones(1, 1) > 0)
    sign = float(state[0, -1, 0].sign())
    weight.data[speech.eos, 0] = 5.0 * sign
    ended = stop(STATISTICS)
    assert (ended.finish_reason, ended.content.shape[1]) == ("stop", 0)
    weight.data[speech.eos, 0] = -5.0 * sign
    model.tower("speech").norm.weight.data.zero_()
    weight.data[0] = 0.0
    capped, cap = stop(STATISTICS), STATISTICS.cap("speech", "text", len(doc.segments[-1].tokens) - 2)
    assert (capped.finish_reason, capped.content.shape[1]) == ("length", cap)
    long = {**STATISTICS.longest, "speech": 90}
    looped = stop(replace(STATISTICS, longest=long, ratio={}, repeats={"speech": [2, 2]}))
    assert looped.finish_reason == "repetition"
    assert looped.content.shape[1] == 1 + math.ceil(1.5 * 2) + 1  # the first, and what patience allows


def test_a_next_modality_head_lets_each_row_go_on_as_it_likes_within_what_was_trained():
    model = tiny_model(("text", "speech", "music"), switch=True)
    model.used = [pair for pair in model.pairs if pair != ("music", "text")]
    given = prompts(model, 12)
    with pytest.raises(ConfigError, match=r"decode\.text\.candidates with order=auto"):
        generate(model, given, "auto", STATISTICS, {"text": SamplingConfig(temperature=1, candidates=3)})
    together = generate(model, given, "auto", STATISTICS)
    shapes = {tuple(s.modality for s in segments) for segments in together}
    assert len(shapes) > 3
    for doc, segments in zip(given, together, strict=True):
        (alone,) = generate(model, [doc], "auto", STATISTICS)
        assert [s.tokens.tolist() for s in segments] == [s.tokens.tolist() for s in alone]
        read = [doc.segments[-1]]  # the latest hop: what was read, then what was written
        for turn in range(min(len(segments) + 1, MAX_SEGMENTS)):
            batch = as_batch(model, [Document(doc.id, read, True)])
            name = read[-1].modality
            row = int(batch.streams[name].valid.sum()) - 1
            logits = model.next_modality_heads[name](model(batch)[name][0, row])
            trained = [i for i, other in enumerate(model.names) if (other, name) in model.used]
            choice = max([*trained, 3], key=lambda i, logits=logits: float(logits[i]))
            expected = segments[turn].modality if turn < len(segments) else None
            assert (model.names[choice] if choice < 3 else None) == expected
            if expected:
                read = [read[-1], segments[turn].as_prompt()]


def test_with_order_auto_one_modality_may_be_guided():
    model = tiny_model(("text", "speech", "music"), switch=True)
    given, how = prompts(model, 12), {"speech": SamplingConfig(guidance=1.7)}
    with pytest.raises(ConfigError, match=r"beam search with order=auto .*decode\.speech\.guidance"):
        generate(model, given, "auto", STATISTICS, {**how, "text": SamplingConfig(beams=2)})
    chosen = set()
    for doc, segments in zip(given, generate(model, given, "auto", STATISTICS, how), strict=True):
        order = [one.modality for one in segments]
        [named] = generate(model, [doc], order, STATISTICS, how) if order else [[]]
        assert [s.tokens.tolist() for s in segments] == [s.tokens.tolist() for s in named]
        chosen |= {*order}
    assert chosen == {*model.names}


def test_the_best_candidate_does_not_depend_on_the_batch_and_needs_the_way_back():
    model, how = tiny_model(), {"speech": SamplingConfig(temperature=1, candidates=3)}
    several = prompts(model, 3, "text")
    together = generate(model, several, ["speech"], STATISTICS, how)
    for doc, [found] in zip(several, together, strict=True):
        [[alone]] = generate(model, [doc], ["speech"], STATISTICS, how)
        assert torch.equal(alone.tokens, found.tokens)
    model.used = [("speech", "text")]
    with pytest.raises(ConfigError, match="was not trained to find text after speech"):
        generate(model, several, ["speech"], STATISTICS, how)
    with pytest.raises(ConfigError, match=r"candidates=3 .*but speech>text is not in train\.tasks"):
        config("train.tasks={asr: 0, tts: 1}", "decode.speech={temperature: 1, candidates: 3}")
    config("train.tasks={asr: 1, tts: 1}", "decode.speech={temperature: 1, candidates: 3}")
    with pytest.raises(ConfigError, match=r"model\.modalities=\[\]: a model has one tower at least"):
        config("model.modalities=[]")


def test_what_cannot_be_written_is_refused():
    model = tiny_model()
    (doc,) = prompts(model, 1)
    with pytest.raises(ConfigError, match="no tower for 'music', only for text, speech"):
        generate(model, [doc], ["music"], STATISTICS)
    with pytest.raises(ConfigError, match=r"without model\.next_modality_head=true"):
        generate(model, [doc], "auto", STATISTICS)
    model.used = [("text", "speech")]  # as after recognition alone
    (given,) = prompts(model, 1, "text")
    with pytest.raises(ConfigError, match="not trained to generate speech after text, but text after speech"):
        generate(model, [given], ["speech"], STATISTICS)
    with pytest.raises(ConfigError, match="not trained to generate speech after text"):  # within a chain, too
        generate(model, prompts(model, 1, "speech"), ["text", "speech"], STATISTICS)
    with pytest.raises(ConfigError, match="not trained to generate text after text"):
        generate(model, [given], ["text"], STATISTICS)
    with pytest.raises(ConfigError, match="holds no segment"):
        generate(model, [Document("x", [], True)], ["text"], STATISTICS)


def test_a_layout_without_the_tokens_that_end_it_is_refused():
    with pytest.raises(ConfigError, match=r"specials=\[0, 1\] with codebooks=3: give the ids of BOS"):
        TokenLayout.of(TowerConfig(vocabulary=9, codebooks=3))


def test_recognition_and_speech_do_not_depend_on_the_batch(dataset):
    model, statistics = tiny_model_for(dataset), measure_statistics(dataset)
    rows, how = [dataset.splits["test"][i] for i in range(6)], {"speech": SamplingConfig(1.0, top_k=8)}
    one, some, all_of_them = (transcribe(model, dataset, statistics, rows, batch) for batch in (1, 4, 6))
    assert one == some == all_of_them
    one, some = (
        generate_rows(model, dataset, statistics, rows, ("text", "speech"), batch, how, seed=2)
        for batch in (1, 4)
    )
    assert [w.tokens.tolist() for (w,) in one] == [w.tokens.tolist() for (w,) in some]


def tiny_model_for(dataset):
    cfg = RunConfig()
    cfg.train.tasks = {"asr": 1.0, "tts": 1.0}
    cfg.model.towers = {
        n: TowerConfig(layers=2, width=16, heads=2, kv_heads=2, hidden=16) for n in ("text", "speech")
    }
    cfg.model.zip.heads = 2
    torch.manual_seed(0)
    model = ZipperModule.of(resolve(cfg, dataset), measure_statistics(dataset)).model.double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def test_shuffling_gives_every_sentence_another_ones_audio(dataset):
    rows = [dataset.splits["test"][i] for i in range(6)]
    audio_rows = mismatched_rows(rows)
    assert sorted(r["id"] for r in audio_rows) == sorted(r["id"] for r in rows)
    assert all(a["id"] != b["id"] for a, b in zip(rows, audio_rows, strict=True))
    assert mismatched_pairs(rows) == list(zip(rows, audio_rows, strict=True))
    same = [{**row, "text": rows[i % 2]["text"]} for i, row in enumerate(rows)]  # three recordings of each
    pairs = mismatched_pairs(same)
    assert len(pairs) < len(same)
    assert all(own["text"] != other["text"] for own, other in pairs)
    assert mismatched_pairs(same[::2]) == mismatched_pairs(rows[:1]) == []


@torch.no_grad()
def test_the_best_candidate_is_that_from_which_the_prompt_is_likeliest():
    """Equal to a slow choice among the samples, which differ."""
    model, how = tiny_model(layers=3), SamplingConfig(temperature=2)
    for doc in prompts(model, 4, "text"):
        [[best]] = generate(
            model, [doc], ["speech"], STATISTICS, {"speech": replace(how, candidates=4)}, seed=1
        )
        each = [replace(doc, id=f"{doc.id}/0/{at}") for at in range(4)]
        found = [one for [one] in generate(model, each, ["speech"], STATISTICS, {"speech": how}, seed=1)]
        assert len({str(one.tokens.tolist()) for one in found}) > 1
        (given,) = doc.segments
        ids, likely = given.tokens[1:, 0], []
        for one in found:
            states = model(as_batch(model, [Document("x", [one.as_prompt(), given], True)]))["text"][0, :-1]
            shares = model.tower("text").logits(states)[:, 0].log_softmax(-1)
            likely.append(float(shares.gather(1, ids[:, None]).sum()))
        assert torch.equal(best.tokens, found[likely.index(max(likely))].tokens)


def test_an_end_that_was_chosen_is_told_from_one_that_the_limit_forced():
    layout = TokenLayout.after(6, 1)
    for length, reason in ((3, "stop"), (4, "stop"), (5, "length")):  # at most 5
        tokens = layout.tokens(torch.zeros(1, length, dtype=torch.int64))
        assert finished("speech", layout, tokens, length + 1, False, 5).finish_reason == reason
