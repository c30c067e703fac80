"""Pictures: which are read, and which are refused, before they cost anything."""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.core.errors import ConfigError
from edge_agent.core.pictures import MAX_PICTURE_PIXELS, UnreadablePicture, decode_picture, read_picture
from tests.core.test_files import KINDS, make

Image = NDArray[np.uint8]


def person(seed: int = 0, height: int = 160, width: int = 64) -> Image:
    """A picture with the detail of a photograph."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = sum(cv2.GaussianBlur(noise, (0, 0), sigma) * sigma for sigma in (1, 3, 9))
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def jpeg(image: Image, *options: int) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90, *options])[1].tobytes()


def png(image: Image) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def reference(encoded: bytes) -> Image:
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)


def exif(orientation: int, thumbnail: bytes = b"") -> bytes:
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    body = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + bytes(4) + thumbnail
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


PLAIN = jpeg(person())
PROGRESSIVE = jpeg(person(), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
RESTARTS = jpeg(person(), cv2.IMWRITE_JPEG_RST_INTERVAL, 2)
OPTIMISED = jpeg(person(), cv2.IMWRITE_JPEG_OPTIMIZE, 1)
VIDEO = b"\0\0\0\x18ftypmp42" + np.random.default_rng(1).bytes(200_000)

WHOLE = {
    "plain": PLAIN,
    "progressive": PROGRESSIVE,
    "restart markers": RESTARTS,
    "optimised": OPTIMISED,
    "grey": jpeg(person()[..., 0]),
    "black, with optimised codes": jpeg(np.zeros((160, 64, 3), np.uint8), cv2.IMWRITE_JPEG_OPTIMIZE, 1),
    "white": jpeg(np.full((800, 600, 3), 255, np.uint8)),
    "turned by EXIF": PLAIN[:2] + exif(6) + PLAIN[2:],
    "thumbnail in EXIF": PLAIN[:2] + exif(1, jpeg(person()[::4, ::4])) + PLAIN[2:],
    "colour profile": PLAIN[:2] + segment(0xE2, b"ICC_PROFILE\0" + bytes(60_000)) * 3 + PLAIN[2:],
    "comment with markers": PLAIN[:2] + segment(0xFE, b"\xff\xd9\xff\xda" * 1000) + PLAIN[2:],
    "fill bytes before a marker": PLAIN[:2] + b"\xff" * 9 + PLAIN[2:],
    "another version of JFIF": PLAIN.replace(b"JFIF\0\1\1", b"JFIF\0\2\1", 1),
    "a wrong range of coefficients": PLAIN.replace(b"\0\x3f\0", b"\0\0\0", 1),
    "without JFIF": PLAIN[:2] + PLAIN[20:],
    "a restart marker before the end": PLAIN[:-2] + b"\xff\xd0" + PLAIN[-2:],
    "zeros after the end": PLAIN + bytes(5000),
    "another picture after the end": PLAIN + PROGRESSIVE,
    "a video after the end": PLAIN + VIDEO,
    "zeros before the end": PLAIN[:-2] + bytes(40) + PLAIN[-2:],
    "fill bytes before the end": PLAIN[:-2] + b"\xff" * 40 + PLAIN[-2:],
    "png": png(person()),
    "grey png": png(person()[..., 0]),
    "png with transparency": png(cv2.cvtColor(person(), cv2.COLOR_BGR2BGRA)),
    "png of 16 bits": png(person().astype(np.uint16) * 257),
    "png with a colour profile": png(person())[:33]
    + chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile"))
    + png(person())[33:],
    "bytes after a png": png(person()) + b"x" * 5000,
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_pictures_are_read_as_opencv_reads_them(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    expected = reference(WHOLE[name])
    capfd.readouterr()
    assert (decode_picture(WHOLE[name], name) == expected).all()
    assert capfd.readouterr() == ("", ""), "the decoder wrote to the terminal"


def damaged(source: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """Damage the compressed data of a JPEG."""
    data = bytearray(source)
    begin, end = source.index(b"\xff\xda") + 14, len(source) - 2
    place = int(rng.integers(begin, end - 80))
    if kind == "cut":
        return source[: int(rng.integers(2, end))]
    if kind == "cut, with an end marker":
        return source[:place] + b"\xff\xd9"
    if kind == "zeros":
        data[place : place + 64] = bytes(64)
    elif kind == "zeros to the end":
        data[place:end] = bytes(end - place)
    elif kind == "noise":
        data[place : place + 64] = rng.bytes(64)
    elif kind == "twelve bytes":
        for at in rng.integers(begin, end, 12):
            data[at] ^= 0x55
    return bytes(data)


@pytest.mark.parametrize("source", [PLAIN, RESTARTS, PROGRESSIVE], ids=["plain", "restarts", "progressive"])
@pytest.mark.parametrize(
    ("kind", "least"),
    [
        ("cut", 1.0),
        ("cut, with an end marker", 0.97),
        ("zeros", 0.9),
        ("zeros to the end", 0.95),
        ("noise", 0.8),
        ("twelve bytes", 0.95),
    ],
)
def test_damaged_pictures_are_refused(
    source: bytes, kind: str, least: float, capfd: pytest.CaptureFixture[str]
) -> None:
    rng, refused = np.random.default_rng(5), 0
    for _ in range(100):
        try:
            decode_picture(damaged(source, kind, rng), "it")
        except UnreadablePicture:
            refused += 1
    assert refused / 100 >= least
    assert capfd.readouterr() == ("", "")


@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_changed_bytes_give_a_picture_or_one_error(name: str, data: st.DataObject) -> None:
    changed = bytearray(WHOLE[name])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(changed), 12_000) - 1))
        change = data.draw(st.binary(max_size=20))
        changed[place : place + data.draw(st.integers(0, 20))] = change
    with contextlib.suppress(UnreadablePicture):
        assert decode_picture(bytes(changed), name, max_pixels=1 << 20).dtype == np.uint8


@given(st.binary(max_size=400), st.sampled_from([b"", b"\xff\xd8", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]))
def test_any_bytes_are_refused(data: bytes, start: bytes) -> None:
    with pytest.raises(UnreadablePicture):
        decode_picture(start + data, "it")


@given(st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1))
def test_the_size_in_the_header_of_a_png(width: int, height: int) -> None:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    encoded = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    large = width * height > MAX_PICTURE_PIXELS
    with pytest.raises(UnreadablePicture, match="pixels, more than" if large else "is damaged"):
        decode_picture(encoded, "it")


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_the_size_in_the_header_of_a_jpeg(width: int, height: int) -> None:
    place = PLAIN.index(b"\xff\xc0") + 5
    encoded = PLAIN[:place] + struct.pack(">HH", height, width) + PLAIN[place + 4 :]
    if width * height > 1 << 20:
        with pytest.raises(UnreadablePicture, match="pixels, more than"):
            decode_picture(encoded, "it", max_pixels=1 << 20)
    else:
        with contextlib.suppress(UnreadablePicture):
            assert decode_picture(encoded, "it").shape == (height, width, 3)


def bomb(side: int) -> bytes:
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(side // 8 + 1)) for _ in range(side)) + rows.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


HOSTILE: dict[str, Callable[[], bytes]] = {
    "a png of 20,000 x 20,000": lambda: bomb(20_000),
    "a png that unpacks to more than its size": lambda: (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(100 << 20)))
        + chunk(b"IEND", b"")
    ),
    "a png of a million chunks": lambda: png(person())[:33] + chunk(b"tEXt", b"") * 1_000_000,
    "a jpeg of a million segments": lambda: b"\xff\xd8" + segment(0xFE, b"") * 1_000_000,
    "a jpeg of fill bytes": lambda: b"\xff\xd8" + b"\xff" * (16 << 20),
    "a jpeg of ten thousand scans": lambda: (
        PROGRESSIVE[:-2] + PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2] * 10_000 + b"\xff\xd9"
    ),
    "a jpeg of 65,500 x 65,500": lambda: PLAIN.replace(
        struct.pack(">HH", 160, 64), struct.pack(">HH", 65_500, 65_500), 1
    ),
    "a tiff": cv2.imencode(".tiff", person())[1].tobytes,
    "a bmp": cv2.imencode(".bmp", person())[1].tobytes,
    "a webp": cv2.imencode(".webp", person())[1].tobytes,
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pictures_cost_little(name: str) -> None:
    encoded = HOSTILE[name]()
    began = time.process_time()
    with pytest.raises(UnreadablePicture):
        decode_picture(encoded, name)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_no_picture(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UnreadablePicture, match="cannot read"):
        read_picture(make(kind, tmp_path / "x.jpg"))


def test_a_name_that_is_not_utf8_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    path.write_bytes(PLAIN)
    assert read_picture(path).shape == (160, 64, 3)
    path.write_bytes(PLAIN[:900])
    with pytest.raises(UnreadablePicture, match=r"caf\\xe9\.jpg"):
        read_picture(path)


def test_a_missing_decoder_is_no_fault_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with pytest.raises(ConfigError, match=r"install\.sh"):
        decode_picture(PLAIN, "it")
