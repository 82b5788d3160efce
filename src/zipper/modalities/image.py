"""Images of few colours, a column a timestep and a row a codebook, scored by what an independent reader sees.

With the delay pattern, each pixel is predicted from all pixels on earlier diagonals, its left and upper
neighbours among them.
"""

import math
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image as Picture
from PIL import UnidentifiedImageError
from torch import Tensor

from zipper.config import RunConfig
from zipper.errors import DataError
from zipper.modalities.base import LIMIT, Modality
from zipper.modalities.layout import TokenLayout
from zipper.modalities.palette import HEIGHT, PALETTE
from zipper.modalities.scoring import Scorer, TextScorer

SCALE = 16  # pixels of a written file for one of the image
COLUMNS_PER_SECOND = 5.0  # 16 columns last as long as a sentence, for the time positions of zips


class Image(Modality):
    """Values and content are codes int64 [HEIGHT, W] into PALETTE. Raw inputs are image files."""

    name = "image"
    names_file, fixed_rate, suffix = True, True, ".png"
    rate = COLUMNS_PER_SECOND
    layout = TokenLayout.after(len(PALETTE), HEIGHT)
    fingerprint = f"columns {HEIGHT} x {len(PALETTE)}"

    @classmethod
    def load(cls, cfg: RunConfig, folder: Path | None = None) -> Self:
        return cls()

    def read(
        self,
        raw: str | Path | Tensor,
        start: float = 0.0,
        seconds: float | None = None,
        longest: float = math.inf,
        limit: str = LIMIT,
    ) -> Tensor:
        """Codes int64 [HEIGHT, W] of a file: each pixel the nearest colour of the palette. An enlarged
        image (`write`) is reduced. Raises DataError if it cannot be read, or has another height."""
        if isinstance(raw, Tensor):
            return raw
        try:
            with Picture.open(raw) as picture:
                pixels = np.asarray(picture.convert("RGB")).astype(np.int64)
        except (OSError, UnidentifiedImageError, Picture.DecompressionBombError) as error:
            raise DataError(f"{raw} cannot be read as an image ({error}). Give a PNG file.") from error
        high, wide, _ = pixels.shape
        scale = high // HEIGHT
        if high % HEIGHT or wide % scale:
            raise DataError(
                f"{raw} has {wide} x {high} pixels. Give an image of {HEIGHT} pixels in height, or one of "
                "these enlarged by a whole number."
            )
        small = pixels[scale // 2 :: scale, scale // 2 :: scale]
        distance = np.square(small[:, :, None] - PALETTE.astype(np.int64)).sum(-1)  # [H, W, codes]
        return torch.from_numpy(distance.argmin(-1))

    def encode(self, values: list[Tensor]) -> list[Tensor]:
        return values

    def decode(self, content: Tensor) -> Tensor:
        return content

    def write(self, value: Tensor, stem: Path, scale: int = SCALE) -> Path:
        """STEM.png, enlarged by `scale`. An empty image is one column of paper."""
        file = stem.with_name(f"{stem.name}.png")
        Picture.fromarray(pixels(value, scale)).save(file)
        return file

    def length_text(self, length: int) -> str:
        return f"{length} columns"

    def scorer(self, cfg: RunConfig) -> Scorer:
        """Word errors of the sentence that `page_reader.Reader` reads in an image, against the row's text.
        Raises ConfigError without scikit-learn."""
        from zipper.modalities.page_reader import Reader

        reader = Reader(cfg.data.seed)
        return TextScorer(lambda row: row["text"], lambda content: reader.sentence(self.decode(content)))


def pixels(value: Tensor, scale: int = SCALE) -> np.ndarray:
    """Codes int64 [H, W] as colours uint8 [H * scale, W * scale, 3]."""
    codes = value.numpy() if value.numel() else np.zeros((HEIGHT, 1), dtype=np.int64)
    return PALETTE[codes].repeat(scale, 0).repeat(scale, 1)
