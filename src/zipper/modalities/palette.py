"""Colours of images (`modalities.image`)."""

from collections.abc import Mapping

import numpy as np

HEIGHT = 8  # pixels
LEVELS = (
    3  # grey levels: paper, half, ink. With more, paper is the most likely pixel even where most have ink
)
COLORS: Mapping[str, tuple[int, int, int]] = {
    "red": (214, 48, 49), "blue": (52, 98, 219), "green": (46, 160, 67), "yellow": (250, 222, 60),
    "white": (255, 250, 235), "black": (28, 14, 40), "purple": (132, 60, 180), "orange": (240, 140, 40),
    "silver": (176, 190, 204), "golden": (198, 158, 66),
}  # fmt: skip
GREYS = [(255 - 240 * level // (LEVELS - 1),) * 3 for level in range(LEVELS)]
PALETTE = np.array([*GREYS, *COLORS.values()], dtype=np.uint8)  # [codes, 3]
