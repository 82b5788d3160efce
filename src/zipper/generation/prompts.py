"""Prompts: raw inputs as segments."""

from textwrap import shorten
from typing import Any

from zipper.data.documents import Document, Segment, segment
from zipper.data.statistics import LENGTH_MARGIN
from zipper.errors import ConfigError, DataError, ZipperError
from zipper.modalities.base import Modality, encode_values

SHORTEST = 0.05  # seconds of a recording in which a word can be said


def read_prompt(
    modality: Modality, raw: Any, trained_on: int, start: float = 0.0, seconds: float | None = None
) -> Any:
    """Value of a raw input, as `prompt_segment` reads it: a recording that is too long is not decoded."""
    most = int(LENGTH_MARGIN * trained_on)
    modality.check_size(raw, most)
    longest = most / modality.rate
    return modality.read(raw, start, seconds, longest, "the {:g} s that this model accepts")


def prompt_segment(
    modality: Modality, raw: Any, trained_on: int, start: float = 0.0, seconds: float | None = None
) -> Segment:
    """Raw input, or value, of a modality as a prompt segment. trained_on: length of the longest content of a
    training; seconds: part of a recording from `start`.

    Raises as `Modality.read`, DataError on a recording that is too short, ConfigError on input that is too
    long.
    """
    most = int(LENGTH_MARGIN * trained_on)
    value = read_prompt(modality, raw, trained_on, start, seconds)
    shown = f"{shorten(str(raw), 60)!r}" if isinstance(raw, str) else f"the {modality.name}"
    if modality.sample_rate and (length := modality.seconds(value)) < SHORTEST:
        raise DataError(f"{shown} is {length:.2g} s long, but no word is shorter than {SHORTEST:g} s.")
    (content,) = encode_values(modality, [value], shown)
    if content.shape[1] > most:
        raise ConfigError(
            f"{shown} has {modality.length_text(content.shape[1])}; this model was trained on at most "
            f"{trained_on}, and accepts at most {most}. Cut it into sentences."
        )
    try:
        return segment(modality, content)
    except ZipperError as error:
        raise type(error)(f"{shown} as {modality.name}: {error}") from error


def prompt_of(name: str, *segments: Segment) -> Document:
    """Multimodal document of prompt segments."""
    return Document(name, list(segments), multimodal=True)
