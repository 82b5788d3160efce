"""MPEG audio frames: counts the frames of a file and adds a Xing header with that count.

Without a Xing or Info header, libsndfile guesses the length from the first frame and reads no further.
"""

from typing import NamedTuple

KBPS = {  # bit rates by (is MPEG-1, layer); index 0 is free format, 15 is invalid
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # by version


class Frame(NamedTuple):
    """Frame header. kind: fields that all frames of a stream share; size in bytes; samples per channel."""

    kind: tuple[int, int, int]
    layer: int
    size: int
    samples: int
    xing: int  # byte offset of a Xing or Info header in the frame


class Mpeg(NamedTuple):
    """Frame count of a file.

    first: byte offset of the first frame. frames: complete frames without that of a Xing header. declared:
    frames according to that header; None if there is none.
    """

    first: int
    frame: Frame
    frames: int
    declared: int | None


def count_frames(data: bytes) -> Mpeg | None:
    """Counts the frames of a file, without tags. None: free format, or no MPEG audio."""
    first = at = _next(data, 0, None)
    frame = frame_at(data, at)
    if frame is None:
        return None
    frames, ahead = 0, frame
    while at + ahead.size <= len(data):
        frames, at = frames + 1, at + ahead.size
        found = frame_at(data, at)
        if found is None or found.kind != frame.kind:
            at = _next(data, at, frame)
            found = frame_at(data, at)
            if found is None:
                break
        ahead = found
    tag = data[first + frame.xing : first + frame.xing + 12]
    if tag[:4] in (b"Xing", b"Info") and tag[7] & 1:
        return Mpeg(first, frame, frames - 1, int.from_bytes(tag[8:], "big"))
    return Mpeg(first, frame, frames, None)


def with_xing_header(data: bytes, found: Mpeg) -> bytes:
    """The file with a Xing header that holds its number of layer III frames."""
    head = bytes([data[found.first], data[found.first + 1] | 1])  # no checksum
    head += bytes([0x90 | data[found.first + 2] & 0x0C, data[found.first + 3]])
    made = frame_at(head, 0)
    assert made is not None
    tag = b"Xing" + (1).to_bytes(4, "big") + found.frames.to_bytes(4, "big")
    return (head + bytes(made.xing - 4) + tag).ljust(made.size, b"\0") + data[found.first :]


def frame_at(data: bytes, at: int) -> Frame | None:
    """Frame header at a byte offset; None if there is none, or it has free format."""
    head = data[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer, index, rate = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or index in (0, 15) or rate == 3:
        return None
    newest, padding = version == 3, head[2] >> 1 & 1
    samples = 384 if layer == 1 else 1152 if layer == 2 or newest else 576
    slots = samples // (32 if layer == 1 else 8) * KBPS[newest, layer][index] * 1000 // RATES[version][rate]
    side = (17 if newest else 9) if head[3] >> 6 == 3 else (32 if newest else 17)
    size = (slots + padding) * (4 if layer == 1 else 1)
    return Frame((version, layer, rate), layer, size, samples, 4 + side + 2 * (not head[1] & 1))


def _next(data: bytes, at: int, like: Frame | None) -> int:
    """Offset of the next frame that another frame of its kind follows; the end of the data if none does."""
    while data[at : at + 3] == b"ID3" and len(data) >= at + 10:
        high, middle, low, last = data[at + 6 : at + 10]
        at += 10 + (high << 21 | middle << 14 | low << 7 | last) + 10 * (data[at + 5] >> 4 & 1)
    while (at := data.find(b"\xff", at)) >= 0:
        frame = frame_at(data, at)
        if frame is not None and (like is None or frame.kind == like.kind):
            after = frame_at(data, at + frame.size)
            if after is not None and after.kind == frame.kind:
                return at
        at += 1
    return len(data)
