"""Audio reader: a file, or a segment of it, as a mono waveform at the requested sample rate.

Every file gives a waveform or a DataError with the reason.
"""

import math
import re
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile as sf
import torch
from torch import Tensor

from zipper.disk import check_file_name, write_atomic
from zipper.errors import ConfigError, DataError
from zipper.modalities.mpeg import Mpeg, count_frames, with_xing_header
from zipper.modalities.resampling import resample

SILENCE = 5e-4  # of full scale (-66 dB): twice the smallest step of A-law
STEPS = {"PCM_U8": 1 / 128, "PCM_S8": 1 / 128}  # quantisation steps larger than SILENCE, by subtype
LOUDEST = 10.0  # larger floating-point samples do not have the scale -1 to 1
CANCELLED = 0.01  # minimum power of the channels' mean, relative to the channels
RATES = (4_000, 768_000)  # Hz
CHANNELS = 64
MOST = 150_000_000  # samples of all channels: 26 minutes of stereo at 48 kHz, 0.6 GB
SPEED = re.compile(r"@(0\.\d+|1\.\d+|2)$")  # ends the id of a copy at another speed (data.speeds)
SUFFIXES = {
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".sph",
    ".w64", ".m4a", ".aac", ".mp4", ".webm", ".wma", ".amr",  # the last six only to say so
}  # fmt: skip
TOLERANCE = 0.03  # seconds; headers and lists are rounded (Libri-Light: 25 ms, MP3: one frame)
STREAM = 0x7FFF_0000  # a header size from here on, or 0, was written before the samples were known
OGG_PAGE = 27 + 255 + 255 * 255  # maximum bytes of an Ogg page
DECLARED = re.compile(r"^ *(?:data|SSND|BODY|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.M)
FAULTS = (OSError, TypeError, ValueError, RuntimeError, MemoryError)  # sf.LibsndfileError is a RuntimeError


class Samples(NamedTuple):
    """Decoded samples float32 [n, channels], sample rate in Hz, and the amplitude of silence."""

    samples: np.ndarray
    rate: int
    silence: float


def read_wave(
    path: Path, sample_rate: int, start: float = 0.0, seconds: float | None = None,
    longest: float = math.inf, limit: str = "data.max_seconds={:g}",
) -> Tensor:  # fmt: skip
    """Mono waveform float32 [n] at `sample_rate` Hz, the mean of the channels.

    start, seconds: segment of the file; seconds=None reads to the end. Raises DataError if the file is
    missing, damaged, truncated, empty, silent, not finite, badly scaled, or longer than `longest` seconds
    (`limit` names the setting in the message).
    """
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise DataError(
                f"{_named(path)} {what}. Name an existing file; for a corpus, create it again or "
                "correct its manifest."
            )
        samples, rate, silence = _read(path, start, seconds, longest, limit)
    except DataError:
        raise
    except FAULTS as error:
        why = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        raise DataError(
            f"{_named(path)} cannot be read as audio ({why}). Download it again, or name an audio file."
        ) from error
    return resample(_mixed(path, samples, silence), rate, sample_rate)


def id_at(id: str, speed: float) -> str:
    """Id of the copy of an utterance that is played at `speed` (data.speeds)."""
    return id if speed == 1 else f"{id}@{speed:g}"


def without_speed(id: str) -> tuple[str, float]:
    """Id of an utterance, and the speed, of a copy's id."""
    found = SPEED.search(id)
    return (id[: found.start()], float(found[1])) if found else (id, 1.0)


def recordings(folder: Path) -> list[Path]:
    """Files of a folder whose suffix names an audio format, by name; also formats that cannot be read."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())


def check_audio_file(file: Path) -> None:
    """Raise ConfigError if no sound can be written to `file`."""
    kind = file.suffix.removeprefix(".").upper()
    if file.suffix.lower() not in SUFFIXES or kind not in sf.available_formats():
        raise ConfigError(
            f"{_named(file)}: {file.suffix or 'no suffix'} names no audio format. Give a .wav or .flac."
        )
    check_file_name(file)
    if not file.parent.is_dir():
        raise ConfigError(f"{file}: the folder {file.parent} does not exist. Create it first.")


def write_audio(file: Path, wave: Tensor, sample_rate: int) -> None:
    """Write a waveform float32 [n], atomically."""
    out = BytesIO()
    kind = file.suffix.removeprefix(".").upper()
    sf.write(out, samples(wave), sample_rate, format=kind)
    write_atomic(file, out.getvalue())


def samples(wave: Tensor) -> np.ndarray:
    """Samples to write of a waveform float32 [n], in -1 to 1: one of silence if there is none, for which
    libsndfile writes MP3 and FLAC files without a byte."""
    return wave.clamp(-1, 1).numpy() if len(wave) else np.zeros(1, np.float32)


def is_silent(wave: Tensor) -> bool:
    """Whether a waveform float [n] holds no sound beside a constant offset."""
    return float((wave - wave.mean()).abs().max()) <= SILENCE


def checked_wave(raw: Tensor | np.ndarray) -> Tensor:
    """Waveform float32 [n] of samples [n] in memory. Raises DataError as `read_wave`, or on another shape or
    type."""
    samples = raw.detach().cpu() if isinstance(raw, Tensor) else raw
    if samples.ndim != 1:
        raise DataError(
            f"The waveform has the shape {list(samples.shape)}, but must have [n]. Give one channel, or the "
            "mean of all."
        )
    floating = samples.is_floating_point() if isinstance(samples, Tensor) else samples.dtype.kind == "f"
    if not floating:
        raise DataError(
            f"The waveform holds {samples.dtype}, but must hold floating-point samples in -1 to 1. Divide it "
            "by its full scale (32768 for 16 bits)."
        )
    found = (
        samples.float().numpy() if isinstance(samples, Tensor) else np.array(samples, np.float32, order="C")
    )
    return _mixed("The waveform", found[:, None], SILENCE)


def _read(path: Path, start: float, seconds: float | None, longest: float, limit: str) -> Samples:
    with _opened(path) as file:
        rate, frames = file.samplerate, file.frames
        if not RATES[0] <= rate <= RATES[1] or file.channels > CHANNELS:
            raise DataError(
                f"{path} has {rate} Hz and {file.channels} channels; {RATES[0]} to {RATES[1]} Hz and at most "
                f"{CHANNELS} channels are supported. Convert it, or correct its header."
            )
        if frames >= 2**62:
            raise DataError(
                f"{path} does not say how long it is. Write it again, to a file instead of a pipe."
            )
        first, total = round(start * rate), frames / rate
        # A segment as long as its file, up to rounding, is read to the last sample.
        piece = None if seconds is None or (first == 0 and abs(seconds - total) <= TOLERANCE) else seconds
        length = total - start if piece is None else piece
        if length > longest:
            raise DataError(
                f"{path} has {length:.1f} s, more than {limit.format(longest)}. Shorten it"
                f"{', or raise the limit' if '=' in limit else ''}."
            )
        count = max(frames - first, 0) if piece is None else round(piece * rate)
        if count * file.channels > MOST:
            raise DataError(
                f"{path} has {count:,} samples of {file.channels} channels, more than {MOST:,} in all, which "
                "are read at once. Convert it to one channel of 16 kHz, or cut it."
            )
        if first:  # of some telephone codecs, libsndfile finds no place but the first
            file.seek(min(first, frames))
        samples = file.read(count, dtype="float32", always_2d=True)
        missing = (count - len(samples)) / rate
        if piece is None:
            missing = max(missing, _missing(path, file))
        silence = max(SILENCE, STEPS.get(file.subtype, 0.0))
    if start > total + TOLERANCE or (piece is not None and missing > TOLERANCE):
        raise DataError(
            f"{path} ends {max(missing, start - total):.2f} s before the end of the segment that is listed. "
            "Download it again, or correct the list, whose times need two decimals."
        )
    if missing > TOLERANCE:
        what = f"{missing:.1f} s of audio are" if math.isfinite(missing) else "its end is"
        raise DataError(f"{path} is cut off: {what} missing. Download it again.")
    return Samples(samples, rate, silence)


def _mixed(path: Path | str, samples: np.ndarray, silence: float) -> Tensor:
    """Mean of the channels, float32 [n], of samples [n, channels]; raises DataError on unusable samples."""
    if len(samples) == 0:
        raise DataError(f"{path} holds no samples.")
    if not np.isfinite(samples).all():
        raise DataError(f"{path} holds NaN or infinite samples.")
    if (peak := float(np.abs(samples).max())) > LOUDEST:
        raise DataError(
            f"{path} has samples of up to {peak:.0f}, but floating-point audio must lie in -1 to 1. Divide "
            "it by its full scale (32768 for 16 bits)."
        )
    wave = torch.from_numpy(samples).mean(dim=1)
    sound, channels = wave - wave.mean(), samples - samples.mean(axis=0)
    audible = float(np.abs(channels).max()) > silence
    if (
        audible
        and samples.shape[1] > 1
        and float(sound.square().mean()) < CANCELLED * np.square(channels).mean()
    ):
        raise DataError(f"{path}: its {samples.shape[1]} channels cancel each other. Keep one of them.")
    if float(sound.abs().max()) <= silence:
        raise DataError(f"{path} is silent (no sample above {silence:g} of full scale).")
    return wave


def _missing(path: Path, file: sf.SoundFile) -> float:
    """Seconds that the header declares and the file lacks; infinite if unknown. libsndfile hides this."""
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
    """Whether an Ogg file ends with a complete page and packet.

    Recorded streams may lack the end-of-stream flag. This prints a message, since a file that was cut between
    two pages looks the same.
    """
    with path.open("rb") as raw:
        first = raw.read(18)
        raw.seek(-min(2 * OGG_PAGE, path.stat().st_size), 2)
        tail = raw.read()
    at = tail.rfind(b"OggS\0")
    head, sizes = tail[at : at + 27], tail[at + 27 :]
    if at < 0 or len(head) < 27 or len(sizes) < head[26]:
        return False
    if head[14:18] != first[14:18]:  # serial numbers
        raise DataError(f"{path} holds several streams; the first alone would be read. Convert it to FLAC.")
    beyond = len(sizes) - head[26] - sum(sizes[: head[26]])
    if head[5] & 4:
        return beyond >= 0
    if beyond or sizes[: head[26]].endswith(b"\xff"):  # 255: the packet continues on the next page
        return False
    print(f"{path}: no page has the end-of-stream flag; reading to the end of the file")
    return True


def _opened(path: Path) -> sf.SoundFile:
    """Opened file with an exact number of frames, also for MP3."""
    file = sf.SoundFile(_whole_header(path) or path)
    if file.format != "MP3":
        return file
    stat = path.stat()
    found = _frame_count(path, stat.st_size, stat.st_mtime_ns)
    if found is None or (found.declared is not None and found.frames <= found.declared + 1):
        return file
    frames, rate = found.frames * found.frame.samples, file.samplerate
    if found.declared is None and abs(frames - file.frames) <= TOLERANCE * rate:
        return file
    read = f"{file.frames / rate:.1f} s"
    file.close()
    if found.declared is not None or found.frame.layer != 3:
        raise DataError(
            f"{path} holds {frames / rate:.1f} s of MPEG frames, but only {read} would be read: "
            f"{'its header counts fewer' if found.declared is not None else 'no header counts them'}. "
            "Convert it to WAV or FLAC."
        )
    return sf.SoundFile(BytesIO(with_xing_header(path.read_bytes(), found)))


@lru_cache(256)
def _frame_count(path: Path, size: int, changed: int) -> Mpeg | None:
    """Cached `count_frames` of a file, keyed by size and modification time."""
    return count_frames(path.read_bytes())


def _whole_header(path: Path) -> BytesIO | None:
    """A WAV that was written to a pipe, with its header sizes of 0 replaced by those of a stream.

    None for any other file. libsndfile would read no samples of such a file.
    """
    with path.open("rb") as raw:
        head, at = raw.read(4096), 12
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            return None
        while head[at : at + 4] not in (b"data", b""):
            size = int.from_bytes(head[at + 4 : at + 8], "little")
            at += 8 + size + size % 2  # chunks begin at even places
        ends = int.from_bytes(head[4:8], "little")
        # at: the declared size ends where the samples begin.
        filled_in = ends not in (0, at) and ends < STREAM
        if head[at + 4 : at + 8] != bytes(4) or filled_in:
            return None
        return BytesIO(head[:4] + b"\xff" * 4 + head[8 : at + 4] + b"\xff" * 4 + head[at + 8 :] + raw.read())


def _named(path: Path) -> str:
    """Path for a message, shortened, since a user may pass a sentence as a path."""
    name = str(path)
    return name if len(name) <= 200 else f"{name[:80]}... ({len(name)} characters)"
