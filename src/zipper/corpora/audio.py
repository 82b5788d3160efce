"""The one reader of audio files: a file, or a piece of it, to one channel at the rate that is asked for.

Whatever a file of somebody else's may do, what comes out is a wave or a DataError that says why not.
"""

import math
import re
from fractions import Fraction
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile as sf
import torch
import torchaudio.functional as AF
from torch import Tensor

from zipper.corpora.mpeg import Mpeg, counted, walk
from zipper.errors import DataError

SILENCE = 5e-4  # of full scale, -66 dB: twice A-law's smallest step
STEPS = {"PCM_U8": 1 / 128, "PCM_S8": 1 / 128}  # smallest steps above that
LOUDEST = 10.0  # floating-point samples beyond it are of another scale than -1 to 1
CANCELLED = 0.01  # share of the channels' power that their average has at least
RATES = (4_000, 768_000)  # Hz
CHANNELS = 64
TOLERANCE = 0.03  # seconds: headers and lists are rounded (Libri-Light's by 25 ms, MP3's by a frame)
KERNEL = 1_000_000  # most values of a resampling filter, in float64: 8 MB
STREAM = 0x7FFF_0000  # sizes from here on (and 0) are of a header that was written before its samples
OGG_PAGE = 27 + 255 + 255 * 255  # bytes, at most
DECLARED = re.compile(r"^ *(?:data|SSND|BODY|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.M)
FAULTS = (OSError, TypeError, ValueError, RuntimeError, MemoryError)  # sf.LibsndfileError is a RuntimeError


class Samples(NamedTuple):
    """float32 [n, channels], Hz, and the smallest amplitude that counts as sound."""

    samples: np.ndarray
    rate: int
    silence: float


def read_wave(
    path: Path, sample_rate: int, start: float = 0.0, seconds: float | None = None,
    longest: float = math.inf, limit: str = "data.max_seconds={:g}",
) -> Tensor:  # fmt: skip
    """float32 [n] at `sample_rate` Hz, channels averaged. start, seconds: the piece; none: to the end.

    Raises DataError on a file that is missing, damaged, cut off, empty, silent, not finite, of another scale,
    or of more than `longest` seconds, which `limit` puts in words.
    """
    try:
        if not path.is_file():
            raise DataError(
                f"{_named(path)} does not exist. Name a file that does; in a corpus, make it again, or fix "
                "its manifest."
            )
        samples, rate, silence = _read(path, start, seconds, longest, limit)
    except DataError:
        raise
    except FAULTS as error:
        why = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        raise DataError(
            f"{_named(path)} cannot be read as audio ({why}). Fetch it again, or name a file that is."
        ) from error
    return resample(_mixed(path, samples, silence), rate, sample_rate)


def resample(wave: Tensor, rate: int, target: int) -> Tensor:
    """wave [n] at `rate` Hz to `target` Hz. The filter grows with both rates over their common divisor: where
    it would be too large, the nearest ratio of smaller numbers is taken, off by less than 0.04 %."""
    ratio = exact = Fraction(rate, target)
    most = 4096
    while _kernel(ratio) > KERNEL:
        ratio, most = exact.limit_denominator(most), most // 2
    if ratio == 1:
        return wave
    return AF.resample(wave, ratio.numerator, ratio.denominator)


def _kernel(ratio: Fraction) -> int:
    """Values of torchaudio's filter: one row for each phase, six zero crossings to both sides."""
    return ratio.numerator * ratio.denominator + 13 * max(ratio.numerator, ratio.denominator)


def _read(path: Path, start: float, seconds: float | None, longest: float, limit: str) -> Samples:
    with _opened(path) as file:
        rate, frames = file.samplerate, file.frames
        if not RATES[0] <= rate <= RATES[1] or file.channels > CHANNELS:
            raise DataError(
                f"{path} has {rate} Hz and {file.channels} channels; {RATES[0]} to {RATES[1]} Hz and at most "
                f"{CHANNELS} channels are read. Convert it, or mend its header."
            )
        if frames >= 2**62:
            raise DataError(f"{path} does not say how long it is. Write it again, to a file and not a pipe.")
        first, total = round(start * rate), frames / rate
        # What lasts as long as its file, but for rounding, is the file: to the last sample.
        piece = None if seconds is None or (first == 0 and abs(seconds - total) <= TOLERANCE) else seconds
        length = total - start if piece is None else piece
        if length > longest:
            raise DataError(
                f"{path} has {length:.1f} s, more than {limit.format(longest)}. Cut it, or allow more."
            )
        count = max(frames - first, 0) if piece is None else round(piece * rate)
        file.seek(min(first, frames))
        samples = file.read(count, dtype="float32", always_2d=True)
        missing = (count - len(samples)) / rate
        if piece is None:
            missing = max(missing, _missing(path, file))
        silence = max(SILENCE, STEPS.get(file.subtype, 0.0))
    if start > total + TOLERANCE or (piece is not None and missing > TOLERANCE):
        raise DataError(
            f"{path} ends {max(missing, start - total):.1f} s before the piece that is listed. Fetch it "
            "again, or mend the list."
        )
    if missing > TOLERANCE:
        what = f"{missing:.1f} s of what its header says are" if math.isfinite(missing) else "its end is"
        raise DataError(f"{path} is cut off: {what} missing. Fetch it again.")
    return Samples(samples, rate, silence)


def _mixed(path: Path, samples: np.ndarray, silence: float) -> Tensor:
    """float32 [n]: the average of the channels, [n, channels]. Everything is asked of what is encoded."""
    if len(samples) == 0:
        raise DataError(f"{path} holds no samples.")
    if not np.isfinite(samples).all():
        raise DataError(f"{path} holds NaN or infinite samples.")
    if (peak := float(np.abs(samples).max())) > LOUDEST:
        raise DataError(
            f"{path} has samples of up to {peak:.0f}, but floating-point audio goes from -1 to 1. Divide it "
            "by its full scale (32768 for 16 bits)."
        )
    wave = torch.from_numpy(samples).mean(dim=1)
    sound, channels = wave - wave.mean(), samples - samples.mean(axis=0)
    transcript = float(np.abs(channels).max()) > silence
    if (
        transcript
        and samples.shape[1] > 1
        and float(sound.square().mean()) < CANCELLED * np.square(channels).mean()
    ):
        raise DataError(f"{path}: its {samples.shape[1]} channels cancel each other. Keep one of them.")
    if float(sound.abs().max()) <= silence:
        raise DataError(f"{path} is silent (nothing over {silence:g} of full scale).")
    return wave


def _missing(path: Path, file: sf.SoundFile) -> float:
    """Seconds that the file should hold by its header, and does not; libsndfile mends such headers itself."""
    if file.format == "OGG":
        return 0.0 if _ends(path) else math.inf
    if file.format == "NIST":
        with path.open("rb") as raw:
            declared = re.search(rb"sample_count -i (\d+)", raw.read(1024))
        return (int(declared[1]) - file.frames) / file.samplerate if declared else 0.0
    for size, held in DECLARED.findall(file.extra_info):
        if int(size) < STREAM:
            return (int(size) / max(int(held), 1) - 1) * file.frames / file.samplerate
    return math.inf if re.search(r"^\*\*\*.*truncated", file.extra_info, re.M) else 0.0


def _ends(path: Path) -> bool:
    """Whether an Ogg ends with a whole page and a whole packet. Streams that were recorded or copied may lack
    the mark of the last page: that is said, since a file that was cut between two pages looks the same."""
    with path.open("rb") as raw:
        raw.seek(-min(2 * OGG_PAGE, path.stat().st_size), 2)
        tail = raw.read()
    at = tail.rfind(b"OggS\0")
    head, sizes = tail[at : at + 27], tail[at + 27 :]
    if at < 0 or len(head) < 27 or len(sizes) < head[26]:
        return False
    beyond = len(sizes) - head[26] - sum(sizes[: head[26]])
    if head[5] & 4:
        return beyond >= 0
    if beyond or sizes[: head[26]].endswith(b"\xff"):  # 255: the packet goes on in the next page
        return False
    print(f"{path}: no page is marked as its last; it is read to where it ends")
    return True


def _opened(path: Path) -> sf.SoundFile:
    """The file, whose number of frames is not a guess."""
    file = sf.SoundFile(_whole_header(path) or path)
    if file.format != "MP3":
        return file
    stat = path.stat()
    found = _walked(path, stat.st_size, stat.st_mtime_ns)
    if found is None or (found.declared is not None and found.frames <= found.declared + 1):
        return file
    frames, rate = found.frames * found.frame.samples, file.samplerate
    if found.declared is None and abs(frames - file.frames) <= TOLERANCE * rate:
        return file
    said = f"{file.frames / rate:.1f} s"
    file.close()
    if found.declared is not None or found.frame.layer != 3:
        raise DataError(
            f"{path} holds {frames / rate:.1f} s of MPEG frames, but {said} are what would be read: "
            f"{'its header counts fewer' if found.declared is not None else 'no header counts them'}. "
            "Convert it, to WAV or FLAC."
        )
    return sf.SoundFile(BytesIO(counted(path.read_bytes(), found)))


@lru_cache(256)
def _walked(path: Path, size: int, changed: int) -> Mpeg | None:
    """Once for all pieces of a file that stays as it is."""
    return walk(path.read_bytes())


def _whole_header(path: Path) -> BytesIO | None:
    """A WAV that was written to a pipe and left with sizes of 0, which libsndfile believes, with those of a
    stream instead. None: any other file."""
    with path.open("rb") as raw:
        head, at = raw.read(4096), 12
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            return None
        while head[at : at + 4] not in (b"data", b""):
            at += 8 + int.from_bytes(head[at + 4 : at + 8], "little")
        ends = int.from_bytes(head[4:8], "little")
        filled_in = ends not in (0, at) and ends < STREAM  # at: it ends where the samples begin
        if head[at + 4 : at + 8] != bytes(4) or filled_in:
            return None
        return BytesIO(head[:4] + b"\xff" * 4 + head[8 : at + 4] + b"\xff" * 4 + head[at + 8 :] + raw.read())


def _named(path: Path) -> str:
    """A path that may be anything, such as a sentence."""
    name = str(path)
    return name if len(name) <= 200 else f"{name[:80]}... ({len(name)} characters)"
