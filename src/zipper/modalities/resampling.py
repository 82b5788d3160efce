"""Sample rates: a whole waveform, or one that arrives in pieces."""

import math
from fractions import Fraction

import torch
import torchaudio.functional as AF
from torch import Tensor

KERNEL = 1_000_000  # maximum size of a resampling filter (8 MB in float64)
CROSSINGS = 7  # zero crossings on each side that torchaudio's filter reaches at most


def resample(wave: Tensor, rate: int, target: int) -> Tensor:
    """Resamples wave [n] from `rate` to `target` Hz.

    The filter size grows with the reduced fraction of the rates. If it exceeds KERNEL, the nearest smaller
    fraction is used, with an error below 0.04 %.
    """
    ratio = _ratio(rate, target)
    if ratio == 1:
        return wave
    return AF.resample(wave, ratio.numerator, ratio.denominator)


class ResamplingStream:
    """Resamples a waveform that arrives in pieces. Joined, what it returns equals `resample` of the whole, to
    within rounding."""

    def __init__(self, rate: int, target: int) -> None:
        """rate, target: in Hz."""
        self.rate, self.target, self.ratio = rate, target, _ratio(rate, target)
        # Whole periods of the filter, which reach as far as it does: samples of input on each side.
        reach = CROSSINGS * max(self.ratio, Fraction(1)) / self.ratio.numerator
        self.context = (1 + math.ceil(reach)) * self.ratio.numerator
        self.kept = torch.zeros(0)  # input that is still needed
        self.before = 0  # samples of it that are context alone

    def push(self, wave: Tensor, last: bool = False) -> Tensor:
        """Next output float32 [m] of the next input float32 [n]. last: no more input follows."""
        if self.ratio == 1:
            return wave
        self.kept = torch.cat([self.kept, wave])
        period = self.ratio.numerator
        ready = (len(self.kept) - self.context) // period * period
        if not last and ready <= self.before:
            return torch.zeros(0)
        out = resample(self.kept, self.rate, self.target) if len(self.kept) else self.kept
        places = slice(_output(self.before, self.ratio), None if last else _output(ready, self.ratio))
        dropped = max(0, ready - self.context) if not last else len(self.kept)
        self.kept, self.before = self.kept[dropped:], 0 if last else ready - dropped
        return out[places]


def _output(samples: int, ratio: Fraction) -> int:
    """Samples of output of whole periods of input."""
    return samples // ratio.numerator * ratio.denominator


def _ratio(rate: int, target: int) -> Fraction:
    ratio = exact = Fraction(rate, target)
    most = 4096
    while _kernel(ratio) > KERNEL:
        ratio, most = exact.limit_denominator(most), most // 2
    return ratio


def _kernel(ratio: Fraction) -> int:
    """Size of torchaudio's filter: one row per phase, six zero crossings on each side."""
    return ratio.numerator * ratio.denominator + 13 * max(ratio.numerator, ratio.denominator)
