"""Cloze tests: equal to scoring each sentence by itself, and right for a model that knows the sentences."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from conftest import module_for
from zipper.data.batches import collate
from zipper.evaluation.cloze import CHOICES, questions, share_right

SINGLE = ["model.kind=single_decoder", "model.towers.speech.width=16"]


class Knowing(nn.Module):
    """Predicts the next token of the sentences that it was given, and BOS after anything else."""

    def __init__(self, sentences: list[list[int]], vocabulary: int) -> None:
        super().__init__()
        self.next = {tuple(one[:i]): one[i] for one in sentences for i in range(1, len(one))}
        self.vocabulary, self.names = vocabulary, ["text"]
        self.cfg = SimpleNamespace(codebooks={"text": 1})
        self.device = nn.Parameter(torch.zeros(1))

    def tower(self, name):
        return SimpleNamespace(logits=lambda states: states[..., None, :])

    def forward(self, batch):
        tokens = batch.streams["text"].tokens[..., 0].tolist()
        chosen = torch.tensor([[self.next.get(tuple(t[: i + 1]), 0) for i in range(len(t))] for t in tokens])
        return {"text": 20.0 * nn.functional.one_hot(chosen, self.vocabulary)}


def test_a_model_that_knows_the_sentences_answers_all_and_another_none(dataset):
    asked = questions(dataset, "train", "text")
    assert {*asked} == {"last_word", "continuation"}
    rows = dataset.splits["train"]
    layout = dataset.modalities["text"].layout
    sentences = [layout.tokens(dataset.modalities["text"].content(row))[:, 0].tolist() for row in rows]
    knowing, empty = Knowing(sentences, layout.vocabulary), Knowing([], layout.vocabulary)
    for test, several in asked.items():
        assert len(several) > 4, test
        assert share_right(knowing, "text", several) == 1.0
    assert share_right(empty, "text", asked["last_word"]) == 0.0
    swapped = [[question[1], question[0], *question[2:]] for question in asked["continuation"]]
    assert share_right(knowing, "text", swapped) == 0.0


@pytest.mark.parametrize("words", [[], SINGLE], ids=["zipper", "single decoder"])
def test_answers_equal_those_of_one_sentence_at_a_time(dataset, words):
    model = module_for(dataset, *words).model.eval()
    for several in questions(dataset, "train", "text").values():
        right = 0
        for question in several:
            means, greedy = [], []
            for document in question:
                [segment] = document.segments
                with torch.no_grad():
                    states = model(collate([document], model.cfg.codebooks))["text"]
                    chances = model.tower("text").logits(states)[0, :, 0].log_softmax(-1)
                due = segment.scored[1:, 0]
                picked = segment.tokens[1:, 0][due]
                means.append(chances[:-1][due].gather(1, picked[:, None]).mean())
                greedy.append(torch.equal(chances[:-1][due].argmax(1), picked))
            right += greedy[0] if len(question) == 1 else max(means) == means[0]
        assert share_right(model, "text", several) == pytest.approx(right / len(several))


def test_the_beginning_is_given_and_only_the_rest_is_scored(dataset):
    text = dataset.modalities["text"]
    rows = [text.decode(text.content(row)).split() for row in dataset.splits["train"]]
    asked = questions(dataset, "train", "text")
    for words, [document] in zip([r for r in rows if len(r) >= 6], asked["last_word"], strict=True):
        [segment] = document.segments
        assert text.decode(segment.tokens[segment.scored][None]) == words[-1]
        assert not segment.scored[-1].any()  # EOS
        assert not document.multimodal
    for question in asked["continuation"]:
        assert len(question) == CHOICES
        starts = [d.segments[0].tokens[~d.segments[0].scored][:-1].tolist() for d in question]
        assert starts.count(starts[0]) == CHOICES  # the same beginning, EOS left out


def test_speech_and_splits_of_few_sentences_have_no_questions(dataset):
    assert questions(dataset, "train", "speech") == {}
