"""Recordings with chosen times, written byte by byte: Matroska of JPEG pictures, and patched AVI headers."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np


def grey(number: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    return np.full((size[1], size[0], 3), min(250, 8 * number), np.uint8)


def write_avi(path: Path, frames: int, *, fps: float = 20.0, size: tuple[int, int] = (64, 48)) -> Path:
    """A clip whose frame n has the grey level `8 * (n - 1)`."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, size)
    assert writer.isOpened()
    for number in range(frames):
        writer.write(grey(number, size))
    writer.release()
    return path


def set_avi_rate(path: Path, rate: int, scale: int = 1, *, frame_us: int | None = None) -> Path:
    """Overwrite the rate of the stream header, and the frame interval of the main header."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<II", data, data.index(b"strh") + 28, scale, rate)
    if frame_us is not None:
        struct.pack_into("<I", data, data.index(b"avih") + 8, frame_us)
    path.write_bytes(data)
    return path


def _element(identity: str, *content: bytes) -> bytes:
    body = b"".join(content)
    return bytes.fromhex(identity) + struct.pack(">Q", 1 << 56 | len(body)) + body


def _number(identity: str, value: int) -> bytes:
    return _element(identity, struct.pack(">Q", value))


def write_mkv(
    path: Path,
    times_ms: Sequence[int],
    pictures: Iterable[np.ndarray] | None = None,
    *,
    duration_ms: float | None = None,
    live: bool = False,
    sound_blocks: int = 0,
) -> Path:
    """A Matroska file with these time stamps, and no frame rate.

    `live`: of unknown size and duration; `sound_blocks`: of a sound track, after each picture.
    """
    images = [grey(number) for number in range(len(times_ms))] if pictures is None else list(pictures)
    encoded = [cv2.imencode(".jpg", image)[1].tobytes() for image in images]
    height, width = images[0].shape[:2]
    sound = _element("a3", b"\x82\0\0\x80", bytes(8)) * sound_blocks
    clusters = [
        _element("1f43b675", _number("e7", time), _element("a3", b"\x81\0\0\x80", picture), sound)
        for time, picture in zip(times_ms, encoded, strict=True)
    ]
    info = [_number("2ad7b1", 1_000_000), _element("4d80", b"test"), _element("5741", b"test")]
    if not live:
        info.append(_element("4489", struct.pack(">d", duration_ms or max(times_ms) + 40)))
    track = _element(
        "ae", _number("d7", 1), _number("73c5", 1), _number("83", 1), _element("86", b"V_MJPEG"),
        _element("e0", _number("b0", width), _number("ba", height)),
    )  # fmt: skip
    second = _element(
        "ae", _number("d7", 2), _number("73c5", 2), _number("83", 2), _element("86", b"A_PCM/INT/LIT"),
        _element("e1", _element("b5", struct.pack(">d", 8000)), _number("9f", 1), _number("6264", 16)),
    )  # fmt: skip
    tracks = _element("1654ae6b", track, second if sound_blocks else b"")
    content = b"".join([_element("1549a966", *info), tracks, *clusters])
    head = _element("1a45dfa3", _element("4282", b"matroska"), _number("4287", 4), _number("4285", 2))
    size = b"\x01" + b"\xff" * 7 if live else struct.pack(">Q", 1 << 56 | len(content))
    path.write_bytes(head + bytes.fromhex("18538067") + size + content)
    return path


def write_mp4(path: Path, frames: int, *, fps: float = 25.0) -> Path:
    """An MP4 file with its index at the start, as for streaming."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (64, 48))
    assert writer.isOpened()
    for number in range(frames):
        writer.write(grey(number))
    writer.release()
    data, boxes, at = path.read_bytes(), {}, 0
    while at < len(data):
        size = struct.unpack_from(">I", data, at)[0]
        boxes[data[at + 4 : at + 8]] = data[at : at + size]
        at += size
    index = bytearray(boxes[b"moov"])
    table = index.index(b"stco") + 8
    for entry in range(struct.unpack_from(">I", index, table)[0]):
        place = table + 4 + 4 * entry
        struct.pack_into(">I", index, place, struct.unpack_from(">I", index, place)[0] + len(index))
    rest = b"".join(box for kind, box in boxes.items() if kind not in {b"ftyp", b"moov"})
    path.write_bytes(boxes[b"ftyp"] + bytes(index) + rest)
    return path


def trim_mp4(path: Path, share: float) -> Path:
    """Leave out the first part of the video by its edit list, as phones do; the frames stay in the file."""
    data = bytearray(path.read_bytes())
    edits, header, media = data.index(b"elst") + 12, data.index(b"tkhd") + 24, data.index(b"mdhd") + 20
    played, total = struct.unpack_from(">I", data, edits)[0], struct.unpack_from(">I", data, media)[0]
    for place in (edits, header):
        struct.pack_into(">I", data, place, int(played * (1 - share)))
    struct.pack_into(">i", data, edits + 4, int(total * share))
    path.write_bytes(data)
    return path
