"""Reader of pages (`corpora.pages`), independent of the models that write them: it scores images."""

import functools
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from torch import Tensor

from zipper.errors import ConfigError
from zipper.modalities.palette import COLORS, HEIGHT, LEVELS

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")  # of digits
SIDE = 4  # pixels of a field
INK = 16  # darkest of scikit-learn's 17 grey levels
COUNTS = {"two": 2, "three": 3, "four": 4}
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


def drawing(animals: str) -> np.ndarray:
    """Drawn pixels of an animal: bool [SIDE, SIDE]"""
    return np.array([[pixel == "#" for pixel in row] for row in DRAWINGS[animals].split()])


def ink(color: str) -> int:
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
        number = NUMBERS[label]
        marked = picture == ink(color)
        fields = [marked[row : row + SIDE, column : column + SIDE] for row, column in FIELDS]
        shown = [field for field in fields if field.sum() > 2]
        if not shown:
            return f"page {number} of the {color} book"
        distance = {name: sum((field != drawing(name)).sum() for field in shown) for name in DRAWINGS}
        words = {count: word for word, count in COUNTS.items()}
        count = words.get(len(shown), "one")
        return Page(number, color, count, min(distance, key=lambda name: distance[name])).sentence
