"""The one reader of audio: a wave, or a DataError that says why there is none."""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
import torchaudio.functional as AF

from zipper.corpora.utterance import Utterance
from zipper.errors import DataError
from zipper.modalities import audio, mpeg
from zipper.modalities.audio import TOLERANCE, read_wave
from zipper.modalities.resampling import KERNEL, ResamplingStream, resample

RATE = 16_000


def noise(seconds: float = 2.0, rate: int = RATE) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, int(seconds * rate)).astype(np.float32)


def written(file: Path, samples: np.ndarray, rate: int = RATE, **how: str) -> Path:
    sf.write(file, samples, rate, **how)
    return file


FORMATS = [
    ("a.wav", "WAV", "PCM_16"), ("a.wav", "WAV", "ULAW"), ("a.wav", "WAV", "IMA_ADPCM"),
    ("a.wav", "WAVEX", "PCM_24"), ("a.wav", "RF64", "FLOAT"), ("a.w64", "W64", "PCM_16"),
    ("a.aiff", "AIFF", "PCM_16"), ("a.au", "AU", "PCM_16"), ("a.sph", "NIST", "PCM_16"),
    ("a.caf", "CAF", "PCM_16"), ("a.flac", "FLAC", "PCM_16"), ("a.mp3", "MP3", None),
    ("a.ogg", "OGG", "VORBIS"), ("a.opus", "OGG", "OPUS"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "subtype"), FORMATS, ids=[f"{f[1]} {f[2]}" for f in FORMATS])
def test_a_file_that_was_cut_off_is_refused_in_every_format_and_the_whole_one_is_read(
    tmp_path, name, kind, subtype
):
    file = written(tmp_path / f"truncated-{name}", noise(8.0), format=kind, subtype=subtype)
    assert len(read_wave(file, RATE)) == pytest.approx(8 * RATE, abs=1200)
    assert len(read_wave(file, RATE, 1.0, 0.5)) == RATE // 2
    data = file.read_bytes()
    for left in (0.9, 0.5, 0.3):
        file.write_bytes(data[: int(left * len(data))])
        with pytest.raises(DataError, match=r"a\.\w+.*(cut off|cannot be read)"):
            read_wave(file, RATE)


def test_an_ogg_cut_within_its_last_page_is_refused(tmp_path):
    file = written(tmp_path / "a.ogg", noise(), format="OGG", subtype="VORBIS")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match="cut off: its end"):
        read_wave(file, RATE)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_without_a_marked_end_is_read_and_one_that_was_cut_at_any_byte_is_refused(
    tmp_path, subtype, capsys
):
    data = written(tmp_path / "a.ogg", noise(4.0), format="OGG", subtype=subtype).read_bytes()
    file = tmp_path / "b.ogg"  # a recording that was ended, or a file that was cut between two pages
    starts = [at for at in range(len(data)) if data.startswith(b"OggS\0", at)]
    for border in starts[4:]:
        file.write_bytes(data[:border])
        assert len(read_wave(file, RATE)) == sf.info(file).frames * RATE // sf.info(file).samplerate > 0
        assert (
            capsys.readouterr().out
            == f"{file}: no page has the end-of-stream flag; reading to the end of the file\n"
        )
        for near in (-1, 1, 4, 26, 27, 60):
            file.write_bytes(data[: border + near])
            with pytest.raises(DataError, match="cut off: its end"):
                read_wave(file, RATE)
    assert len(starts) > 5
    page = bytearray(data[: starts[-1]])
    page[starts[-2] + 26 + page[starts[-2] + 26]] = 255  # its packet continues
    file.write_bytes(page.ljust(len(page) + 255 - data[starts[-2] + 26 + data[starts[-2] + 26]], b"\0"))
    with pytest.raises(DataError, match="cut off: its end"):
        read_wave(file, RATE)


def without_header(file: Path, rate: int, mode: str, grows: float) -> bytes:
    """10 s whose loudness changes after three, as MP3 without its Xing or Info header."""
    wave = noise(10.0, rate) * np.where(np.arange(10 * rate) < 3 * rate, grows, 0.1).astype(np.float32)
    sf.write(file, wave, rate, bitrate_mode=mode, compression_level=0.5)
    data = file.read_bytes()
    assert data[:288].count(b"Xing") + data[:288].count(b"Info") == 1
    return data[mpeg.frame_at(data, 0).size :]


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize(("rate", "grows"), [(8_000, 1.0), (16_000, 1.0), (16_000, 0.001), (44_100, 0.0)])
def test_an_mp3_that_does_not_say_how_long_it_is_is_read_whole_and_in_pieces(tmp_path, rate, mode, grows):
    file, tag = tmp_path / "a.mp3", b"ID3\4\0\0\0\0\2\0" + bytes(256)
    bare = without_header(file, rate, mode, grows)
    for data in (bare, tag + bare, bare + b"TAG" + bytes(125), bare[:-100]):
        file.write_bytes(data)
        whole = read_wave(file, rate)
        assert len(whole) / rate == pytest.approx(10, abs=0.16)  # what the encoder added included
        piece = read_wave(file, rate, 2.0, 7.0)
        assert (piece - whole[2 * rate : 9 * rate]).abs().max() < 0.01


def test_an_mp3_behind_another_one_is_not_left_out_in_silence(tmp_path):
    file = written(tmp_path / "a.mp3", noise(2.0))
    file.write_bytes(2 * file.read_bytes())
    with pytest.raises(
        DataError, match=r"a\.mp3 holds 4\.\d s of MPEG frames, but only 2\.0 s .* Convert it"
    ):
        read_wave(file, RATE)


HEADERS = [  # MPEG 1, 2 and 2.5, layers I to III: bytes and samples of a frame
    ("fffb9064", 417, 1152), ("fffb9264", 418, 1152), ("fffda000", 626, 1152), ("ffffc000", 416, 384),
    ("fff38000", 208, 576), ("fff580c0", 417, 1152), ("fff780c0", 278 // 4 * 4, 384), ("ffe38000", 417, 576),
]  # fmt: skip


@pytest.mark.parametrize(("header", "size", "samples"), HEADERS)
def test_frames_of_every_kind_are_counted(header, size, samples):
    frame = bytes.fromhex(header).ljust(size, b"\0")
    found = mpeg.count_frames(bytes(7) + 3 * frame + b"\xff" * 9 + 2 * frame + frame[:-1])
    assert (found.first, found.frames, found.frame.samples) == (7, 5, samples)
    for other in ("fffb0064", "fffbf064", "fffb9c64", "ffeb9064", "fff99064"):  # free format, and no headers
        assert mpeg.count_frames(3 * bytes.fromhex(other).ljust(417, b"\0")) is None


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFF000])
def test_a_wav_from_a_pipe_is_read_to_its_end(tmp_path, size):
    file = written(tmp_path / "a.wav", noise(), subtype="PCM_16")
    data = bytearray(file.read_bytes())
    at = data.index(b"data") + 4
    whole = torch.from_numpy(sf.read(file, dtype="float32")[0])
    for riff in {0, at - 4, 0xFFFFFFFF} if size == 0 else {0xFFFFFFFF, (size + 36) & 0xFFFFFFFF}:
        data[4:8], data[at : at + 4] = struct.pack("<I", riff), struct.pack("<I", size)
        file.write_bytes(data)
        assert torch.equal(read_wave(file, RATE), whole)


def test_an_empty_wav_is_empty_whatever_comes_after_its_samples(tmp_path):
    file = written(tmp_path / "a.wav", np.zeros(0, np.float32))
    data = file.read_bytes() + b"LIST" + struct.pack("<I", 4) + b"INFO"
    file.write_bytes(data[:4] + struct.pack("<I", len(data) - 8) + data[8:])
    with pytest.raises(DataError, match="holds no samples"):
        read_wave(file, RATE)


def test_a_flac_that_does_not_say_how_long_it_is_is_refused(tmp_path):
    file = written(tmp_path / "a.flac", noise())
    data = bytearray(file.read_bytes())
    data[21:26] = bytes([data[21] & 0xF0, 0, 0, 0, 0])  # its number of samples, 36 bits
    file.write_bytes(data)
    with pytest.raises(DataError, match="does not say how long it is"):
        read_wave(file, RATE)


def in_stereo(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.stack([left, right], axis=1)


SILENT = {
    "next to nothing": (np.tile([5e-5, -5e-5], RATE).astype(np.float32), "FLOAT"),
    "an offset": (np.full(RATE, 0.3, np.float32), "PCM_16"),
    "A-law's zero": (np.zeros(RATE, np.float32), "ALAW"),
    "A-law's two zeros": (np.tile([2.0**-12, -(2.0**-12)], RATE).astype(np.float32), "ALAW"),
    "mu-law's zero": (np.zeros(RATE, np.float32), "ULAW"),
    "eight bits at 127": (np.full(RATE, -1 / 128, np.float32), "PCM_U8"),
    "eight bits about 127": (np.tile([0, -1 / 128], RATE).astype(np.float32), "PCM_U8"),
    "offsets that differ": (in_stereo(np.full(RATE, 0.3), np.full(RATE, -0.1)), "PCM_16"),
}


@pytest.mark.parametrize("name", SILENT)
def test_what_is_silent_after_mixing_and_less_its_mean_is_refused(tmp_path, name):
    samples, subtype = SILENT[name]
    with pytest.raises(DataError, match=r"a\.wav is silent"):
        read_wave(written(tmp_path / "a.wav", samples, subtype=subtype), RATE)


def test_channels_that_cancel_are_said_to_and_others_are_averaged(tmp_path):
    wave, other = noise(), np.roll(noise(), 999)
    for right in (-wave, -0.99 * wave, 0.2 - wave):
        with pytest.raises(DataError, match=r"its 2 channels cancel each other\. Keep one"):
            read_wave(written(tmp_path / "a.wav", in_stereo(wave, right)), RATE)
    for right in (wave, other, 0 * wave, -0.5 * wave):
        file = written(tmp_path / "a.wav", in_stereo(wave, right), subtype="FLOAT")
        assert torch.equal(read_wave(file, RATE), torch.from_numpy(in_stereo(wave, right)).mean(1))


def test_floats_of_another_scale_are_refused_and_loud_ones_are_not(tmp_path):
    for scale in (2**7, 2**15, 2**23):
        with pytest.raises(DataError, match=r"samples of up to .* in -1 to 1\. Divide it"):
            read_wave(written(tmp_path / "a.wav", noise() * scale, subtype="FLOAT"), RATE)
    assert read_wave(written(tmp_path / "a.wav", noise() * 9, subtype="DOUBLE"), RATE).abs().max() > 3


@pytest.mark.parametrize("rate", [8000, 11025, 16001, 22050, 44100, 44101, 47999, 96001, 767999])
def test_any_rate_is_resampled_within_bounded_memory_and_rounding(tmp_path, rate):
    seconds = 0.3
    wave = torch.sin(2 * torch.pi * 440 * torch.arange(int(rate * seconds)) / rate)
    tracemalloc.start()
    out = resample(wave, rate, 24_000)
    assert tracemalloc.get_traced_memory()[1] < 1e8
    tracemalloc.stop()
    assert len(out) / 24_000 == pytest.approx(seconds, rel=1e-3)
    expected = torch.sin(2 * torch.pi * 440 * torch.arange(len(out)) / 24_000)
    assert (out - expected)[200:-200].abs().max() < 0.4  # of a tone, 1 ms apart at most
    if rate in (8000, 11025, 22050, 44100):  # as ever
        assert torch.equal(out, AF.resample(wave, rate, 24_000))


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 47_999, 48_000])
@pytest.mark.parametrize("target", [16_000, 24_000])
def test_sound_in_pieces_is_resampled_as_the_whole(rate, target):
    wave, draw = (
        torch.randn(20_000, generator=torch.Generator().manual_seed(rate)),
        np.random.default_rng(rate),
    )
    whole = resample(wave, rate, target)
    for most in (3, 500, 30_000):
        stream, out, at, kept = ResamplingStream(rate, target), [], 0, 0
        while at < len(wave):
            count = int(draw.integers(0, most + 1))
            out.append(stream.push(wave[at : at + count]))
            at, kept = at + count, max(kept, len(stream.kept))
        out.append(stream.push(torch.zeros(0), last=True))
        torch.testing.assert_close(torch.cat(out), whole, rtol=0, atol=1e-5)
        assert kept < 4_000  # memory is bounded


def test_no_filter_is_larger_than_allowed(monkeypatch):
    asked = []
    monkeypatch.setattr(AF, "resample", lambda wave, rate, target: asked.append((rate, target)) or wave)
    draw = np.random.default_rng(1)
    for rate in [*draw.integers(4_000, 768_000, 500).tolist(), 4_001, 767_999, 15_999, 16_001]:
        resample(torch.zeros(1), rate, 16_000)
        p, q = asked[-1] if asked else (1, 1)
        assert p * q <= KERNEL
        if asked:
            assert p / q == pytest.approx(rate / 16_000, rel=4e-4)
        asked.clear()


def test_an_absurd_rate_and_too_many_channels_are_refused(tmp_path):
    for rate in (1, 3_999, 2_000_000_000):
        with pytest.raises(DataError, match=f"has {rate} Hz .* Convert it"):
            read_wave(written(tmp_path / "a.wav", noise(), rate), RATE)
    with pytest.raises(DataError, match="and 200 channels"):
        read_wave(written(tmp_path / "a.wav", np.zeros((99, 200))), RATE)


def test_whatever_reading_raises_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "a.raw").write_bytes(bytes(9000))
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    for name in ("a.raw", "a.wav", "loop.wav", "why did helen give " * 20, "a\0b", "\ud800", "", "."):
        with pytest.raises(DataError) as error:
            Utterance("u", str(tmp_path / name) if name else "", "so", "s", "train").wave(RATE)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500
    for fault in (
        OSError(5, "Input/output error"),
        TypeError("x"),
        ValueError("x"),
        RuntimeError("x"),
        MemoryError(),
    ):

        def refuse(*_, fault=fault):
            raise fault

        monkeypatch.setattr(sf, "SoundFile", refuse)
        with pytest.raises(DataError, match="cannot be read as audio"):
            read_wave(tmp_path / "a.raw", RATE)


def test_a_piece_may_end_a_rounding_after_its_file_and_no_more(tmp_path):
    file = written(tmp_path / "a.flac", noise(1.0))
    assert len(read_wave(file, RATE, 0.5, 0.525)) == RATE // 2
    assert len(read_wave(file, RATE, 0.0, 1.0 + TOLERANCE / 2)) == RATE
    assert len(read_wave(file, RATE, 0.25)) == 3 * RATE // 4
    for piece in ((0.5, 0.6), (1.2, 0.1), (2.0, None)):
        with pytest.raises(DataError, match="before the end of the segment that is listed"):
            read_wave(file, RATE, *piece)


def test_a_recording_or_a_piece_may_be_as_long_as_the_limit_and_no_longer(tmp_path):
    file = written(tmp_path / "a.flac", noise(1.0))
    for start, seconds, length in ((0.0, None, 1.0), (0.5, None, 0.5), (0.25, 0.5, 0.5)):
        assert len(read_wave(file, RATE, start, seconds, longest=length)) == length * RATE
        with pytest.raises(DataError, match=r"more than data\.max_seconds"):
            read_wave(file, RATE, start, seconds, longest=length - 0.01)


def test_a_small_file_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "MOST", 100_000)
    sf.write(tmp_path / "a.flac", np.zeros((20_000, 8)), 48_000)
    with pytest.raises(DataError, match=r"20,000 samples of 8 channels, more than 100,000 in all"):
        read_wave(tmp_path / "a.flac", 16_000)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_behind_another_one_is_not_left_out_in_silence(tmp_path, subtype):
    one, two = (written(tmp_path / f"{n}.ogg", noise(n), format="OGG", subtype=subtype) for n in (1, 2))
    assert len(read_wave(two, RATE)) == 2 * RATE
    two.write_bytes(one.read_bytes() + two.read_bytes())
    with pytest.raises(DataError, match="holds several streams"):
        read_wave(two, RATE)


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "GSM610"), ("AIFF", "GSM610"), ("AU", "G721_32"), ("AU", "G723_24"), ("WAV", "NMS_ADPCM_16")],
)
def test_telephone_files_without_places_to_seek_are_read(tmp_path, kind, subtype):
    file = written(tmp_path / "a", 0.1 * noise(2.0, 8000), 8000, format=kind, subtype=subtype)
    assert torch.equal(read_wave(file, 8000), torch.from_numpy(sf.read(file, dtype="float32")[0]))


def test_a_wav_from_a_pipe_may_have_a_chunk_of_odd_length(tmp_path):
    file = written(tmp_path / "a.wav", noise(), subtype="PCM_16")
    data = file.read_bytes()
    at, whole = data.index(b"data"), read_wave(file, RATE)
    odd = b"LIST" + struct.pack("<I", 5) + b"INFO\0" + b"\0"
    file.write_bytes(data[:4] + bytes(4) + data[8:at] + odd + b"data" + bytes(4) + data[at + 8 :])
    assert torch.equal(read_wave(file, RATE), whole)
