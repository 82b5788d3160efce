"""Scores of a model of three towers on pages: seen pairs, chains through text, and the pair that was not
trained."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from reproduce.bench.record import write_record
from reproduce.three_towers import TRANSCRIBED
from reproduce.three_towers.bridges import BridgedZip, Composed, mean_states, train_bridges, use_zips
from zipper.clock import Clock
from zipper.commit import commit
from zipper.config import with_overrides
from zipper.corpora.grammar import UNITS
from zipper.data.dataset import Row
from zipper.data.prepare import prepare
from zipper.errors import ConfigError
from zipper.evaluation.task import mismatched_rows
from zipper.generation.generate import GenerationOutput
from zipper.generation.rows import generate_rows
from zipper.generation.zipper import Zipper
from zipper.modalities.normalise import normalise
from zipper.modalities.page_reader import COLORS, COUNTS, DRAWINGS, HELD_OUT, NUMBERS, Page, Reader, digits
from zipper.modalities.scoring import Scorer, word_errors
from zipper.models.zip_block import ZipBlock
from zipper.models.zipper import ZipperModel

PATTERN = re.compile(r"page (\w+) of the (\w+) book shows (\w+) (\w+)")
CHOICES = {"number": len(UNITS), "color": len(COLORS), "amount": len(COUNTS), "animals": len(DRAWINGS)}
PAIRS = 2000  # of text and another modality, for bridges; the queries are of other documents
EPOCHS = 20


class Pages:
    """Test pages of a model, and how its answers are read."""

    def __init__(self, model: Zipper) -> None:
        self.model, self.network = model, model.network
        self.data = prepare(model.config, Clock(), model.modalities)
        self.rows = [*self.data.splits["test"]]
        self.reader = Reader(model.config.data.seed)

    def read(self, order: Sequence[str], rows: list[Row] | None = None) -> list[str]:
        """Sentence of the last segment of `order`, for each row whose segment of `order[0]` is the prompt."""
        rows = (rows or self.rows)[: TRANSCRIBED if order[-1] == "speech" else None]
        found = [segments[-1] for segments in self.generate(order, rows)]
        if order[-1] == "speech":
            scores = self.speech_scorer.score(rows, found, self.data.fingerprint)
            return [in_words(one.hypothesis) for one in scores]
        return [self.sentence(segment) for segment in found]

    @cached_property
    def speech_scorer(self) -> Scorer:
        """ASR scorer of generated speech."""
        return self.model.modalities["speech"].scorer(self.model.config)

    def generate(self, order: Sequence[str], rows: list[Row]) -> list[list[GenerationOutput]]:
        """Answers by the model's decode settings."""
        model = self.model
        return generate_rows(self.network, self.data, model.statistics, rows, order, 100, model.config.decode)

    def sentence(self, segment: GenerationOutput) -> str:
        value = self.model.modalities[segment.modality].decode(segment.content)
        return value if segment.modality == "text" else self.reader.sentence(value)

    def score(self, order: Sequence[str]) -> dict[str, float]:
        """Shares of test rows (TRANSCRIBED of speech) that are right, and of the mismatched control."""
        answers, others = self.read(order), self.read(order, mismatched_rows(self.rows))
        rows = self.rows[: len(answers)]
        found, control = accuracies(rows, answers), accuracies(rows, others)
        return {**found, "mismatched_exact": control["exact"], "mismatched_slots": control["slots"]}


def in_words(transcript: str) -> str:
    """A transcript of an ASR model as sentences are written: "Page 3 of" is "page three of"."""
    return normalise(re.sub(r"\d", lambda digit: f" {NUMBERS[int(digit[0])]} ", transcript))


def accuracies(rows: Sequence[Mapping[str, Any]], sentences: Sequence[str]) -> dict[str, float]:
    """Share of sentences with each word right, with all of them (exact), mean over words (slots), and WER."""
    right, errors, words = dict.fromkeys(Page._fields, 0), 0, 0
    exact = 0
    for row, sentence in zip(rows, sentences, strict=True):
        expected, found = PATTERN.fullmatch(row["text"]), PATTERN.fullmatch(sentence)
        assert expected is not None
        exact += sentence == row["text"]
        for at, name in enumerate(Page._fields, 1):
            right[name] += found is not None and found[at] == expected[at]
        one = word_errors(row["text"], sentence)
        errors, words = errors + one.errors, words + one.words
    shares = {name: count / len(rows) for name, count in right.items()}
    all_ = {
        **shares,
        "exact": exact / len(rows),
        "slots": sum(shares.values()) / len(shares),
        "wer": errors / words,
    }
    return {name: round(share, 4) for name, share in all_.items()}


def describe(pages: Pages) -> dict[str, Any]:
    """Model and data of a result, and the scores of chance."""
    chance, model = {name: 1 / count for name, count in CHOICES.items()}, pages.model
    chance |= {"slots": fmean(chance.values()), "exact": 1 / prod(CHOICES.values())}
    return {
        "name": model.config.name, "commit": commit(), "threads": torch.get_num_threads(),
        "parameters_total": sum(p.numel() for p in model.network.parameters()),
        "chance": {name: round(share, 4) for name, share in chance.items()},
        "data_fingerprint": pages.data.fingerprint, "utterances": len(pages.rows),
    }  # fmt: skip


def reader_accuracy(pages: Pages) -> dict[str, Any]:
    """Accuracy of the reader on real test images: of its classifier on all digits, and of whole pages."""
    images, labels = digits(pages.model.config.data.seed)["test"]
    image = pages.data.modalities["image"]
    read = [pages.reader.sentence(image.decode(image.content(row))) for row in pages.rows]
    return {
        "digits": round(float((pages.reader.digits(images) == labels).mean()), 4),
        "test_digits": HELD_OUT["test"],
        **accuracies(pages.rows, read),
    }


def measure_seen(pages: Pages) -> dict[str, Any]:
    """Trained pairs, and both ways through text."""
    return {
        "image>text": pages.score(["image", "text"]),
        "text>image": pages.score(["text", "image"]),
        "speech>text": pages.score(["speech", "text"]),
        "speech>text>image": pages.score(["speech", "text", "image"]),
    }


def unchanged(pages: Pages, init: str) -> dict[str, Any]:
    """Whether the old pairs are those of the model that was extended: weights, and what they generate."""
    old = Zipper.from_pretrained(init)
    out = {}
    for order, count in ((["speech", "text"], len(pages.rows)), (["text", "speech"], 50)):
        rows = pages.rows[:count]
        several = [
            generate_rows(one.network, pages.data, one.statistics, rows, order, 100, one.config.decode)
            for one in (old, pages.model)
        ]
        same = [torch.equal(a[0].tokens, b[0].tokens) for a, b in zip(*several, strict=True)]
        out[">".join(order)] = f"{sum(same)} of {len(rows)} generated segments are identical"
    state, before = pages.network.state_dict(), old.network.state_dict()
    kept = [name for name in before if not name.startswith("next_modality_heads.")]
    out["weights"] = (
        f"{sum(torch.equal(before[n], state[n]) for n in kept)} of {len(kept)} tensors are identical"
    )
    return out


def unseen(pages: Pages, seed: int) -> dict[str, Any]:
    """Speech>image and image>speech without text, by zips that no document with speech and an image has
    trained."""
    network = pages.network
    assert isinstance(network, ZipperModel)
    spoken = with_overrides(pages.model.config, ["data.corpus=pages-spoken", "data.train=3000"])
    data = prepare(spoken, Clock(), pages.model.modalities)
    rows = [*data.splits["train"]]
    pairs, asked = (data, rows[:PAIRS]), (data, rows[PAIRS:])
    found: dict[str, Any] = {}
    for source, query in (("speech", "image"), ("image", "speech")):
        own = [network.zip(stage, query, source) for stage in range(network.stages)]
        readers = [network.zip(stage, query, "text") for stage in range(network.stages)]
        means = mean_states(network, data, rows[:200], f"text>{source}")
        composed: list[ZipBlock] = [
            BridgedZip(reader, Composed(network.zip(stage, "text", source), mean, reader))
            for stage, (reader, mean) in enumerate(zip(readers, means, strict=True))
        ]
        bridges = train_bridges(network, pairs, asked, query, source, EPOCHS, seed)
        bridged: list[ZipBlock] = [BridgedZip(r, b) for r, b in zip(readers, bridges, strict=True)]
        for way, zips in (("untrained zip", own), ("composed zip", composed), ("bridge", bridged)):
            use_zips(network, query, source, zips)
            found[f"{source}>{query}, {way}"] = pages.score([source, query])
            network.used = [pair for pair in network.used if pair != (query, source)]  # its zips share parts
        found[f"{source}>{query}, bridge"]["parameters"] = sum(
            p.numel() for b in bridges for p in b.parameters()
        )
    return found


def measure(folder: Path, out: Path, parts: Sequence[str], decode: Sequence[str], command: str) -> None:
    """Write the scores of an exported model (or a run folder). decode: overrides of its decoding. Raises
    ConfigError on one of other modalities."""
    torch.manual_seed(0)  # of zips that an export lacks, because no task has trained them
    model = Zipper.from_pretrained(folder)
    if "image" not in model.network.names:
        raise ConfigError(f"{folder} has no tower for images. Give a model of three, as assets/three-towers.")
    model.config = with_overrides(model.config, [f"decode.{one}" for one in decode])
    pages = Pages(model)
    result = {**describe(pages), "reader": reader_accuracy(pages)}
    if "seen" in parts:
        result["seen"] = measure_seen(pages)
        if model.config.model.init:
            result["old pairs"] = unchanged(pages, model.config.model.init)
    if "heard" in parts:
        result["image>text>speech"] = pages.score(["image", "text", "speech"])
    if "direct" in parts:
        pairs = ("speech>image", "image>speech")
        result |= {pair: pages.score(pair.split(">")) for pair in pairs if pair in model.config.train.tasks}
    if "unseen" in parts:
        result["unseen"] = unseen(pages, model.config.seed)
    write_record("three-towers", command, result, out, cfg=model.config)
