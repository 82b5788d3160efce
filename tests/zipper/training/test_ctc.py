"""CTC of the answer on the states of its prompt: equal to a slow sum, and only in training."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import as_batch, config, module_for, training_documents
from zipper.data.documents import Document
from zipper.generation.exported import load_trained
from zipper.training import run as run_module
from zipper.training.ctc import CtcHeads

WORDS = ("train.tasks={asr: 1, tts: 1}", "train.ctc=0.5")


def alignments(scores: torch.Tensor, answer: list[int], blank: int) -> torch.Tensor:
    """Log probability of an answer: the sum over all paths [T] that collapse to it."""
    found = []
    for path in itertools.product(range(scores.shape[1]), repeat=len(scores)):
        merged = [code for code, _ in itertools.groupby(path)]
        if [code for code in merged if code != blank] == answer:
            found.append(sum(scores[t, code] for t, code in enumerate(path)))
    return torch.stack(found).logsumexp(0)


def short(documents: list[Document]) -> list[Document]:
    """Documents of four timesteps of speech and two words, so that all alignments can be listed."""
    out = []
    for document in documents:
        segments = []
        for part in document.segments:
            kept = part.tokens[:4] if part.modality == "speech" else part.tokens[[0, 1, 2, -1]]
            segments.append(replace(part, tokens=kept, scored=torch.ones(len(kept), 1, dtype=torch.bool)))
        out.append(replace(document, segments=segments))
    return out


def test_it_equals_a_sum_over_all_alignments(dataset):
    module = module_for(dataset, *WORDS)
    documents = short(training_documents(dataset, 2, "asr"))
    batch = as_batch(module.model, documents)
    states = module.model(batch)
    heads = CtcHeads(module.model, ["asr"])
    words = sorted({int(t) for d in documents for t in d.segments[1].tokens[1:3, 0]})
    (head,) = heads.heads.values()
    with torch.no_grad():  # other words are all but impossible, so that the slow sum can leave them out
        head.bias.fill_(-1e4)
        head.bias[[*words, -1]] = 0.0
    expected = torch.zeros(())
    for row, document in enumerate(documents):
        scores = head(states["speech"][row]).log_softmax(-1)[:, [*words, -1]]
        answer = [words.index(int(t)) for t in document.segments[1].tokens[1:3, 0]]
        expected = expected - alignments(scores, answer, len(words))
    torch.testing.assert_close(heads(states, batch), expected / batch.total["text"], rtol=1e-5, atol=1e-6)


def test_speech_that_follows_its_text_is_not_aligned(dataset):
    module = module_for(dataset, *WORDS)
    recognised, spoken = (short(training_documents(dataset, 3, task)) for task in ("asr", "tts"))
    losses = []
    for documents in (recognised, [*recognised, *spoken], spoken):
        batch = as_batch(module.model, documents)
        losses.append(float(module.ctc(module.model(batch), batch).detach()) * batch.total["text"])
    assert losses[0] > 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == 0


@pytest.mark.usefixtures("prepared", "nothing_is_drawn")
def test_it_is_trained_and_not_exported():
    words = ("name=aligned", "train.steps=4", "train.validate_every=2", "train.ctc=0.5")
    run_module.train(config(*words), "x")
    checkpoint = Path("build/runs/aligned/checkpoints/last.ckpt")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert state["ctc.heads.text_from_speech.weight"].isfinite().all()
    trained = load_trained(checkpoint)
    assert {f"model.{name}" for name in trained.network.state_dict()} == {
        name for name in state if not name.startswith("ctc.")
    }
