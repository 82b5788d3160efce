"""Images in memory and in files."""

import resource

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from zipper.errors import DataError
from zipper.modalities.image import Image

PIXELS = torch.randint(256, (8, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_pixels_come_back_from_a_file_and_from_memory(tmp_path):
    image = Image()
    file = image.write(PIXELS, tmp_path / "a.b")
    assert file.name == "a.b.png"
    for raw in (file, str(file), PIXELS, PIXELS.numpy()):
        assert torch.equal(image.read(raw), PIXELS)


@pytest.mark.parametrize(
    "raw",
    [PIXELS / 255, torch.full((8, 16, 3), torch.nan), PIXELS.permute(2, 0, 1), PIXELS[..., 0], PIXELS[:, :15],
     PIXELS[:, :0], PIXELS.numpy().astype(np.int64), Picture.new("RGB", (16, 8)), None],
)  # fmt: skip
def test_other_pixels_are_refused(raw):
    with pytest.raises(DataError, match=r"must be uint8 \[8, W, 3\]|is no image"):
        Image().read(raw)


def test_every_cut_of_a_file_is_refused(tmp_path):
    whole = Image().write(PIXELS, tmp_path / "whole").read_bytes()
    for length in range(0, len(whole) - 60, 7):  # without a part of the pixels
        (tmp_path / "cut.png").write_bytes(whole[:length])
        with pytest.raises(DataError, match="cannot be read as an image"):
            Image().read(tmp_path / "cut.png")


def test_a_write_that_fails_keeps_the_file_that_was_there(tmp_path):
    before = Image().write(PIXELS, tmp_path / "a").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            Image().write(255 - PIXELS, tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "a.png").read_bytes() == before


def test_codebooks_are_those_of_the_images_that_can_be_read(tmp_path):
    """Encoding skips and lists the others."""
    files = []
    for number in range(4):
        pixels = torch.randint(256, (8, 64, 3), generator=torch.Generator().manual_seed(number))
        files.append(str(Image().write(pixels.to(torch.uint8), tmp_path / f"{number}")))
    whole, damaged = Image(), Image()
    whole.fit([*files[:1], *files[2:]])
    (tmp_path / "1.png").write_bytes(b"no image")
    damaged.fit(files)
    assert torch.equal(damaged.centres, whole.centres)


def test_damaged_files_of_any_kind_and_odd_arrays_are_read_or_refused(tmp_path, monkeypatch):
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    assert torch.equal(Image().read(pixels[:, ::-1]), torch.from_numpy(pixels[:, ::-1].copy()))
    with pytest.raises(DataError, match="The image is object"):
        Image().read(pixels.astype(object))
    (tmp_path / "a.png").write_bytes(b"x")
    for error in (IndexError("end"), RuntimeError("decoder"), NotImplementedError("format")):
        monkeypatch.setattr("PIL.Image.open", lambda _, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(DataError, match="cannot be read as an image"):
            Image().read(tmp_path / "a.png")
