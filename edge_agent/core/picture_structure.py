"""The structure of JPEG and PNG files: their size in pixels before decoding, and whether they are whole.

A JPEG ends at its own end marker: what phones append (further pictures, a video, padding) is left out, and so
are segments that do not make the picture. The same holds for a PNG, whose chunks have checksums.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

FORMATS = "JPEG or PNG"
"""The formats that are read, decided by content; `PICTURE_SUFFIXES` are the endings of their names."""

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_SOI, _EOI, _SOS, _DHT, _APP1 = 0xD8, 0xD9, 0xDA, 0xC4, 0xE1
_SEQUENTIAL = frozenset({0xC0, 0xC1})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_MAX_SCANS = 100
"""A progressive JPEG has about ten; each costs a pass over the whole picture, however few bytes it has."""
_MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")
"""A marker that ends compressed data: neither an escaped FF nor a restart marker."""
_FILL = re.compile(rb"\xff+")
_ZEROS = 32
_MAX_PARTS = 100_000
"""Segments or chunks; a PNG of 64 megapixels has about 10,000."""
_APP0, _ADOBE = 0xE0, 0xEE
_JFIF = bytes.fromhex("ffe000104a46494600010100000100010000")
_ALL_COEFFICIENTS = bytes((0, 63, 0))
"""End of the header of a sequential scan. Some encoders get it wrong, or the version of JFIF, harmlessly."""
_KEPT_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND"})
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column, first row, and steps of the passes of an interlaced PNG."""
_CHUNK_BYTES = 1 << 16


class Flaw(Exception):
    """What is wrong with the bytes of a picture; completes a sentence that begins with its name."""


@dataclass(frozen=True, slots=True)
class PictureFile:
    """The bytes that make the picture, and its size as stored.

    `colours` is 0 for a PNG; `is_turned`: the picture may have to be turned.
    """

    data: bytes
    width: int
    height: int
    colours: int = 0
    is_turned: bool = False
    is_jpeg: bool = False

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width * self.height


def examine(encoded: bytes) -> PictureFile:
    """Read the structure of a picture without decoding it; Flaw: another format, cut off, or damaged."""
    if not encoded:
        raise Flaw("is empty (0 bytes)")
    try:
        if encoded.startswith(_JPEG):
            return _examine_jpeg(encoded)
        if encoded.startswith(_PNG):
            return _examine_png(encoded)
    except (struct.error, IndexError):
        raise Flaw("is cut off") from None
    raise Flaw(f"is not a {FORMATS} picture")


def check_pixels(found: PictureFile) -> None:
    """Raise Flaw where the compressed data of a PNG are not those of its size; a JPEG passes."""
    if not found.is_jpeg:
        _check_png_data(found.data)


def padding_before_end(data: bytes) -> int:
    """Return the number of equal bytes, 00 or FF, before the end marker of a JPEG."""
    body = data[:-2]
    return max(len(body) - len(body.rstrip(fill)) for fill in (b"\0", b"\xff"))


def _examine_jpeg(data: bytes) -> PictureFile:
    reader, place = _JpegReader(data), 2
    for _ in range(_MAX_PARTS):
        place, marker = _next_marker(data, place)
        if marker == _EOI:
            return reader.finish()
        if marker != _SOI and marker >= 0xC0:
            place = reader.segment(marker, place)
    raise Flaw("is damaged: it has too many segments")


class _JpegReader:
    """Collects what makes the picture, segment by segment."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._parts = [_JPEG]
        self._size: tuple[int, int, int] | None = None  # height, width, colours
        self._sequential = self._turned = False
        self._scans = 0
        self._first_codes: dict[int, int] = {}

    def segment(self, marker: int, place: int) -> int:
        """Take the segment whose length is at `place`, and compressed data that follow; return their end."""
        data = self._data
        length = struct.unpack_from(">H", data, place)[0]
        segment = data[place - 2 : place + length]
        kept = not 0xE0 <= marker <= 0xFE or marker == _ADOBE
        if marker in _FRAMES:
            if self._size is not None:
                raise Flaw("is damaged: it has two headers")
            self._size = struct.unpack_from(">HHB", data, place + 3)
            self._sequential = marker in _SEQUENTIAL
        elif marker == _DHT:
            self._first_codes |= _first_codes(data[place + 2 : place + length])
        elif marker == _APP1 and data[place + 2 : place + 6] == b"Exif":
            self._turned = kept = True
        elif marker == _SOS and self._sequential:
            segment = segment[:-3] + _ALL_COEFFICIENTS
        elif marker == _APP0 and data[place + 2 : place + 7] == b"JFIF\0":
            self._parts.append(_JFIF)
        if kept:
            self._parts.append(segment)
        return self._scan(place, place + length) if marker == _SOS else place + length

    def finish(self) -> PictureFile:
        """Return the result at the end marker."""
        if self._size is None or not self._scans or 0 in self._size:
            raise Flaw("is damaged: it has no picture data")
        height, width, colours = self._size
        return PictureFile(
            b"".join((*self._parts, b"\xff\xd9")), width, height, colours, self._turned, is_jpeg=True
        )

    def _scan(self, header: int, begin: int) -> int:
        data, self._scans = self._data, self._scans + 1
        if self._size is None or self._scans > _MAX_SCANS:
            raise Flaw("is damaged: data without a header" if self._size is None else "has too many scans")
        end = _MARKER.search(data, begin)
        if end is None:
            raise Flaw("is cut off")
        has_all_colours = data[header + 2] == self._size[2]
        if self._sequential and has_all_colours and self._first_codes.get(data[header + 4] & 15):
            _check_zeros(data, begin, end.start())
        self._parts.append(data[begin : end.start()])
        return end.start()


def _next_marker(data: bytes, place: int) -> tuple[int, int]:
    """The place after the marker at `place`, and the marker."""
    fill = _FILL.match(data, place)
    if fill is None and place < len(data):
        raise Flaw("is damaged: a segment does not begin where the one before it ends")
    end = len(data) if fill is None else fill.end()
    return end + 1, data[end]  # IndexError: cut off


def _first_codes(segment: bytes) -> dict[int, int]:
    """The symbol whose code is all zeros, of each table of AC coefficients in a segment of Huffman tables."""
    found, place = {}, 0
    while place + 17 < len(segment):
        kind, count = segment[place], sum(segment[place + 1 : place + 17])
        if kind >> 4 == 1:
            found[kind & 15] = segment[place + 17]
        place += 17 + count
    return found


def _check_zeros(data: bytes, begin: int, end: int) -> None:
    """Refuse a stretch of zeros where the code 0...0 is not that of the end of a block.

    No picture makes it: it stands for a block whose every coefficient is -1. Lost sectors look like that.
    """
    place = data.find(bytes(_ZEROS), begin, end)
    if place >= 0 and data[place:end].strip(b"\0"):
        raise Flaw("is damaged: a part of its data is zeros")


def _examine_png(data: bytes) -> PictureFile:
    parts, place = [_PNG], len(_PNG)
    view = memoryview(data)
    for _ in range(_MAX_PARTS):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        (check,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(view[place + 4 : end - 4]) != check:
            raise Flaw("is damaged: a checksum is wrong")
        if len(parts) == 1 and (kind != b"IHDR" or length != 13):
            raise Flaw("is damaged: it does not begin with its header")
        if kind in _KEPT_CHUNKS:
            parts.append(data[place:end])
        place = end
        if kind == b"IEND":
            break
    else:
        raise Flaw("is damaged: it has too many chunks")
    width, height = struct.unpack_from(">II", parts[1], 8)
    if 0 in (width, height):
        raise Flaw("is damaged: it has no picture data")
    return PictureFile(b"".join(parts), width, height)


def _check_png_data(data: bytes) -> None:
    """Inflate the data of a PNG once without keeping them, and compare their size with the header's."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, len(_PNG) + 8)
    bits = depth * _CHANNELS.get(colour, 0)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sides = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes]
    expected = sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sides if columns > 0 < rows)
    unpacker, found, place = zlib.decompressobj(), 0, len(_PNG)
    try:
        while place < len(data):
            length, kind = struct.unpack_from(">I4s", data, place)
            rest = data[place + 8 : place + 8 + length] if kind == b"IDAT" else b""
            while rest and found <= expected:
                found += len(unpacker.decompress(rest, _CHUNK_BYTES))
                rest = unpacker.unconsumed_tail
            place += 12 + length
    except zlib.error:
        raise Flaw("is damaged: its data cannot be unpacked") from None
    if found != expected or not unpacker.eof:
        raise Flaw("is damaged: its data do not fill the picture")
