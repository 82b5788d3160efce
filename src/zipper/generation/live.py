"""Transcription of sound while it arrives: words are committed once two transcripts of a growing recording
agree on them (LocalAgreement, arXiv 2005.11185), and never change."""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import SupportsFloat

import torch
from torch import Tensor

from zipper.errors import ConfigError, DataError
from zipper.generation.prompts import SHORTEST
from zipper.generation.word_times import BLOCK, SILENT, Word, loudness
from zipper.modalities.audio import LOUDEST

PAUSE, SPEECH = 0.4, 0.6  # seconds: a pause that ends a segment, and the least speech before it
LEAD = 0.1  # seconds of silence before a segment, as corpora have them
QUIET = 0.1  # of the loudest block: amplitude of a pause
SOFTEST = 1e-3  # of full scale: softer sound is no speech


def softest_speech(wave: Tensor, sample_rate: int) -> float:
    """Amplitude (RMS) below which a whole recording float32 [n] has no speech: SOFTEST, or less if all of it
    is soft."""
    loud = loudness(wave, round(BLOCK * sample_rate))
    return min(SOFTEST, SILENT * float(loud.max())) if len(loud) else SOFTEST


class LiveTranscript:
    """Words of sound that arrives in pieces.

    Sound is cut into segments at pauses, or at its softest place before a segment is too long; a finished
    segment is transcribed as a whole and forgotten, so memory is bounded. What is committed depends on the
    sound, not on how it was cut into pieces.
    """

    def __init__(
        self,
        transcribe: Callable[[Tensor], str],
        sample_rate: int,
        longest: float,
        every: float = 0.5,
        align: Callable[[Tensor, str], Sequence[Word]] | None = None,
        softest: float = SOFTEST,
    ) -> None:
        """transcribe: a waveform float32 [n] at sample_rate (Hz), at most `longest` seconds, to text. every:
        seconds of sound between two transcripts. align: words of a transcript with their times; without it
        these are NaN. softest: amplitude (RMS, of full scale) below which sound is no speech. Raises
        ConfigError if `every` is not positive, or more than half of `longest`."""
        if not (isinstance(every, SupportsFloat) and every * sample_rate >= 1 and every <= longest / 2):
            raise ConfigError(
                f"every={every!r} must be a positive number of seconds, at most {longest / 2:.3g}, half of "
                "the longest prompt."
            )
        self.transcribe, self.align, self.rate = transcribe, align, sample_rate
        self.block, self.step = round(BLOCK * sample_rate), round(every * sample_rate)
        self.longest = max(2 * self.step, math.floor(longest * sample_rate))  # a step may be rounded up
        self.softest = softest
        self.sound = torch.zeros(0)  # of the segment that is not finished
        self.start = 0  # its first sample, of all
        self.closed: tuple[Tensor, list[str]] = torch.zeros(0), []  # the segment before it, and its words
        self.coming = torch.zeros(0)  # less than a step
        self.committed: list[str] = []  # of this segment
        self.latest: list[str] = []

    def feed(self, wave: Tensor) -> list[Word]:
        """wave float32 [n]: the next piece. Returns the words that are committed now, with times from the
        first sample of all. Raises DataError on another shape or type, or on samples that are not finite or
        badly scaled; such a piece is left out."""
        if not isinstance(wave, Tensor) or wave.ndim != 1 or not wave.is_floating_point():
            given = f"{wave.dtype} {[*wave.shape]}" if isinstance(wave, Tensor) else type(wave).__name__
            raise DataError(f"A piece of sound must be a tensor of floating-point samples [n], not {given}.")
        if len(wave) and not float(wave.abs().max()) <= LOUDEST:
            raise DataError(
                "A piece of sound holds NaN, infinite or badly scaled samples, and is left out. Give "
                "floating-point samples in -1 to 1."
            )
        self.coming, words = torch.cat([self.coming, wave]), list[Word]()
        while len(self.coming) >= self.step:
            self.sound = torch.cat([self.sound, self.coming[: self.step]])
            self.coming = self.coming[self.step :]
            words += self._update()
        return words

    def finish(self) -> list[Word]:
        """No sound follows: the remaining words."""
        self.sound, self.coming = torch.cat([self.sound, self.coming]), self.coming[:0]
        words = self._finished()
        while len(self.sound) > self.longest:
            words += self._close(self._softest())
        return words + self._close(len(self.sound))

    def _update(self) -> list[Word]:
        self._forget_silence()
        words = self._finished()
        if len(self.sound) + self.step > self.longest:
            return words + self._close(self._softest())
        if len(self.sound) < SPEECH * self.rate:
            return words  # too little to tell words from noise
        found = self._words(self.sound)
        pairs = zip(found, self.latest, strict=False)
        alike = [a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
        agreed = alike[:-1]  # the last word may still be going on
        self.latest = found
        if agreed[: len(self.committed)] == self.committed:
            words += self._timed(self.sound, found, len(self.committed), len(agreed))
            self.committed = agreed if len(agreed) > len(self.committed) else self.committed
        return words

    def _forget_silence(self) -> None:
        """Drop what precedes the first sound of a segment, but for LEAD."""
        sounding = (self._loudness() > self.softest).nonzero()
        keep = round(LEAD * self.rate)
        start = int(sounding[0]) * self.block if len(sounding) else len(self.sound)
        dropped = max(0, start - keep)
        self.sound, self.start = self.sound[dropped:], self.start + dropped

    def _finished(self) -> list[Word]:
        """Words of the segments that a pause ends."""
        words: list[Word] = []
        while (end := self._pause()) is not None:
            words += self._close(end)
            self._forget_silence()
        return words

    def _close(self, end: int) -> list[Word]:
        """Words of the segment of `end` samples that were not committed yet. The next one begins."""
        found = self._words(self.sound[:end])
        words = self._timed(self.sound[:end], found, len(self.committed), len(found))
        self.closed = (self.sound[:end], found) if found else self.closed
        self.sound, self.committed, self.latest = self.sound[end:], [], []
        self.start += end
        return words

    def _timed(self, wave: Tensor, found: list[str], first: int, last: int) -> list[Word]:
        """Words `first` to `last` of those found in the beginning of the segment."""
        if first >= last or self.align is None:
            return [Word(word, math.nan, math.nan) for word in found[first:last]]
        since = self.start / self.rate
        aligned = self.align(wave, " ".join(found))
        # As many as were found, unless the tokenizer has other spaces.
        each = [aligned[at * len(aligned) // len(found)] for at in range(first, last)]
        return [
            Word(word, round(since + one.start, 2), round(since + one.end, 2))
            for word, one in zip(found[first:last], each, strict=True)
        ]

    def _words(self, wave: Tensor) -> list[str]:
        if len(wave) < SHORTEST * self.rate or float(wave.abs().max()) < self.softest:
            return []
        return [word for word in self.transcribe(wave).split() if re.search(r"\w", word)]

    def _loudness(self) -> Tensor:
        """Amplitude (RMS) of each block of the segment: [blocks]"""
        return loudness(self.sound, self.block)

    def _pause(self) -> int | None:
        """Sample in the middle of the first pause that follows speech; None if there is none."""
        loud = self._loudness()
        if not len(loud) or float(loud.max()) < self.softest:
            return None
        speech, quiet, needed = 0, 0, round(PAUSE / BLOCK)
        for i, soft in enumerate((loud < QUIET * loud.max()).tolist()):
            quiet = quiet + 1 if soft else 0
            speech += not soft
            if quiet >= needed and speech >= SPEECH / BLOCK:
                return (i + 1 - needed // 2) * self.block
        return None

    def _softest(self) -> int:
        """Sample of the softest place in the second half of the segment, or of what fits in `longest`."""
        loud = self._loudness()[: self.longest // self.block]
        smooth = loud.unfold(0, min(len(loud), 5), 1).mean(1)
        half = len(smooth) // 2
        return (half + int(smooth[half:].argmin()) + 2) * self.block
