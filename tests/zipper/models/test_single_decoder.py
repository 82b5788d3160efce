"""The Single Decoder: one stream, a grown vocabulary, equal to itself whichever way it is run."""

import random

import pytest
import torch

from conftest import as_batch, config, interleaving
from slow import STATISTICS, prompts, slow_greedy
from zipper.config import ModelConfig, SamplingConfig, TowerConfig
from zipper.data.documents import Document
from zipper.errors import ConfigError
from zipper.generation.generate import generate
from zipper.models.resolve import resolve
from zipper.models.single_decoder import SingleDecoderModel
from zipper.models.tower import Tower

SHAPE = {"layers": 3, "width": 24, "heads": 4, "kv_heads": 2, "hidden": 32}


def single_decoder(names: tuple[str, ...] = ("text", "speech"), tied: bool = True) -> SingleDecoderModel:
    """float64, eval, weights large enough to matter."""
    torch.manual_seed(0)
    sizes = {"text": (11, 1, [0, 1]), "speech": (9, 3, [6, 7, 8]), "music": (7, 2, [4, 5, 6])}
    towers = {
        n: TowerConfig(
            **SHAPE, vocabulary=sizes[n][0], codebooks=sizes[n][1], specials=sizes[n][2], tied=tied
        )
        for n in names
    }
    cfg = ModelConfig(kind="single_decoder", modalities=list(names), towers=towers)
    model = SingleDecoderModel(cfg).double().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return model


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


@pytest.mark.parametrize("names", [("text", "speech"), ("speech", "text")], ids="-".join)
@pytest.mark.parametrize("tied", [True, False])
def test_growing_keeps_the_rows_and_the_logits_of_its_first_modality_bit_for_bit(names, tied):
    """Whatever its codebooks; a head of its own grows with the embedding, or units could not be written."""
    sizes, first = {"text": (11, 1), "speech": (9, 3)}, names[0]
    model = single_decoder(names, tied=tied)
    tower = Tower(TowerConfig(**SHAPE, vocabulary=sizes[first][0], codebooks=sizes[first][1], tied=tied))
    model.start_from(tower.double())
    tokens = torch.randint(sizes[first][0], (2, 7, sizes[first][1]))
    grown = model.tower(first)
    assert torch.equal(grown(tokens), tower(tokens))
    assert torch.equal(grown.logits(grown(tokens)), tower.logits(tower(tokens)))
    assert {name: len(model.tower(name).weight) for name in names} == {"text": 11, "speech": 27}


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
@pytest.mark.parametrize("guidance", [1.0, 9.0])
def test_what_it_writes_equals_the_slow_reference_whatever_the_batch(name, guidance):
    model, how = single_decoder(), {one: SamplingConfig(guidance=guidance) for one in ("text", "speech")}
    other = "speech" if name == "text" else "text"
    given = prompts(model, 3, other)
    written = generate(model, given, [name], STATISTICS, how)
    for document, (segment,) in zip(given, written, strict=True):
        cap = STATISTICS.cap(name, other, _length(document, other))
        assert torch.equal(segment.tokens, slow_greedy(model, document, name, cap, guidance))
        alone, further = generate(model, [document], [name, other], STATISTICS, how)[0]
        assert torch.equal(alone.tokens, segment.tokens)
        hop = Document(document.id, [segment.as_prompt()], True)  # as if it were read anew
        cap = STATISTICS.cap(other, name, segment.content.shape[1])
        assert torch.equal(further.tokens, slow_greedy(model, hop, other, cap, guidance))


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


def _length(document: Document, name: str) -> int:
    tokens = document.segments[-1].tokens
    return len(tokens) - 1 - max(1, tokens.shape[1] - 1)


def test_new_rows_have_the_mean_and_the_spread_of_the_old_ones_in_each_direction_and_differ():
    torch.manual_seed(0)
    model = single_decoder()
    tower = Tower(TowerConfig(**SHAPE, vocabulary=11, codebooks=1)).double()
    with torch.no_grad():
        tower.embedding.weight[:, 0] = 5 + torch.randn(11) / 100
        tower.embedding.weight[:, 1] = 9 * torch.randn(11)
    model.start_from(tower)
    old, new = model.decoder.embedding.weight[:11], model.decoder.embedding.weight[11:]
    assert len({*map(tuple, new.tolist())}) == len(new) == 27
    for column in (0, 1):
        spread = new[:, column].std() / old[:, column].std()
        assert float(spread.detach()) == pytest.approx(1, abs=0.4)
    assert float(new[:, 0].mean().detach()) == pytest.approx(5, abs=0.02)


@pytest.mark.parametrize("tied", [True, False])
def test_each_codebook_reads_its_own_rows_of_the_head(tied):
    """11 of text, then those that `slow_states` embeds."""
    model = single_decoder(tied=tied)
    states = torch.randn(5, 24, dtype=torch.float64)
    head = model.decoder.weight
    assert torch.equal(model.tower("text").logits(states)[:, 0], states @ head[:11].T)
    for book, start in enumerate((11, 20, 29)):
        expected = states @ head[start : start + 9].T
        torch.testing.assert_close(model.tower("speech").logits(states)[:, book], expected)
