"""A column at a time: the lean step against the layers and zips themselves."""

import pytest
import torch

from conftest import tiny_model
from slow import STATISTICS, prompts
from zipper.generation.cache import BLOCK, KVCache
from zipper.generation.generate import generate


@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 0.2)], ids=str
)
@pytest.mark.parametrize("position", ["none", "sinusoidal", "rotary", "elsewhere", "lora"])
def test_a_column_at_a_time_equals_the_layers_themselves(dtype, close, position, monkeypatch):
    """Three towers in turns, ragged rows of which one is of a single modality, and more columns than the
    buffers begin with; and the two ways of writing may follow each other in one memory."""
    names, elsewhere = ("text", "speech", "music"), position == "elsewhere"
    placed = position if position in ("none", "sinusoidal") else "rotary"
    model = tiny_model(names, position=placed, elsewhere=elsewhere, lora=2 * (position == "lora")).to(dtype)
    monkeypatch.setattr("zipper.generation.cache.compiled", lambda: KVCache._run)
    draw = torch.Generator().manual_seed(3)
    multimodal = torch.tensor([True, True, False])
    lean, plain, mixed = (KVCache(model, multimodal) for _ in range(3))
    plain.compile = True
    for turn, name in enumerate(["text", "music", "speech", "text", "music"]):
        mixed.compile = turn % 2 == 0
        tower = model.cfg.towers[name]
        for _ in range(BLOCK + 9 if name == "speech" else 4):
            tokens = torch.randint(tower.vocabulary, (3, 1, tower.codebooks), generator=draw)
            valid = torch.rand(3, 1, generator=draw) < 0.8
            states = [cache.extend(name, tokens, valid)[valid] for cache in (lean, plain, mixed)]
            torch.testing.assert_close(states[0], states[1], rtol=0, atol=close)
            torch.testing.assert_close(states[2], states[1], rtol=0, atol=close)


def test_a_model_of_nan_still_stops_and_keeps_to_the_rules():
    """A training that has diverged comes to its validation all the same."""
    model = tiny_model()
    for parameter in model.tower("speech").parameters():
        parameter.data.fill_(torch.nan)
    for (spoken,) in generate(model, prompts(model, 2, "text"), ["speech"], STATISTICS):
        assert spoken.finish_reason in ("cap", "loop")
        assert (spoken.content < model.cfg.towers["speech"].vocabulary - 3).all()


def test_a_model_in_training_is_not_written_with():
    model = tiny_model().train()
    with pytest.raises(AssertionError, match="dropout"):
        generate(model, prompts(model, 1, "text"), ["speech"], STATISTICS)
