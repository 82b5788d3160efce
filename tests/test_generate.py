"""Cached equals uncached, batched equals single."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import as_batch, interleaving, tiny_model
from zipper.data.document import Document
from zipper.errors import ZipperError
from zipper.evaluate.asr import recognise, shuffled
from zipper.generate.cache import Memory
from zipper.generate.text import write_text


@given(
    names=st.sampled_from([("text", "speech"), ("speech", "text"), ("text", "speech", "music")]),
    position=st.sampled_from(["none", "sinusoidal", "rotary"]),
    layers=st.integers(4, 6),
    parts=st.integers(1, 8),
    multimodal=st.booleans(),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=25)
def test_cached_states_equal_uncached_ones_for_any_interleaving(
    names, position, layers, parts, multimodal, seed
):
    model = tiny_model(names, layers=layers, position=position)
    doc = interleaving(model, random.Random(seed), parts, multimodal)
    batch = as_batch(model, [doc])
    whole = model(batch)
    memory = Memory(model, batch.multimodal)
    done = dict.fromkeys(names, 0)
    for part in doc.segments:
        # Once token by token, once the segment at a time.
        pieces = part.tokens.split(1) if len(part.tokens) % 2 else [part.tokens]
        for piece in pieces:
            valid = torch.ones(1, len(piece), dtype=torch.bool)
            states = memory.extend(part.modality, piece[None], valid)
            start = done[part.modality]
            expected = whole[part.modality][:, start : start + len(piece)]
            torch.testing.assert_close(states, expected, rtol=0, atol=1e-10)
            done[part.modality] += len(piece)


def test_directions_that_are_not_in_use_stay_out_of_the_cache_too():
    model = tiny_model()
    model.used = [("text", "speech")]
    doc = interleaving(model, random.Random(7), 7)
    batch = as_batch(model, [doc])
    memory, whole, done = Memory(model, batch.multimodal), model(batch), dict.fromkeys(model.names, 0)
    for part in doc.segments:
        valid = torch.ones(1, len(part.tokens), dtype=torch.bool)
        start, done[part.modality] = done[part.modality], done[part.modality] + len(part.tokens)
        states = memory.extend(part.modality, part.tokens[None], valid)
        torch.testing.assert_close(
            states, whole[part.modality][:, start : done[part.modality]], rtol=0, atol=1e-10
        )


def uncached_greedy(model, prompt: Document, begin: int, end: int, cap: int) -> list[int]:
    """The whole Zipper over the whole document for every new subword."""
    ids: list[int] = []
    kind = prompt.segments[0].__class__
    while len(ids) < cap:
        tokens = torch.tensor([begin, *ids])[:, None]
        doc = Document("x", [*prompt.segments, kind("text", tokens, tokens >= 0, 1.0)], prompt.multimodal)
        batch = as_batch(model, [doc])
        row = int(batch.streams["text"].valid.sum()) - 1
        logits = model.tower("text").logits(model(batch)["text"][0, row])[0]
        logits[begin] = float("-inf")
        token = int(logits.argmax())
        if token == end:
            break
        ids.append(token)
    return ids


def speech_prompts(model, count: int) -> list[Document]:
    draw, out = random.Random(11), []
    while len(out) < count:
        doc = interleaving(model, draw, 1)
        if doc.segments[0].modality == "speech":
            out.append(doc)
    return out


def test_greedy_text_is_the_same_cached_or_not_batched_or_single():
    model = tiny_model()
    prompts = speech_prompts(model, 8)
    caps = [12, 3, 12, 12, 7, 12, 0, 12]
    together = write_text(model, prompts, 0, 1, caps)
    for prompt, cap, out in zip(prompts, caps, together, strict=True):
        (alone,) = write_text(model, [prompt], 0, 1, [cap])
        assert out == alone
        assert out.ids == uncached_greedy(model, prompt, 0, 1, cap)
        assert len(out.ids) <= cap
        assert out.stopped == ("cap" if len(out.ids) == cap else "end")
    assert len({len(p.segments[0].tokens) for p in prompts}) > 1
    assert len({tuple(out.ids) for out in together}) > 2


def test_begin_is_never_written():
    model = tiny_model()
    with torch.no_grad():
        model.tower("text").embedding.weight[0] *= 100  # begin would win most steps
    for out in write_text(model, speech_prompts(model, 6), 0, 1, [10] * 6):
        assert 0 not in out.ids


def test_prompts_of_different_order_are_refused():
    model = tiny_model()
    speech = speech_prompts(model, 1)[0]
    other = Document("x", speech.segments * 2, True)
    with pytest.raises(ZipperError, match="same modalities in the same order"):
        write_text(model, [speech, other], 0, 1, [2, 2])


def test_recognition_does_not_depend_on_the_batch(store):
    model = tiny_model_for(store)
    rows = [store.splits["test"][i] for i in range(6)]
    assert (
        recognise(model, store, rows, 6)
        == recognise(model, store, rows, 1)
        == recognise(model, store, rows, 4)
    )


def tiny_model_for(store):
    from zipper.schema import RunConfig, TasksConfig, TowerConfig
    from zipper.train.module import ZipperModule
    from zipper.train.resolve import rates, resolve

    cfg = RunConfig()
    cfg.train.tasks = TasksConfig(asr=1.0)
    cfg.model.towers = {
        n: TowerConfig(layers=2, width=16, heads=2, kv_heads=2, hidden=16) for n in ("text", "speech")
    }
    cfg.model.zip.heads = 2
    torch.manual_seed(0)
    model = ZipperModule.of(resolve(cfg, store), rates(store), store.fingerprint).model.double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def test_shuffling_gives_every_sentence_another_ones_audio(store):
    rows = [store.splits["test"][i] for i in range(6)]
    heard = shuffled(rows)
    assert sorted(r["id"] for r in heard) == sorted(r["id"] for r in rows)
    assert all(a["id"] != b["id"] for a, b in zip(rows, heard, strict=True))
