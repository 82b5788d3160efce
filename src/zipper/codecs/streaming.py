"""Decoding of codes that arrive in pieces."""

import torch
from torch import Tensor

from zipper.codecs.codec import Codec


class DecoderStream:
    """Waveform of a codec's codes, piece by piece. Joined, the pieces are what the codec decodes from all
    codes at once, to within rounding.

    Each piece is decoded together with the frames around it that it depends on (`Codec.reach`). A causal
    decoder emits a frame as soon as it has its codes.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.before, self.after = codec.reach
        self.codes = torch.zeros(codec.codebooks, 0, dtype=torch.int64)
        self.start = self.emitted = 0  # frame of the first of `codes`; frames that were emitted

    def push(self, codes: Tensor, last: bool = False) -> Tensor:
        """codes int64 [Q, F], F >= 0, of the next frames -> float32 [n], the sound that no later code
        changes. last: no code follows, so that the rest is emitted."""
        self.codes = torch.cat([self.codes, codes], dim=1)
        end = self.start + self.codes.shape[1]
        until = end if last else max(self.emitted, end - self.after)
        if end < self.codec.reflected and not last:
            until = 0
        if until == self.emitted:
            return torch.zeros(0)
        wave, hop = self.codec.decode(self.codes), self.codec.hop
        piece = wave[(self.emitted - self.start) * hop : (until - self.start) * hop]
        self.emitted = until
        if self.before is not None and (keep := max(self.start, until - self.before)) > self.start:
            self.codes, self.start = self.codes[:, keep - self.start :], keep
        return piece
