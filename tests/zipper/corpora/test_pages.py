"""Pages: images that a sentence describes, and their independent reader."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from zipper.config import DataConfig, RunConfig
from zipper.corpora.pages import draw, every_page, pages_corpus, split_pages
from zipper.corpora.spoken import spoken_texts
from zipper.errors import DataError
from zipper.modalities.image import CODEBOOKS, Image
from zipper.modalities.page_reader import COLORS, DRAWINGS, HEIGHT, SHIFTS, Reader, digits, drawing, shifted

SIZES = DataConfig(dev=40, test=60)


@pytest.fixture(scope="module")
def reader():
    return Reader(seed=1)


def test_the_reader_reads_real_pages_of_the_test_split(reader):
    images, labels = digits(1)["test"]
    assert (reader.digits(images) == labels).mean() > 0.98
    chance = random.Random(0)
    pages = split_pages(SIZES)["test"]
    read = [reader.sentence(draw(page, "test", chance, 1)).split() for page in pages]
    for at in (4, 7, 8):  # what was drawn: colour, amount, animals
        assert [words[at] for words in read] == [page.sentence.split()[at] for page in pages]
    assert np.mean([words[1] == page.number for words, page in zip(read, pages, strict=True)]) > 0.9


def test_the_reader_reads_digits_shifted_as_training_pages_have_them(reader):
    images, labels = digits(1)["test"]
    for by in SHIFTS:
        assert (reader.digits(shifted(images, *by)) == labels).mean() > 0.95


def test_the_reader_does_not_see_what_is_not_there(reader):
    page = every_page()[0]
    image = draw(page, "test", random.Random(0), 1)
    assert reader.sentence(image) == page.sentence
    assert reader.sentence(image[:, :-1]) == ""
    assert reader.sentence(torch.randint(256, image.shape, generator=torch.Generator().manual_seed(0))) == ""
    empty = image.clone()
    empty[:, HEIGHT:] = torch.tensor(COLORS[page.color])
    assert "shows" not in reader.sentence(empty)


def test_splits_share_neither_sentences_nor_digits():
    pages = split_pages(SIZES)
    names = [{page.sentence for page in part} for part in pages.values()]
    assert [len(part) for part in names] == [2880 - 100, 40, 60]
    assert len(set.union(*names)) == 2880
    seen = [image.tobytes() for part in ("train", "dev", "test") for image in digits(1)[part][0]]
    assert len({*seen}) == len(seen) == 1797  # no digit occurs twice in the data set itself


def test_dev_and_test_have_no_sentence_that_the_shipped_model_knows():
    known = {*spoken_texts(DataConfig(train=12_000))["train"]}
    pages = split_pages(DataConfig(dev=300, test=400))
    assert not known & {page.sentence for split in ("dev", "test") for page in pages[split]}
    assert known & {page.sentence for page in pages["train"]}


def test_pages_are_drawn_by_their_ids_and_another_number_is_another_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr("zipper.corpora.pages.synthesize", lambda *_: None)
    few, more = (pages_corpus(DataConfig(train=60, dev=2, test=n), tmp_path, 1, False) for n in (2, 3))
    assert [Counter(u.split for u in one)["test"] for one in (few, more)] == [2, 3]
    read = [Image().read(u.raw("image")) for u in few if u.split == "train"]
    fields = {tuple((image[:, HEIGHT:] != image[0, HEIGHT]).any(-1).flatten().tolist()) for image in read}
    assert len(fields) > 40  # animals of a few kinds in fields of their own


def test_drawings_differ_enough_to_be_told_apart():
    several = [drawing(name) for name in DRAWINGS]
    assert min((a != b).sum() for i, a in enumerate(several) for b in several[:i]) >= 4


@pytest.fixture(scope="module")
def fitted():
    pages, chance = split_pages(SIZES)["train"], random.Random(0)
    image = Image()
    image.fit([draw(page, "train", chance, 1) for page in pages])
    return image


@pytest.mark.parametrize("scale", [1, 5])
def test_an_image_is_read_as_it_was_written(tmp_path, scale):
    image, value = Image(), torch.randint(256, (HEIGHT, 12, 3), dtype=torch.uint8)
    assert torch.equal(image.read(image.write(value, tmp_path / "x", scale)), value)


def test_codes_keep_what_the_reader_sees(fitted, reader, tmp_path):
    pages, chance = split_pages(SIZES)["test"], random.Random(0)
    values = [draw(page, "test", chance, 1) for page in pages]
    codes = fitted.encode(values)
    assert all(code.shape == (CODEBOOKS, 8) for code in codes)
    decoded = [fitted.decode(code) for code in codes]
    same = [reader.sentence(a) == reader.sentence(b) for a, b in zip(values, decoded, strict=True)]
    assert np.mean(same) > 0.95
    fitted.save(tmp_path)
    again = Image.load(RunConfig(), tmp_path)
    assert again.fingerprint == fitted.fingerprint
    assert torch.equal(again.encode(values[:1])[0], codes[0])


@pytest.mark.parametrize("patches", [0, 1, 3])
def test_an_image_that_ends_early_is_completed_with_paper(fitted, patches):
    codes = torch.zeros(CODEBOOKS, patches, dtype=torch.int64)
    image = fitted.decode(codes)
    assert image.shape == (HEIGHT, 4 * ((patches + 1) // 2), 3)
    if patches % 2:
        assert (image[4:, -4:] == 255).all()


def test_an_image_tower_without_its_codebooks_is_refused():
    with pytest.raises(DataError, match=r"model\.towers\.image\.init"):
        Image().encode([torch.zeros(HEIGHT, 8, 3, dtype=torch.uint8)])


def test_a_bad_image_is_refused(tmp_path):
    image = Image.load(RunConfig())
    Picture.new("RGB", (9, 12)).save(tmp_path / "odd.png")
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    for name, why in [("odd", "9 x 12 pixels"), ("text", "cannot be read"), ("gone", "cannot be read")]:
        with pytest.raises(DataError, match=why):
            image.read(tmp_path / f"{name}.png")
