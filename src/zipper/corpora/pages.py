"""Pages: small images that a sentence of the grammar describes, with a handwritten page number.

"page seven of the red book shows three dogs": left a real digit of scikit-learn (8 x 8), right
three dogs on the book's colour, each in one of four fields. Digits are split by sample and sentences by their
words, so dev and test have neither a digit nor a sentence of the training split.
"""

import itertools
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zipper.config import DataConfig
from zipper.corpora.spoken import spoken_texts, synthesize
from zipper.corpora.utterance import Utterance, read_manifest, write_manifest
from zipper.modalities.image import Image
from zipper.modalities.page_reader import (
    COLORS,
    COUNTS,
    DRAWINGS,
    FIELDS,
    HEIGHT,
    INK,
    NUMBERS,
    SHIFTS,
    SIDE,
    Page,
    digits,
    drawing,
    drawn,
    shifted,
    turned,
)


def every_page() -> list[Page]:
    """All 2,880 of them."""
    return [Page(*words) for words in itertools.product(NUMBERS[2:], COLORS, COUNTS, DRAWINGS)]


def draw(page: Page, split: str, chance: random.Random, seed: int) -> Tensor:
    """Pixels uint8 [8, 16, 3] of a page with a digit of the split, which in train is shifted by up to a
    pixel, or turned."""
    images, labels = digits(seed)[split]
    own = np.flatnonzero(labels == NUMBERS.index(page.number))
    digit = images[chance.choice(own.tolist())]
    if split == "train":
        digit = shifted(digit, *chance.choice(SHIFTS)) if chance.random() < 0.3 else turned(digit, chance)
    shape = np.zeros((HEIGHT, HEIGHT), dtype=bool)
    for row, column in chance.sample(FIELDS, COUNTS[page.amount]):
        shape[row : row + SIDE, column : column + SIDE] = drawing(page.animals)
    grey = np.rint(255 - 255 / INK * digit).astype(np.uint8)
    return torch.from_numpy(np.concatenate([grey[..., None].repeat(3, -1), drawn(shape, page.color)], axis=1))


def pages_corpus(cfg: DataConfig, root: Path, workers: int, spoken: bool) -> list[Utterance]:
    """Utterances of `data.train`, `data.dev` and `data.test` pages; draws and synthesizes what is missing.

    Training pages have text and an image, and with `spoken` a recording too; dev and test have all three.
    Sentences of dev and test are not among those that the shipped model was trained on.
    """
    rates = "" if cfg.rates == DataConfig().rates else "-{:g}-{:g}".format(*cfg.rates)
    folder = root / f"pages-{cfg.seed}-{cfg.train}-{cfg.dev}-{cfg.test}{'-spoken' * spoken}{rates}"
    manifest = folder / "manifest.jsonl"
    if not manifest.exists():
        found = _draw_all(cfg, folder, "pages-spoken" if spoken else "pages")
        synthesize([u for u in found if u.audio], cfg, workers)
        write_manifest(manifest, found)
    return [_placed(u, folder.resolve()) for u in read_manifest(manifest)]


def split_pages(cfg: DataConfig) -> dict[str, list[Page]]:
    """Distinct pages of each split."""
    known = {*spoken_texts(DataConfig(train=12_000))["train"]}  # configs/joint.yaml
    pages = every_page()
    random.Random(cfg.seed).shuffle(pages)
    new = [page for page in pages if page.sentence not in known][: cfg.dev + cfg.test]
    held = {*new}
    return {
        "train": [page for page in pages if page not in held],
        "dev": new[: cfg.dev],
        "test": new[cfg.dev :],
    }


def _draw_all(cfg: DataConfig, folder: Path, corpus: str) -> list[Utterance]:
    found, image = list[Utterance](), Image()
    for split, pages in split_pages(cfg).items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        count = {"train": cfg.train, "dev": cfg.dev, "test": cfg.test}[split]
        heard = split != "train" or corpus == "pages-spoken"
        for i, page in enumerate(itertools.islice(itertools.cycle(pages), count)):
            id = f"{split}-{i:05d}"
            chance = random.Random(f"{cfg.seed} {id}")
            file = image.write(draw(page, split, chance, cfg.seed), folder / split / id, scale=1)
            audio = str(file.with_suffix(".flac").resolve()) if heard else None
            other = {"image": str(file)}
            found.append(
                Utterance(id, audio, page.sentence, "heart", split, f"{corpus}/{split}", other=other)
            )
    return found


def _placed(u: Utterance, folder: Path) -> Utterance:
    """With the files of this folder, which may have moved since it was made."""
    audio = str(folder / u.split / f"{u.id}.flac") if u.audio else None
    return replace(u, audio=audio, other={"image": str(folder / u.split / f"{u.id}.png")})
