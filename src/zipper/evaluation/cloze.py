"""Cloze tests on the sentences of a split: what a language model knows of text, before and after training."""

import torch
from torch import Tensor

from zipper.data.batches import collate
from zipper.data.dataset import EncodedDataset, read_rows
from zipper.data.documents import Document, Segment, eligible
from zipper.modalities.base import Modality
from zipper.models.multimodal import MultimodalModel
from zipper.models.tower import cross_entropy

CHOICES = 4
WORDS = 6  # a question needs a sentence of so many
ROWS = 32  # documents in a batch
Question = list[Document]  # possible sentences, in which the continuation is scored; the first one is right


def questions(dataset: EncodedDataset, split: str, name: str) -> dict[str, list[Question]]:
    """Questions by test, on the sentences of a split that have at least six words. Empty for a modality
    without written tokens, or with fewer than four such sentences.

    last_word: the last word of a sentence (LAMBADA, arXiv 1606.06031). continuation: the second half of a
    sentence among those of the next three sentences (as HellaSwag, arXiv 1905.07830).
    """
    modality, rows = dataset.modalities[name], dataset.splits[split]
    if modality.labels([]) is None:
        return {}
    found = read_rows(rows, eligible(dataset, rows, name), [modality.tokens_column])
    sentences = dict.fromkeys(modality.decode(modality.content(row)) for row in found)
    long = [words for sentence in sentences if len(words := sentence.split()) >= WORDS]
    if len(long) < CHOICES:
        return {}
    halves = [(words[: len(words) // 2], words[len(words) // 2 :]) for words in long]
    return {
        "last_word": [[_document(modality, words[:-1], words[-1:])] for words in long],
        "continuation": [
            [_document(modality, half, halves[(place + i) % len(halves)][1]) for i in range(CHOICES)]
            for place, (half, _) in enumerate(halves)
        ],
    }


def share_right(model: MultimodalModel, name: str, asked: list[Question]) -> float:
    """Share of questions answered right. Sets the model to eval.

    With one sentence, greedy decoding must give all tokens of its continuation. With several, the right
    continuation must have the highest mean log-probability of a token.
    """
    model.eval()
    nats, greedy = _scores(model, name, [document for question in asked for document in question])
    right = start = 0
    for question in asked:
        own = slice(start, start + len(question))
        right += bool(greedy[start]) if len(question) == 1 else int(nats[own].argmin()) == 0
        start = own.stop
    return right / len(asked)


def _document(modality: Modality, beginning: list[str], continuation: list[str]) -> Document:
    """Sentence with loss on the tokens of its continuation alone, EOS left out."""
    given, whole = modality.encode([" ".join(beginning), " ".join([*beginning, *continuation])])
    tokens = modality.layout.tokens(whole)
    scored = torch.zeros_like(tokens, dtype=torch.bool)
    scored[1 + given.shape[1] : 1 + whole.shape[1]] = True
    return Document("", [Segment(modality.name, tokens, scored, 1.0)], multimodal=False)


@torch.no_grad()
def _scores(model: MultimodalModel, name: str, documents: list[Document]) -> tuple[Tensor, Tensor]:
    """Of each document, nats per scored token float32 [N], and whether greedy decoding gives them all."""
    nats, greedy = torch.zeros(len(documents)), torch.zeros(len(documents), dtype=torch.bool)
    device = next(model.parameters()).device
    by_length = sorted(range(len(documents)), key=lambda i: len(documents[i].segments[0].tokens))
    for start in range(0, len(documents), ROWS):
        rows = by_length[start : start + ROWS]
        batch = collate([documents[i] for i in rows], model.cfg.codebooks).on(device)
        target = batch.streams[name].target[..., 0]
        logits = model.tower(name).logits(model(batch)[name])[..., 0, :]
        due = target != -100
        nats[rows] = (cross_entropy(logits, target).sum(1) / due.sum(1)).cpu()
        greedy[rows] = ((logits.argmax(-1) == target) | ~due).all(1).cpu()
    return nats, greedy
