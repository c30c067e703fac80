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
) -> Path:
    """A Matroska file with these time stamps, and no frame rate; `live`: of unknown size and duration."""
    images = [grey(number) for number in range(len(times_ms))] if pictures is None else list(pictures)
    encoded = [cv2.imencode(".jpg", image)[1].tobytes() for image in images]
    height, width = images[0].shape[:2]
    clusters = [
        _element("1f43b675", _number("e7", time), _element("a3", b"\x81\0\0\x80", picture))
        for time, picture in zip(times_ms, encoded, strict=True)
    ]
    info = [_number("2ad7b1", 1_000_000), _element("4d80", b"test"), _element("5741", b"test")]
    if not live:
        info.append(_element("4489", struct.pack(">d", duration_ms or max(times_ms) + 40)))
    track = _element(
        "ae", _number("d7", 1), _number("73c5", 1), _number("83", 1), _element("86", b"V_MJPEG"),
        _element("e0", _number("b0", width), _number("ba", height)),
    )  # fmt: skip
    content = b"".join([_element("1549a966", *info), _element("1654ae6b", track), *clusters])
    head = _element("1a45dfa3", _element("4282", b"matroska"), _number("4287", 4), _number("4285", 2))
    size = b"\x01" + b"\xff" * 7 if live else struct.pack(">Q", 1 << 56 | len(content))
    path.write_bytes(head + bytes.fromhex("18538067") + size + content)
    return path
