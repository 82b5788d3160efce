"""A codec with the semantic units of another one in front of its codebooks."""

import math

import torch
import torchaudio.functional as AF
from torch import Tensor

from zipper.codecs.codec import Codec
from zipper.codecs.semantic import HOP, SAMPLE_RATE, SemanticEncoder
from zipper.errors import ConfigError


class SemanticPrefix(Codec):
    """Codec whose first codebook holds semantic units, each repeated to the codec's frame rate.

    The other codebooks are those of `acoustic`. Decoding ignores the first, which counts once per unit in the
    bit rate.
    """

    semantic: SemanticEncoder
    silent = 1

    def __init__(self, acoustic: Codec, semantic: SemanticEncoder) -> None:
        """Raises ConfigError unless both have as many codes, and a unit lasts a whole number of frames."""
        self.acoustic, self.semantic, self.model = acoustic, semantic, acoustic.model
        self.codes, units = acoustic.codes, len(semantic.get_buffer("centroids"))
        if units != self.codes:
            raise ConfigError(
                f"codec.semantic has {units} units, but {acoustic.name} has {self.codes} codes per codebook. "
                f"Name a codec that was trained with train_codec.codes={self.codes}."
            )
        self.repeats = round(acoustic.frame_rate * HOP / SAMPLE_RATE)  # frames of a unit
        if self.repeats * acoustic.hop * SAMPLE_RATE != HOP * acoustic.sample_rate:
            raise ConfigError(
                f"codec.semantic has {SAMPLE_RATE / HOP:g} units a second, which do not divide the "
                f"{acoustic.frame_rate:g} frames a second of {acoustic.name}. Leave it out."
            )
        self.name, self.codebooks = acoustic.name, 1 + acoustic.codebooks
        self.sample_rate, self.hop, self.frame_rate = acoustic.sample_rate, acoustic.hop, acoustic.frame_rate
        self.fingerprint = f"{semantic.fingerprint} before {acoustic.fingerprint}"

    def bit_rate(self, codebooks: int) -> float:
        return self.acoustic.bit_rate(codebooks - 1) + SAMPLE_RATE / HOP * math.log2(self.codes)

    def encode(self, waves: list[Tensor]) -> list[Tensor]:
        acoustic = self.acoustic.encode(waves)
        return [
            torch.cat([self.units(wave, codes.shape[1])[None], codes])
            for wave, codes in zip(waves, acoustic, strict=True)
        ]

    def units(self, wave: Tensor, frames: int) -> Tensor:
        """Unit of each frame of a wave [n]: int64 [F]. The last unit may lie partly beyond the last frame."""
        resampled = AF.resample(wave, self.sample_rate, SAMPLE_RATE).to(self.device)
        units = self.semantic.to(self.device)(resampled).cpu()
        return units.repeat_interleave(self.repeats)[:frames]

    def waves(self, codes: Tensor) -> Tensor:
        return self.acoustic.waves(codes[1:])
