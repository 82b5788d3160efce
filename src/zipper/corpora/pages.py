"""Pages: small images that a sentence of the grammar describes, with a handwritten page number.

"page seven of the red book shows three dogs": left a real digit of scikit-learn (8 x 8, three greys), right
three dogs on the book's colour, each in one of four fields. Digits are split by sample and sentences by their
words, so dev and test have neither a digit nor a sentence of the training split.
"""

import functools
import itertools
import random
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipper.config import DataConfig
from zipper.corpora.grammar import UNITS
from zipper.corpora.spoken import spoken_texts, synthesize
from zipper.corpora.utterance import Utterance, read_manifest, write_manifest
from zipper.errors import ConfigError
from zipper.modalities.image import COLORS, HEIGHT, LEVELS, Image

SIDE = 4  # pixels of a field
INK = 16  # darkest of scikit-learn's 17 grey levels
COUNTS = dict(zip(UNITS[:3], (2, 3, 4), strict=True))
INK_ON = {"white", "yellow", "silver", "golden", "orange"}  # books with drawings in ink; others leave paper
DRAWINGS = {
    "horses": "..## #### #..# #..#", "dogs": "#..# #### #### .#.#", "rabbits": "#.#. #.#. ###. ####",
    "tigers": "#.#. .#.# #.#. .#.#", "monkeys": ".##. .##. #### .##.", "camels": ".#.. ###. ###. #.#.",
    "donkeys": "##.. .##. .### .#.#", "parrots": "##.. .#.. .##. ..##", "turtles": ".... .##. #### #..#",
    "spiders": "#..# .##. .##. #..#", "lizards": "...# ..#. .#.. ###.", "penguins": "..#. .### .### ..#.",
}  # fmt: skip
FIELDS = [(row, column) for column in (0, SIDE) for row in (0, SIDE)]
HELD_OUT = {"dev": 200, "test": 297}  # digits


class Page(NamedTuple):
    """What a page shows, in the words of its sentence."""

    number: str
    color: str
    amount: str
    animals: str

    @property
    def sentence(self) -> str:
        return f"page {self.number} of the {self.color} book shows {self.amount} {self.animals}"


def every_page() -> list[Page]:
    """All 2,880 of them."""
    return [Page(*words) for words in itertools.product(UNITS, COLORS, COUNTS, DRAWINGS)]


@functools.cache
def digits(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images int64 [N, 8, 8] and labels [N] of scikit-learn's digits, by split. Raises ConfigError without
    scikit-learn."""
    if find_spec("sklearn") is None:
        raise ConfigError("Pages need scikit-learn's digits. Run `pip install 'zipper[images]'`.")
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    ends = np.cumsum([*HELD_OUT.values()])
    parts = dict(zip([*HELD_OUT, "train"], np.split(order, ends), strict=True))
    return {split: (data.images[at].astype(np.int64), data.target[at]) for split, at in parts.items()}


def draw(page: Page, split: str, chance: random.Random, seed: int) -> Tensor:
    """Image int64 [8, 16] of a page with a digit of the split, which in train is shifted by up to a pixel."""
    images, labels = digits(seed)[split]
    own = np.flatnonzero(labels == UNITS.index(page.number) + 2)
    digit = images[chance.choice(own.tolist())]
    if split == "train":
        padded = np.pad(digit, 1)
        top, left = chance.randrange(3), chance.randrange(3)
        digit = padded[top : top + HEIGHT, left : left + HEIGHT]
    picture = np.full((HEIGHT, HEIGHT), LEVELS + [*COLORS].index(page.color))
    for row, column in chance.sample(FIELDS, COUNTS[page.amount]):
        picture[row : row + SIDE, column : column + SIDE][drawing(page.animals)] = _ink(page.color)
    levels = np.rint(digit * (LEVELS - 1) / INK).astype(np.int64)
    return torch.from_numpy(np.concatenate([levels, picture], axis=1))


def drawing(animals: str) -> np.ndarray:
    """Drawn pixels of an animal: bool [SIDE, SIDE]"""
    return np.array([[pixel == "#" for pixel in row] for row in DRAWINGS[animals].split()])


def _ink(color: str) -> int:
    return LEVELS - 1 if color in INK_ON else 0


class Reader:
    """Independent reader of pages: a support vector classifier of digits, trained on the real pixels of the
    training split, and the nearest drawing."""

    def __init__(self, seed: int) -> None:
        """seed: of the split (`data.seed`)."""
        images, labels = digits(seed)["train"]
        from sklearn.svm import SVC

        self.classifier = SVC(gamma=0.001).fit(images.reshape(len(images), -1), labels)

    def digits(self, images: np.ndarray) -> np.ndarray:
        """Labels [N] of images [N, 8, 8]."""
        return self.classifier.predict(images.reshape(len(images), -1))

    def sentence(self, image: Tensor) -> str:
        """Sentence of an image int64 [8, W]; empty if it has another width than a page, or no colour."""
        if image.shape[1] != 2 * HEIGHT:
            return ""
        digit, picture = image[:, :HEIGHT].numpy(), image[:, HEIGHT:].numpy()
        found = np.bincount(picture[picture >= LEVELS] - LEVELS, minlength=len(COLORS))
        if not found.any():
            return ""
        color = [*COLORS][found.argmax()]
        label = int(self.digits(digit.clip(max=LEVELS - 1)[None] * INK / (LEVELS - 1))[0])
        number = UNITS[label - 2] if label >= 2 else ("zero", "one")[label]
        marked = picture == _ink(color)
        fields = [marked[row : row + SIDE, column : column + SIDE] for row, column in FIELDS]
        shown = [field for field in fields if field.sum() > 2]
        if not shown:
            return f"page {number} of the {color} book"
        distance = {name: sum((field != drawing(name)).sum() for field in shown) for name in DRAWINGS}
        words = {count: word for word, count in COUNTS.items()}
        count = words.get(len(shown), "one")
        return Page(number, color, count, min(distance, key=lambda name: distance[name])).sentence


def pages_corpus(cfg: DataConfig, root: Path, workers: int, spoken: bool) -> list[Utterance]:
    """Utterances of `data.train`, `data.dev` and `data.test` pages; draws and synthesizes what is missing.

    Training pages have text and an image, and with `spoken` a recording too; dev and test have all three.
    Sentences of dev and test are not among those that the shipped model was trained on.
    """
    folder = root / f"pages-{cfg.seed}-{cfg.train}-{cfg.dev}-{cfg.test}{'-spoken' * spoken}"
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
