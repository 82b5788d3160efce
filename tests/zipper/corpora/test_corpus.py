"""The embedded corpus, and what the shipped assets were made from."""

import hashlib
import itertools
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from reproduce import ROOT
from zipper.config import DataConfig
from zipper.corpora.grammar import SHAPES, SLOTS, sentences
from zipper.corpora.spoken import VOICE_RATE, drawn_voice, edges, recipe_hash, spoken_corpus, spoken_texts
from zipper.corpora.utterance import FIRST, Utterance, read_manifest
from zipper.errors import DataError
from zipper.modalities.normalise import normalise


def bits(shape: str) -> float:
    """Entropy of one shape, in bits."""
    return sum(math.log2(len(SLOTS[slot])) for slot in re.findall(r"{(\w+)}", shape))


def test_the_grammar_is_as_large_as_it_should_be():
    words = [*(re.sub(r"{\w+}", " ", shape) for shape in SHAPES), *itertools.chain(*SLOTS.values())]
    assert 150 <= len({*" ".join(words).split()}) <= 300
    assert len(set(SHAPES)) >= 9
    assert sum(map(bits, SHAPES)) / len(SHAPES) >= 20
    assert all(len(set(words)) == len(words) for words in SLOTS.values())
    assert all(normalise(s) == s and not re.search(r"\d", s) for s in itertools.islice(sentences(0), 500))


def test_bits_are_the_logarithm_of_how_many_sentences_a_shape_has():
    shape = "the {person} {waited} at {hour}"
    count = math.prod(len(SLOTS[slot]) for slot in ("person", "waited", "hour"))
    assert bits(shape) == pytest.approx(math.log2(count))


def test_no_sentence_stands_in_two_splits():
    texts = spoken_texts(DataConfig())
    flat = [text for split in texts.values() for text in split]
    assert len(flat) == len(set(flat)) == 4700
    assert len(texts["test"]) >= 300
    assert spoken_texts(DataConfig()) == texts
    assert spoken_texts(DataConfig(seed=2)) != texts


def test_more_training_sentences_leave_dev_test_and_the_first_ones_as_they_are():
    few, many = spoken_texts(DataConfig()), spoken_texts(DataConfig(train=4500))
    assert (many["dev"], many["test"]) == (few["dev"], few["test"])
    assert many["train"][:FIRST] == few["train"]
    flat = [text for split in many.values() for text in split]
    assert len(flat) == len(set(flat)) == 5200


def small(**changes) -> DataConfig:
    return DataConfig(train=3, dev=1, test=1, **changes)


def test_the_voice_is_deterministic_resumable_and_never_speaks_twice(tmp_path):
    first = spoken_corpus(small(), tmp_path / "a", workers=1)
    assert [u.split for u in first] == ["train"] * 3 + ["dev", "test"]
    sounds = [u.wave(16000) for u in first]
    assert all(1.0 < len(w) / 16000 < 6.0 and w.abs().max() > 0.05 for w in sounds)
    manifest = tmp_path / "a" / f"spoken-{recipe_hash(small())}" / "manifest.jsonl"
    assert read_manifest(manifest) == first
    # Killed before the manifest, with one file missing: only that one is spoken again, and it is the same.
    from pathlib import Path

    manifest.unlink()
    Path(first[1].audio).unlink()
    kept = Path(first[0].audio).stat().st_mtime_ns
    again = spoken_corpus(small(), tmp_path / "a", workers=1)
    assert again == first
    assert Path(first[0].audio).stat().st_mtime_ns == kept
    assert all((a.wave(16000) == b).all() for a, b in zip(again, sounds, strict=True))


def test_a_voice_is_drawn_by_seed_and_id_and_speaks_at_a_rate_of_the_given_range():
    some = [Utterance(f"train-{i:05d}", None, f"sentence {i}", "heart", "train") for i in range(50)]
    drawn = [drawn_voice(u, 1, (1.05, 1.3)) for u in some]
    assert drawn == [drawn_voice(replace(u, text="another"), 1, (1.05, 1.3)) for u in some]
    assert len({*drawn, *(drawn_voice(u, 2, (1.05, 1.3)) for u in some)}) == 100
    rates = [pitch * speed for pitch, speed, _ in drawn]  # played faster for its pitch
    assert 1.05 <= min(rates) < 1.1
    assert 1.25 < max(rates) <= 1.3


def test_a_tenth_of_a_second_of_silence_is_kept_at_each_edge():
    wave = np.zeros(3 * VOICE_RATE, np.float32)
    wave[VOICE_RATE : 2 * VOICE_RATE] = 0.1
    start, end = edges(wave)
    assert (VOICE_RATE - start) / VOICE_RATE == pytest.approx(0.1, abs=1e-3)
    assert (end - 2 * VOICE_RATE) / VOICE_RATE == pytest.approx(0.1, abs=1e-3)
    assert edges(wave[VOICE_RATE - 10 : 2 * VOICE_RATE])[0] == 0
    assert edges(0 * wave) == (0, len(wave))


@pytest.mark.parametrize("change", [{"seed": 2}, {"rates": (1.0, 1.3)}, {"train": 4}, {"test": 2}])
def test_another_recipe_is_another_synthetic_corpus(change):
    assert recipe_hash(small()) == recipe_hash(small())
    assert recipe_hash(small()) != recipe_hash(replace(small(), **change))


def test_a_folder_of_text_is_spoken_too(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_text(
        "\ufeffOne is enough. It's \u2014 well \u2014 two! In 1851 it rained.\n\nA third;\nand more.",
        encoding="utf-8",
    )
    texts = spoken_texts(DataConfig(train=2, dev=1, test=1, text_folder=str(folder)))
    flat = sorted(text for split in texts.values() for text in split)
    assert flat == ["a third", "and more", "it's well two", "one is enough"]
    read = spoken_texts(DataConfig(train=1, dev=1, test=1, text_folder=str(folder), passages=(2, 3)))
    flat = [text for split in read.values() for text in split]
    assert len(flat) == 3
    assert all(2 <= len(text.split()) <= 3 for text in flat)
    assert all(text in "one is enough it's well two a third and more" for text in flat)
    with pytest.raises(DataError, match=r"holds 3 usable passages, but .* need 12"):
        spoken_texts(DataConfig(train=10, dev=1, test=1, text_folder=str(folder), passages=(2, 3)))
    with pytest.raises(DataError, match=r"holds 4 usable sentences, but .* need 5"):
        spoken_texts(DataConfig(train=3, dev=1, test=1, text_folder=str(folder)))
    with pytest.raises(DataError, match=r"no \.txt file"):
        spoken_texts(DataConfig(text_folder=str(tmp_path / "nowhere")))


def test_every_split_of_a_folder_of_text_has_sentences_of_every_book(tmp_path):
    for book in ("alpha", "bravo", "charlie"):
        lines = [f"{book} {x}{y}." for x in "abcdefgh" for y in "abcdefgh"]
        (tmp_path / f"{book}.txt").write_text("\n".join(lines), encoding="utf-8")
    texts = [
        spoken_texts(DataConfig(train=92, dev=50, test=50, text_folder=str(tmp_path), seed=seed))
        for seed in (1, 2)
    ]
    assert texts[0] != texts[1]
    for split, several in texts[0].items():
        assert {text.split()[0] for text in several} == {"alpha", "bravo", "charlie"}, split


@pytest.mark.parametrize("asset", ["codec/codec.json", "text-tower/tower.json", "speech-tower/tower.json"])
def test_assets_are_made_from_training_sentences_alone(asset):
    statistics = json.loads((ROOT / "assets" / asset).read_text(encoding="utf-8"))
    train = "\n".join(spoken_texts(DataConfig())["train"])
    assert statistics["trained_on"] == hashlib.sha256(train.encode()).hexdigest()
    assert statistics["command"].startswith("python -m zipper ")
