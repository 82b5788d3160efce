"""Other ways of joining towers: token insertion, and a mixture of transformers. Each is equal to itself
whichever way it is run, and to its towers where there is one modality alone."""

import random
from pathlib import Path

import pytest
import torch

from conftest import as_batch, config, interleaving, transcribe
from slow import STATISTICS, prompts, slow_greedy
from zipper.config import ModelConfig, SamplingConfig, TowerConfig
from zipper.data.documents import Document
from zipper.errors import ConfigError
from zipper.generation.exported import load_model
from zipper.generation.generate import generate
from zipper.models.building import build_model
from zipper.models.multimodal import MultimodalModel
from zipper.models.resolve import resolve
from zipper.training import run as run_module

KINDS = ("insertion", "mixture")
WIDE = {"layers": 3, "width": 24, "heads": 4, "kv_heads": 2, "hidden": 32}
NARROW = {"layers": 3, "width": 16, "heads": 4, "kv_heads": 2, "hidden": 24, "head_size": 6}


def joined(
    kind: str, names: tuple[str, ...] = ("text", "speech"), layers: int = NARROW["layers"]
) -> MultimodalModel:
    """float64, eval, towers of different widths, weights large enough to matter. layers: of the towers of
    speech and music; a mixture needs as many as of text."""
    torch.manual_seed(0)
    towers = {
        "text": TowerConfig(**WIDE, vocabulary=11, codebooks=1),
        "speech": TowerConfig(**NARROW | {"layers": layers}, vocabulary=9, codebooks=3, specials=[6, 7, 8]),
        "music": TowerConfig(**NARROW | {"layers": layers}, vocabulary=7, codebooks=2, specials=[4, 5, 6]),
    }
    cfg = ModelConfig(kind=kind, modalities=list(names), towers={name: towers[name] for name in names})
    model = build_model(cfg, dict.fromkeys(names, 1.0)).double().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return model


@pytest.mark.parametrize("names", [("text", "speech"), ("speech", "text", "music")], ids="-".join)
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_each_document_alone_and_nothing_sees_what_follows(kind, names):
    model, draw = joined(kind, names), random.Random(0)
    documents = [interleaving(model, draw, parts) for parts in (1, 2, 3, 4)]
    batch = as_batch(model, documents)
    states = model(batch)
    for row, document in enumerate(documents):
        alone = as_batch(model, [document])
        for name, own in model(alone).items():
            valid = alone.streams[name].valid[0]
            torch.testing.assert_close(states[name][row][batch.streams[name].valid[row]], own[0][valid])
        for cut in range(1, len(document.segments)):
            start = as_batch(model, [Document(document.id, document.segments[:cut], True)])
            for name, part in model(start).items():
                count = int(start.streams[name].valid.sum())
                torch.testing.assert_close(part[0][:count], states[name][row][:count])


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_depends_on_its_prompt(kind):
    model = joined(kind)
    given, other = prompts(model, 2, "speech")
    (answer,) = prompts(model, 1, "text")
    found = [
        model(as_batch(model, [Document("x", [*one.segments, *answer.segments], True)]))["text"]
        for one in (given, other)
    ]
    assert not torch.allclose(*found)


@pytest.mark.parametrize("kind", KINDS)
def test_one_modality_alone_is_its_tower(kind):
    model = joined(kind)
    for name in model.names:
        (document,) = prompts(model, 1, name)
        tokens = as_batch(model, [document]).streams[name].tokens
        found = model(as_batch(model, [document]))[name]
        torch.testing.assert_close(found, model.tower(name)(tokens))


@pytest.mark.parametrize(
    ("kind", "names", "given", "answer", "layers"),
    [
        ("insertion", ("text", "speech"), "speech", "text", 3),
        ("insertion", ("text", "speech"), "speech", "text", 5),
        ("insertion", ("text", "speech"), "speech", "text", 2),
        ("insertion", ("speech", "text"), "text", "speech", 3),
        ("insertion", ("speech", "text"), "text", "speech", 2),
        ("mixture", ("text", "speech"), "speech", "text", 3),
        ("mixture", ("text", "speech"), "text", "speech", 3),
    ],
)
@pytest.mark.parametrize("guidance", [1.0, 9.0])
def test_what_it_writes_equals_the_slow_reference_whatever_the_batch(
    kind, names, given, answer, layers, guidance
):
    model, how = joined(kind, names, layers), {answer: SamplingConfig(guidance=guidance)}
    asked = prompts(model, 3, given)
    for document, (segment,) in zip(asked, generate(model, asked, [answer], STATISTICS, how), strict=True):
        length = len(document.segments[-1].tokens) - 1 - max(1, document.segments[-1].tokens.shape[1] - 1)
        cap = STATISTICS.cap(answer, given, length)
        assert torch.equal(segment.tokens, slow_greedy(model, document, answer, cap, guidance))
        ((alone,),) = generate(model, [document], [answer], STATISTICS, how)
        assert torch.equal(alone.tokens, segment.tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_tower_gets_no_gradient_and_the_other_does(kind):
    model = joined(kind)
    model.tower("text").requires_grad_(False)
    (given,), (answer,) = prompts(model, 1, "speech"), prompts(model, 1, "text")
    model(as_batch(model, [Document("x", [*given.segments, *answer.segments], True)]))[
        "text"
    ].sum().backward()
    assert all(parameter.grad is None for parameter in model.tower("text").parameters())
    assert all(layer.attention.to_qkv.weight.grad.abs().max() > 0 for layer in model.tower("speech").layers)


def test_what_does_not_fit_is_refused(dataset):
    with pytest.raises(ConfigError, match="layers, heads, kv_heads and the size of a head must be equal"):
        config("model.kind=mixture")
    answers = ["model.kind=insertion", "train.tasks={asr: 1, tts: 1}"]
    with pytest.raises(ConfigError, match=r"the first of model\.modalities"):
        resolve(config(*answers), dataset)
    resolve(config("model.kind=insertion", "train.tasks={asr: 1}"), dataset)


@pytest.mark.parametrize(
    "words",
    [
        ["model.kind=insertion", "train.tasks={asr: 1}", "train.ctc=0.5", "decode.text={beams: 2, ctc: 0.3}"],
        ["model.kind=mixture", "train.tasks={asr: 1, tts: 1}", "model.towers.speech.width=16"],
    ],
    ids=KINDS,
)
@pytest.mark.usefixtures("prepared", "listening")
def test_it_is_trained_exported_and_writes_the_same_again(words, dataset):
    cfg = config("name=arm", "export=out", *words)
    run_module.train(cfg, "x")
    run, exported = (load_model(Path(folder)) for folder in ("build/runs/arm", "out"))
    rows = [dataset.splits["test"][i] for i in range(3)]
    found = [transcribe(one.network.double(), dataset, one.statistics, rows, 3) for one in (run, exported)]
    assert [one.hypothesis for one in found[0]] == [one.hypothesis for one in found[1]]
    assert exported.config.model.kind == cfg.model.kind
