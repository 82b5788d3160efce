"""Reader of pages (`corpora.pages`), independent of the models that write them: it scores images."""

import functools
import itertools
import random
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from torch import Tensor

from zipper.errors import ConfigError

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")  # of digits
HEIGHT, SIDE = 8, 4  # pixels of a page and of a field
FAR = 40  # mean difference of a field's pixels (0 to 255) from what it is read as
INK = 16  # darkest of scikit-learn's 17 grey levels
COLORS = {
    "red": (214, 48, 49), "blue": (52, 98, 219), "green": (46, 160, 67), "yellow": (250, 222, 60),
    "white": (255, 250, 235), "black": (28, 14, 40), "purple": (132, 60, 180), "orange": (240, 140, 40),
    "silver": (176, 190, 204), "golden": (198, 158, 66),
}  # fmt: skip
COUNTS = {"two": 2, "three": 3, "four": 4}
INK_ON = {"white", "yellow", "silver", "golden", "orange"}  # books with drawings in ink; others leave paper
DRAWINGS = {
    "horses": "..## #### #..# #..#", "dogs": "#..# #### #### .#.#", "rabbits": "#.#. #.#. ###. ####",
    "tigers": "#.#. .#.# #.#. .#.#", "monkeys": ".##. .##. #### .##.", "camels": ".#.. ###. ###. #.#.",
    "donkeys": "##.. .##. .### .#.#", "parrots": "##.. .#.. .##. ..##", "turtles": ".... .##. #### #..#",
    "spiders": "#..# .##. .##. #..#", "lizards": "...# ..#. .#.. ###.", "penguins": "..#. .### .### ..#.",
}  # fmt: skip
FIELDS = [(row, column) for column in (0, SIDE) for row in (0, SIDE)]
SHIFTS = [*itertools.product((-1, 0, 1), repeat=2)]
TURNED = 2  # times that the reader sees each digit turned
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


@functools.cache
def digits(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images int64 [N, 8, 8] and labels [N] of scikit-learn's digits, by split. Raises ConfigError without
    scikit-learn."""
    if find_spec("sklearn") is None:
        raise ConfigError("Pages need scikit-learn's digits. Run pip install -e '.[images]'.")
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    ends = np.cumsum([*HELD_OUT.values()])
    parts = dict(zip([*HELD_OUT, "train"], np.split(order, ends), strict=True))
    return {split: (data.images[at].astype(np.int64), data.target[at]) for split, at in parts.items()}


def shifted(images: np.ndarray, down: int, right: int) -> np.ndarray:
    """Images [..., 8, 8] moved by up to a pixel (-1 to 1) each way, with paper where nothing was."""
    padded = np.pad(images, [(0, 0)] * (images.ndim - 2) + [(1, 1)] * 2)
    return padded[..., 1 - down : 1 - down + HEIGHT, 1 - right : 1 - right + HEIGHT]


def turned(digit: np.ndarray, chance: random.Random) -> np.ndarray:
    """A digit [8, 8] turned by up to 10 degrees, 10 % larger or smaller, and moved by up to 0.7 pixels."""
    from scipy.ndimage import affine_transform

    angle, scale = np.deg2rad(chance.uniform(-10, 10)), chance.uniform(0.9, 1.1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    middle = np.full(2, (HEIGHT - 1) / 2)
    moved = np.array([chance.uniform(-0.7, 0.7), chance.uniform(-0.7, 0.7)])
    return affine_transform(digit.astype(float), turn, middle - turn @ middle + moved, order=1)


def drawing(animals: str) -> np.ndarray:
    """Drawn pixels of an animal: bool [SIDE, SIDE]"""
    return np.array([[pixel == "#" for pixel in row] for row in DRAWINGS[animals].split()])


def drawn(shape: np.ndarray, color: str) -> np.ndarray:
    """Pixels uint8 [..., 3] of a shape bool [...] in the ink of a book of this colour."""
    ink = (15, 15, 15) if color in INK_ON else (255, 255, 255)
    return np.where(shape[..., None], ink, COLORS[color]).astype(np.uint8)


class Reader:
    """Independent reader of pages: a support vector classifier of digits, trained on the real pixels of the
    training split, shifted and turned as training pages show them (trained on digits in the middle alone, it
    reads 46 % of shifted real ones), and the nearest drawing in the colours of a book."""

    def __init__(self, seed: int) -> None:
        """seed: of the split (`data.seed`)."""
        images, labels = digits(seed)["train"]
        from sklearn.svm import SVC

        chance = random.Random(seed)
        seen = [shifted(images, *by) for by in SHIFTS]
        seen += [np.stack([turned(digit, chance) for digit in images]) for _ in range(TURNED)]
        pixels = np.concatenate(seen).reshape(-1, HEIGHT * HEIGHT)
        self.classifier = SVC(gamma=0.001).fit(pixels, np.tile(labels, len(seen)))
        shapes = [np.zeros((SIDE, SIDE), dtype=bool), *map(drawing, DRAWINGS)]
        self.templates = np.array(
            [[drawn(shape, color) for shape in shapes] for color in COLORS], dtype=float
        )

    def digits(self, images: np.ndarray) -> np.ndarray:
        """Labels [N] of images [N, 8, 8]."""
        return self.classifier.predict(images.reshape(len(images), -1))

    def sentence(self, image: Tensor) -> str:
        """Sentence of an image uint8 [8, W, 3]; empty if it has another width than a page, or its right half
        is like no page's."""
        if image.shape[1] != 2 * HEIGHT:
            return ""
        digit, picture = image[:, :HEIGHT].float().mean(-1).numpy(), image[:, HEIGHT:].numpy().astype(float)
        number = NUMBERS[int(self.digits((255 - digit)[None] * INK / 255)[0])]
        fields = np.stack([picture[row : row + SIDE, column : column + SIDE] for row, column in FIELDS])
        distance = np.abs(fields[None, :, None] - self.templates[:, None]).mean((3, 4, 5))
        color = int(distance.min(2).sum(1).argmin())
        found = distance[color]  # [4 fields, 1 + drawings]
        if found.min(1).max() > FAR:
            return ""
        shown = found.argmin(1) > 0
        words = {count: word for word, count in COUNTS.items()}
        if shown.sum() not in words:
            return f"page {number} of the {[*COLORS][color]} book"
        animals = [*DRAWINGS][int(found[shown, 1:].sum(0).argmin())]
        return Page(number, [*COLORS][color], words[int(shown.sum())], animals).sentence
