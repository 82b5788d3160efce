"""Images in patches of pixels, which a residual quantiser turns into codes, as EnCodec's does for sound.

A patch is a timestep: the image is read column by column of patches, each from the top. Scored by what an
independent reader sees.
"""

import hashlib
import itertools
import math
from collections.abc import Iterable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image as Picture
from safetensors.torch import load_file, save
from torch import Tensor

from zipper.clusters import k_means, nearest
from zipper.config import RunConfig
from zipper.disk import write_atomic
from zipper.errors import DataError
from zipper.hub import model_folder
from zipper.modalities.base import LIMIT, Modality
from zipper.modalities.layout import TokenLayout
from zipper.modalities.scoring import Scorer, TextScorer

HEIGHT, SIDE = 8, 4  # pixels of an image and of a patch
CODES, CODEBOOKS = 256, 4
FILE = "patches.safetensors"  # the codebooks of a model
FITTED, ROUNDS = 4000, 30  # images that codebooks are fitted to, rounds of k-means
PATCHES_PER_SECOND = 2.5  # 8 patches last as long as a sentence, for the time positions of zips
FAULTS = (OSError, ValueError, LookupError, RuntimeError, SyntaxError, Picture.DecompressionBombError)
SCALE = 16  # pixels of a written file for one of the image


class Image(Modality):
    """Values are pixels uint8 [HEIGHT, W, 3]; content is the codes int64 [CODEBOOKS, F] of F patches. Raw
    inputs are image files."""

    name = "image"
    names_file, fixed_rate, suffix = True, True, ".png"
    rate = PATCHES_PER_SECOND
    layout = TokenLayout.after(CODES, CODEBOOKS)

    def __init__(self, codebooks: Tensor | None = None) -> None:
        """codebooks float32 [CODEBOOKS, CODES, SIDE * SIDE * 3], of which each adds to those before; None:
        `fit` finds them."""
        self._centres = codebooks

    @classmethod
    def load(cls, cfg: RunConfig, folder: Path | None = None) -> Self:
        """With the codebooks of the trained model, or of the pre-trained image tower."""
        tower = cfg.model.towers.get(cls.name)
        if folder is not None and (folder / FILE).is_file():
            file = folder / FILE
        elif tower and tower.init:
            file = model_folder(tower.init) / FILE
        else:
            return cls()
        return cls(load_file(file)["codebooks"].float())

    def fit(self, raw: Iterable[str]) -> None:
        """Codebooks by k-means on the patches of the first images, each on what those before it leave."""
        if self._centres is not None:
            return
        patches = []
        for file in itertools.islice(raw, FITTED):
            with suppress(DataError):  # encoding lists what is skipped
                patches.append(_patches(self.read(file)))
        if not patches:
            return
        residual, found = torch.cat(patches), []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for _ in range(CODEBOOKS):
                found.append(k_means(residual, CODES, ROUNDS))
                residual = residual - found[-1][nearest(residual, found[-1])]
        self._centres = torch.stack(found).half().float()  # as `save` writes them

    def save(self, folder: Path) -> None:
        write_atomic(folder / FILE, save({"codebooks": self.centres.half()}))

    @property
    def centres(self) -> Tensor:
        if self._centres is None:
            raise DataError(
                "There are no codebooks of images: name a pre-trained image tower (model.towers.image.init), "
                "which has them, or a corpus with images."
            )
        return self._centres

    @property
    def fingerprint(self) -> str:  # type: ignore[override]  # not before `fit`
        return f"patches {hashlib.sha256(self.centres.numpy().tobytes()).hexdigest()[:16]}"

    def read(
        self,
        raw: str | Path | Tensor | np.ndarray,
        start: float = 0.0,
        seconds: float | None = None,
        longest: float = math.inf,
        limit: str = LIMIT,
    ) -> Tensor:
        """Pixels of a file, or pixels uint8 [HEIGHT, W, 3]. An enlarged image (`write`) is reduced. Raises
        DataError if it cannot be read, or is not HEIGHT pixels high and whole patches wide."""
        if isinstance(raw, Tensor | np.ndarray):
            return _checked(raw)
        if not isinstance(raw, str | Path):
            raise DataError(
                f"{raw!r} is no image. Give the path of a file, or pixels uint8 [{HEIGHT}, W, 3]."
            )
        try:
            with Picture.open(raw) as picture:
                pixels = np.asarray(picture.convert("RGB"))
        except FAULTS as error:
            raise DataError(f"{raw} cannot be read as an image ({error}). Give a PNG file.") from error
        high, wide, _ = pixels.shape
        scale = high // HEIGHT
        if high % HEIGHT or wide % (SIDE * scale):
            raise DataError(
                f"{raw} has {wide} x {high} pixels. Give an image of {HEIGHT} pixels in height and a "
                f"multiple of {SIDE} in width, or one of these enlarged by a whole number."
            )
        return torch.from_numpy(pixels[scale // 2 :: scale, scale // 2 :: scale].copy())

    def encode(self, values: list[Tensor]) -> list[Tensor]:
        return [self._encode(_patches(value)) for value in values]

    def _encode(self, residual: Tensor) -> Tensor:
        codes = []
        for centres in self.centres:
            codes.append(nearest(residual, centres))
            residual = residual - centres[codes[-1]]
        return torch.stack(codes)

    def decode(self, content: Tensor) -> Tensor:
        """The last column of patches is completed with paper if it ends early."""
        patches = self.centres[torch.arange(len(content))[:, None], content].sum(0)
        rows = HEIGHT // SIDE
        white = torch.ones(-content.shape[1] % rows, SIDE * SIDE * 3)
        pixels = torch.cat([patches, white]).unflatten(0, (-1, rows)) if content.numel() else white[:, None]
        image = pixels.unflatten(2, (SIDE, SIDE, 3)).permute(1, 2, 0, 3, 4).reshape(HEIGHT, -1, 3)
        return (image * 255).round().clamp(0, 255).to(torch.uint8)

    def write(self, value: Tensor, stem: Path, scale: int = SCALE) -> Path:
        """STEM.png, enlarged by `scale`. An empty image is a column of patches of paper."""
        file = stem.with_name(f"{stem.name}.png")
        pixels = value.numpy() if value.numel() else np.full((HEIGHT, SIDE, 3), 255, dtype=np.uint8)
        out = BytesIO()
        Picture.fromarray(pixels.repeat(scale, 0).repeat(scale, 1)).save(out, "PNG")
        write_atomic(file, out.getvalue())
        return file

    def length_text(self, length: int) -> str:
        return f"{length} patches"

    def scorer(self, cfg: RunConfig) -> Scorer:
        """Word errors of the sentence that `page_reader.Reader` reads in an image, against the row's text.
        Raises ConfigError without scikit-learn."""
        from zipper.modalities.page_reader import Reader

        reader = Reader(cfg.data.seed)
        return TextScorer(lambda row: row["text"], lambda content: reader.sentence(self.decode(content)))


def _checked(pixels: Tensor | np.ndarray) -> Tensor:
    """Pixels in memory. Raises DataError on another shape or type."""
    high, wide, colours = pixels.shape if pixels.ndim == 3 else (0, 0, 0)
    kind = str(pixels.dtype).removeprefix("torch.")
    if kind != "uint8" or (high, colours) != (HEIGHT, 3) or not wide or wide % SIDE:
        raise DataError(
            f"The image is {kind} {[*pixels.shape]}, but must be uint8 "
            f"[{HEIGHT}, W, 3] with W a multiple of {SIDE}: pixels of 0 to 255, row by row."
        )
    return pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.ascontiguousarray(pixels))


def _patches(value: Tensor) -> Tensor:
    """Pixels uint8 [HEIGHT, W, 3] -> patches float32 [F, SIDE * SIDE * 3] of 0 to 1."""
    high, wide, _ = value.shape
    pixels = value.float().div(255).view(high // SIDE, SIDE, wide // SIDE, SIDE, 3)
    return pixels.permute(2, 0, 1, 3, 4).reshape(-1, SIDE * SIDE * 3)
