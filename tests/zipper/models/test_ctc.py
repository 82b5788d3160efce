"""CTC of the answer on the states of its prompt: equal to a slow sum, and kept with the model."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import as_batch, config, module_for, training_documents
from zipper.data.documents import Document, Segment
from zipper.errors import ConfigError
from zipper.generation.exported import load_model, load_trained, save_exported
from zipper.models import ctc
from zipper.models.ctc import CtcHead, CtcHeads, letter_table
from zipper.models.zipper import recorded_attention
from zipper.training import run as run_module
from zipper.training.module import ZipperModule
from zipper.weight_files import load_state


def alignments(scores: torch.Tensor, answer: list[int], blank: int) -> torch.Tensor:
    """Log probability of an answer: the sum over all paths [T] that collapse to it."""
    found = []
    for path in itertools.product(range(scores.shape[1]), repeat=len(scores)):
        merged = [code for code, _ in itertools.groupby(path)]
        if [code for code in merged if code != blank] == answer:
            found.append(sum(scores[t, code] for t, code in enumerate(path)))
    return torch.stack(found).logsumexp(0)


def short(documents: list[Document]) -> list[Document]:
    """Documents of six timesteps of speech and two words, so that all alignments can be listed."""
    out = []
    for document in documents:
        segments = []
        for part in document.segments:
            kept = part.tokens[:6] if part.modality == "speech" else part.tokens[[0, 1, 2, -1]]
            segments.append(replace(part, tokens=kept, scored=torch.ones(len(kept), 1, dtype=torch.bool)))
        out.append(replace(document, segments=segments))
    return out


def head_for(module: ZipperModule) -> tuple[CtcHead, list[str]]:
    """Head for a language of the letters a and b, and how it spells the tokens."""
    text = module.model.tower("text").cfg
    spelling = ["" if i in text.specials else ("a", "ab", "b")[i % 3] for i in range(text.vocabulary)]
    return CtcHead(module.model.tower("speech").cfg.width, letter_table(spelling), "speech", "text"), spelling


def test_it_equals_a_sum_over_all_alignments(dataset):
    module = module_for(dataset)
    documents = short(training_documents(dataset, 4, "asr"))
    batch = as_batch(module.model, documents)
    states = module.model(batch)
    head, spelling = head_for(module)
    expected = torch.zeros(())
    for row, document in enumerate(documents):
        scores = head.linear(states["speech"][row]).log_softmax(-1)
        answer = "".join(spelling[int(token)] for token in document.segments[1].tokens[:, 0])
        expected = expected - alignments(scores, [1 + "ab".index(letter) for letter in answer], 0)
    torch.testing.assert_close(head.loss(states, batch), expected / batch.total["text"], rtol=1e-5, atol=1e-6)


def best_path(scores: torch.Tensor, answer: list[int]) -> tuple[int, ...]:
    """The likeliest path [T] that collapses to an answer, among all."""
    paths = []
    for path in itertools.product(range(scores.shape[1]), repeat=len(scores)):
        if [code for code, _ in itertools.groupby(path) if code] == answer:
            paths.append((float(sum(scores[t, code] for t, code in enumerate(path)).detach()), path))
    return max(paths)[1]


def test_a_guide_is_the_attention_to_the_frames_of_a_tokens_letters(dataset, monkeypatch):
    monkeypatch.setattr(ctc, "MARGIN", 0)
    module = module_for(dataset)
    documents = short(training_documents(dataset, 4, "asr"))
    batch = as_batch(module.model, documents)
    head, spelling = head_for(module)
    torch.nn.init.normal_(head.linear.weight)
    with recorded_attention(module.model, "text", "speech") as attention:
        states = module.model(batch)
    expected = torch.zeros(())
    for row, document in enumerate(documents):
        scores = head.linear(states["speech"][row]).log_softmax(-1)
        words = [spelling[int(token)] for token in document.segments[1].tokens[:, 0]]
        path = best_path(scores, [1 + "ab".index(letter) for letter in "".join(words)])
        runs = itertools.groupby(enumerate(path), lambda at: at[1])
        letters = [[t for t, _ in run] for code, run in runs if code]
        for token, word in enumerate(words):
            if word:
                own = [*itertools.chain(*letters[: len(word)])]
                del letters[: len(word)]
                sure = torch.stack([scores[t, path[t]].exp() for t in own]).mean().detach()
                for weights in attention:
                    seen = weights[row, token - 1, own[0] : own[-1] + 1].sum()
                    expected = expected - sure * (seen + ctc.LEAST).log() / len(attention)
    found = head.guide(states, batch, attention)
    torch.testing.assert_close(found, expected / batch.total["text"], rtol=1e-4, atol=1e-6)
    found.backward()
    for stage in range(module.model.stages):
        assert module.model.zip(stage, "text", "speech").to_q.weight.grad.abs().sum() > 0
    assert head.linear.weight.grad is None  # the guide does not move who guides


@pytest.mark.parametrize("guide", [False, True])
def test_speech_that_follows_its_text_is_neither_aligned_nor_guided(dataset, guide):
    module = module_for(dataset, "train.tasks={asr: 1, tts: 1}")
    head, _ = head_for(module)
    recognised, spoken = (short(training_documents(dataset, 3, task)) for task in ("asr", "tts"))
    losses = []
    for documents in (recognised, [*spoken, *recognised], [*recognised, *spoken], spoken):
        batch = as_batch(module.model, documents)
        with recorded_attention(module.model, "text", "speech") as attention:
            states = module.model(batch)
        loss = head.guide(states, batch, attention) if guide else head.loss(states, batch)
        losses.append(float(loss.detach()) * batch.total["text"])
    assert losses[0] > 0.2
    assert losses[1:3] == pytest.approx([losses[0]] * 2, rel=1e-4)
    assert losses[3] == 0


def test_letters_are_those_of_the_subwords(dataset):
    module = module_for(dataset, "train.tasks={asr: 1, tts: 1}")
    heads = CtcHeads.of({"speech": 8, "text": 8}, module.cfg.train.tasks, dataset.modalities)
    (head,) = heads.heads.values()
    row = dataset.splits["train"][0]
    tokens = dataset.modalities["text"].content(row)[0]
    written = head.table[tokens][head.table[tokens] > 0].tolist()
    spelled = "▁" + row["text"].replace(" ", "▁")
    assert len({*zip(written, spelled, strict=True)}) == len({*spelled})


@pytest.mark.usefixtures("prepared", "listening")
def test_a_training_without_letters_is_refused():
    with pytest.raises(ConfigError, match="no task of two modalities"):
        run_module.train(config("name=spoken", "train.tasks={tts: 1, asr: 0}", "train.ctc=0.5"), "x")
    words = ("model.kind=single_decoder", "model.towers.speech.width=16", "train.ctc=1", "train.guide=1")
    single = config("name=single", *words)
    with pytest.raises(ConfigError, match="has none"):
        run_module.train(single, "x")
    with pytest.raises(ConfigError, match=r"train\.ctc=0\.3"):
        config("train.guide=1")
    with pytest.raises(
        ConfigError, match=r"decode\.text\.ctc scores with the head that train\.ctc=0\.3 trains"
    ):
        run_module.train(config("name=scored", "decode.text={beams: 2, ctc: 0.3}"), "x")


@pytest.mark.usefixtures("prepared")
def test_it_is_trained_and_exported(dataset):
    words = ("name=aligned", "train.steps=4", "train.validate_every=2", "train.ctc=0.5", "train.guide=0.3")
    run_module.train(config(*words), "x")
    trained = load_trained(Path("build/runs/aligned/checkpoints/last.ckpt"))
    head = trained.network.ctc.get("text", "speech")
    torch.nn.init.normal_(head.linear.weight)
    trained.config.export_bits = 8
    save_exported(Path("out"), trained, dataset.modalities, {})
    again, once_more = (load_model(Path("out")).network.state_dict() for _ in range(2))
    idle = {name for name in again if "speech_from_text" in name}  # no task trains them
    assert {*again} - {*load_state(Path("out/zipper.safetensors"))} == idle != set()
    assert all(torch.equal(once_more[name], weight) for name, weight in again.items())
    kept = load_model(Path("out")).network.ctc.get("text", "speech")
    assert torch.equal(head.table, kept.table)
    torch.testing.assert_close(kept.linear.weight, head.linear.weight, atol=1e-3, rtol=1e-3)


def test_attention_to_a_margin_on_both_sides_of_the_letters_is_not_missed(dataset, monkeypatch):
    module = module_for(dataset)
    head, spelling = head_for(module)
    specials = module.model.tower("text").cfg.specials
    word = next(i for i, one in enumerate(spelling) if one == "a")
    tokens = {
        "speech": torch.zeros(12, 3, dtype=torch.int64),
        "text": torch.tensor([[specials[0]], [word], [specials[1]]]),
    }
    document = Document("x", [Segment(name, one, one >= 0, 1.0) for name, one in tokens.items()], True)
    batch = as_batch(module.model, [document])
    path = torch.zeros(1, 12, dtype=torch.int64)
    path[0, 5:7] = 1
    monkeypatch.setattr(ctc, "forced_align", lambda scores, letters: (path, torch.zeros(1, 12)))
    near = []
    for frame in range(12):
        weights = torch.nn.functional.one_hot(torch.tensor(frame), 12).float().expand(1, 3, 12)
        near.append(float(head.guide(module.model(batch), batch, [weights]).detach()) < 0.01)
    assert near == [5 - ctc.MARGIN <= frame <= 6 + ctc.MARGIN for frame in range(12)]


def test_a_text_that_is_not_the_answer_has_no_letters(dataset):
    """Of a chain, such as speech>text>speech: its text is no answer, and not counted by the batch's total."""
    module = module_for(dataset, "train.tasks={asr: 1, tts: 1}")
    head, _ = head_for(module)
    recognised = short(training_documents(dataset, 3, "asr"))
    chained = [replace(one, segments=[*one.segments, one.segments[0]]) for one in recognised]
    losses = []
    for documents in (recognised, [*chained, *recognised], chained):
        batch = as_batch(module.model, documents)
        losses.append(float(head.loss(module.model(batch), batch).detach()) * batch.total["text"])
    assert losses[0] > 0.2
    assert losses[2] == 0


def test_a_head_of_a_modality_with_a_dash_in_its_name_comes_back():
    heads = CtcHeads({"text_from_my-speech": CtcHead(8, letter_table(["a", "b"]), "my-speech", "text")})
    again = CtcHeads.from_state({f"ctc.{name}": weight for name, weight in heads.state_dict().items()})
    assert again is not None
    assert [(head.prompt, head.answer) for head in again.own()] == [("my-speech", "text")]
