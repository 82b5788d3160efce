"""The Single Decoder: one stream, a grown vocabulary, equal to itself whichever way it is run."""

import random

import pytest
import torch

from conftest import as_batch, config, interleaving
from slow import STATISTICS, prompts, slow_greedy
from zipper.config import ModelConfig, TowerConfig
from zipper.data.documents import Document
from zipper.errors import ConfigError
from zipper.generation.generate import generate
from zipper.models.resolve import resolve
from zipper.models.single_decoder import SingleDecoderModel
from zipper.models.tower import Tower

SHAPE = {"layers": 3, "width": 24, "heads": 4, "kv_heads": 2, "hidden": 32}


def single_decoder(names: tuple[str, ...] = ("text", "speech"), switch: bool = False) -> SingleDecoderModel:
    """float64, eval, weights large enough to matter."""
    torch.manual_seed(0)
    sizes = {"text": (11, 1, [0, 1]), "speech": (9, 3, [6, 7, 8]), "music": (7, 2, [4, 5, 6])}
    towers = {
        n: TowerConfig(**SHAPE, vocabulary=sizes[n][0], codebooks=sizes[n][1], specials=sizes[n][2])
        for n in names
    }
    cfg = ModelConfig(kind="single_decoder", modalities=list(names), towers=towers, switch=switch)
    model = SingleDecoderModel(cfg).double().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return model


@pytest.fixture
def text_tower() -> Tower:
    torch.manual_seed(1)
    return Tower(TowerConfig(**SHAPE, vocabulary=11, codebooks=1)).double()


def slow_states(model: SingleDecoderModel, document: Document) -> torch.Tensor:
    """All tokens of a document one after the other through the plain decoder: [N, D]"""
    starts = {"text": [0], "speech": [11, 20, 29]}  # rows of each codebook: 11 + 9 in head 0, then 2 x 9
    rows = []
    for segment in document.segments:
        for column in segment.tokens.tolist():
            ids = [start + token for start, token in zip(starts[segment.modality], column, strict=True)]
            rows.append(model.decoder.embedding.weight[ids].sum(0))
    x = torch.stack(rows)[None]
    rotation = model.decoder.rotation(torch.arange(len(rows))[None])
    for layer in model.decoder.layers:
        x = layer(x, rotation)
    return model.decoder.finish(x)[0]


def test_a_batch_equals_each_document_alone_in_one_stream():
    model = single_decoder()
    draw = random.Random(0)
    documents = [interleaving(model, draw, parts) for parts in (1, 2, 3, 4)]
    batch = as_batch(model, documents)
    states = model(batch)
    for row, document in enumerate(documents):
        expected = slow_states(model, document)
        for name, stream in batch.streams.items():
            valid = stream.valid[row]
            torch.testing.assert_close(states[name][row][valid], expected[stream.order[row][valid]])


def test_no_gradient_reaches_a_later_token_or_a_neighbour():
    model = single_decoder()
    draw = random.Random(1)
    documents = [interleaving(model, draw, 3) for _ in range(2)]
    batch = as_batch(model, documents)
    kept: dict[str, torch.Tensor] = {}
    for name in model.names:
        embed = model.shared_towers[name].embed
        kept[name] = embed(batch.streams[name].tokens).detach().requires_grad_()
        model.shared_towers[name].embed = lambda tokens, name=name: kept[name]
    states = model(batch)
    for name, stream in batch.streams.items():
        for t in stream.valid[0].nonzero().flatten().tolist():
            found = torch.autograd.grad(states[name][0, t].sum(), [*kept.values()], retain_graph=True)
            for other, gradient in zip(kept, found, strict=True):
                earlier = batch.streams[other].valid[0] & (
                    batch.streams[other].order[0] <= stream.order[0, t]
                )
                assert torch.equal(gradient[0].abs().sum(-1) > 0, earlier)
                assert gradient[1].abs().sum() == 0


def test_growing_keeps_old_rows_and_old_text_logits_bit_for_bit(text_tower):
    model = single_decoder()
    model.start_from(text_tower)
    assert torch.equal(model.decoder.embedding.weight[:11], text_tower.embedding.weight)
    tokens = torch.randint(11, (2, 7, 1))
    states = model.tower("text")(tokens)
    assert torch.equal(states, text_tower(tokens))
    assert torch.equal(model.tower("text").logits(states), text_tower.logits(states))


def test_growing_keeps_the_rows_of_a_first_modality_with_several_codebooks():
    torch.manual_seed(2)
    speech = Tower(TowerConfig(**SHAPE, vocabulary=9, codebooks=3)).double()
    model = single_decoder(("speech", "text"))
    model.start_from(speech)
    tokens = torch.randint(9, (2, 7, 3))
    states = model.tower("speech")(tokens)
    assert torch.equal(states, speech(tokens))
    assert torch.equal(model.tower("speech").logits(states), speech.logits(states))


def test_head_0_chooses_among_the_first_codebooks_of_all_modalities():
    model = single_decoder()
    states = torch.randn(4, 24, dtype=torch.float64)
    target = torch.tensor([[3, 5, -100], [8, -100, 1], [-100, 2, 2], [0, 0, 0]])
    found = model.tower("speech").cross_entropy(states, target)
    rows = model.decoder.embedding.weight
    for n in range(4):
        for q, (start, end) in enumerate([(0, 20), (20, 29), (29, 38)]):
            label = int(target[n, q])
            expected = 0.0
            if label >= 0:
                nats = -(states[n] @ rows[start:end].T).log_softmax(-1)
                expected = nats[label + (11 if q == 0 else 0)]
            torch.testing.assert_close(found[n, q], torch.as_tensor(expected, dtype=torch.float64))
    text = model.tower("text").cross_entropy(states[:1], torch.tensor([[7]]))
    torch.testing.assert_close(text[0, 0], -(states[0] @ rows[:20].T).log_softmax(-1)[7])


@pytest.mark.parametrize("name", ["text", "speech"])
def test_what_it_writes_equals_the_slow_reference_whatever_the_batch(name):
    model = single_decoder()
    other = "speech" if name == "text" else "text"
    given = prompts(model, 3, other)
    written = generate(model, given, [name], STATISTICS)
    for document, (segment,) in zip(given, written, strict=True):
        cap = STATISTICS.cap(name, other, _length(document, other))
        assert torch.equal(segment.tokens, slow_greedy(model, document, name, cap))
        alone = generate(model, [document], [name], STATISTICS)[0][0]
        assert torch.equal(alone.tokens, segment.tokens)


def test_it_goes_on_from_one_modality_to_the_next_as_if_read_anew():
    model = single_decoder()
    (given,) = prompts(model, 1, "text")
    first, second = generate(model, [given], ["speech", "text"], STATISTICS)[0]
    hop = Document(given.id, [first.as_prompt()], True)
    cap = STATISTICS.cap("text", "speech", first.content.shape[1])
    assert torch.equal(second.tokens, slow_greedy(model, hop, "text", cap))


def test_three_modalities_share_one_decoder_and_every_weight_is_owned_once():
    model = single_decoder(("text", "speech", "music"))
    assert model.decoder.embedding.weight.shape[0] == 11 + 3 * 9 + 2 * 7
    states = model(as_batch(model, [interleaving(model, random.Random(2), 5)]))
    assert set(states) == {"text", "speech", "music"}
    assert all(name.startswith("decoder.") for name in model.state_dict())
    rows = [
        set((model.shared_towers[n].offset[:, None] + torch.arange(v)).flatten().tolist())
        for n, v in (("text", 11), ("speech", 9), ("music", 7))
    ]
    assert sum(map(len, rows)) == len(set().union(*rows)) == 11 + 3 * 9 + 2 * 7


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model.towers.speech.layers=4"], "model.towers.speech.layers=4, but a single decoder has one set"),
        (["model.towers.speech.vocabulary=5"], "model.towers.speech: vocabulary=5"),
    ],
)
def test_a_shape_that_is_not_the_decoders_is_refused(dataset, words, told):
    single = ["model.kind=single_decoder", "model.towers.speech.width=16"]
    with pytest.raises(ConfigError, match=told):
        resolve(config(*single, *words), dataset)


def test_tasks_to_evaluate_must_be_known():
    with pytest.raises(ConfigError, match=r"evaluate.tasks=\['asd'\]"):
        config("evaluate.tasks=[asd]")


@pytest.mark.parametrize(
    ("towers", "words"),
    [
        ({"text": TowerConfig(frozen=True), "speech": TowerConfig()}, "model.towers.text: frozen=True"),
        ({"text": TowerConfig(), "speech": TowerConfig(init="x")}, "model.towers.speech.init=x"),
    ],
)
def test_what_a_single_decoder_cannot_be_is_refused(towers, words):
    with pytest.raises(ConfigError, match=words):
        ModelConfig(kind="single_decoder", towers=towers)


def _length(document: Document, name: str) -> int:
    tokens = document.segments[-1].tokens
    return len(tokens) - 1 - max(1, tokens.shape[1] - 1)


def test_a_head_of_its_own_grows_with_the_embedding():
    """Gotcha of grown vocabularies: with an untied head both must grow, or units have nothing to be written
    by."""
    torch.manual_seed(2)
    shape = {**SHAPE, "tied": False}
    tower = Tower(TowerConfig(**shape, vocabulary=11, codebooks=1)).double()
    towers = {"text": TowerConfig(**shape, vocabulary=11, codebooks=1)}
    towers["speech"] = TowerConfig(**shape, vocabulary=9, codebooks=3)
    model = SingleDecoderModel(ModelConfig(kind="single_decoder", towers=towers)).double().eval()
    model.start_from(tower)
    assert torch.equal(model.decoder.head[:11], tower.head)
    assert torch.equal(model.decoder.embedding.weight[:11], tower.embedding.weight)
    tokens = torch.randint(11, (2, 7, 1))
    text = model.tower("text")
    assert torch.equal(text.logits(text(tokens)), tower.logits(tower(tokens)))
    assert model.tower("speech").weight.shape == (27, 24)
