"""What the container of a recording states about itself: whether it is whole, and whether it has times.

FFmpeg reads as far as it can and does not report that a file is cut off; it makes up a frame rate that is not
stated. OpenCV's frame count is an estimate from the longest track in most containers. So the sizes and
durations are read here: of AVI, MP4 and MOV, Matroska and WebM, MPEG-TS, WMV, FLV, GIF, and of JPEG pictures
in a row.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edge_agent.core.files import open_regular, read_error

_AVI_TOLERANCE_BYTES = 64
"""Writers of AVI disagree whether a size counts its own header."""
_MAX_PARTS = 200_000
"""Boxes examined in one file; a day in fragments of a second has 172,800."""
_MAX_HEADER_BYTES = 64 << 10
_RAW_VIDEO = re.compile(rb"\x00?\x00\x00\x01[\x00-\x7f]|\xff\xd8\xff")
"""H.264 or H.265 without a container, or JPEG pictures in a row. (MPEG-1 and 2 state their rate.)"""
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_TRANSPORT_PACKETS = ((0, 188), (4, 192), (0, 204))
"""Offset of the first sync byte and size of a packet: broadcast, Blu-ray, with error correction."""


@dataclass(frozen=True, slots=True)
class Container:
    """Statements of a container.

    Attributes:
        cut: whether bytes are missing at its end.
        timed: whether it states times or a frame rate.
        seconds: duration of its video; None where none is stated, or only one of all tracks together.
    """

    cut: bool = False
    timed: bool = True
    seconds: float | None = None


def examine(path: Path) -> Container:
    """Read the sizes and durations in the headers of a file.

    InputError: it cannot be read.
    """
    with open_regular(path) as file:
        try:
            return _examine(file, os.fstat(file.fileno()).st_size)
        except OSError as problem:
            raise read_error(path, problem) from problem


def _examine(file: BinaryIO, size: int) -> Container:
    head = file.read(1024)
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return _avi(file, size)
    if head[4:8] in {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}:
        return _mp4(file, size)
    return Container(cut=_is_cut(file, head, size), timed=not _RAW_VIDEO.match(head))


def _is_cut(file: BinaryIO, head: bytes, size: int) -> bool:
    """Whether bytes are missing at the end of another container; `head` is its first kilobyte."""
    cut = any(size % packet for at, packet in _TRANSPORT_PACKETS if head[at::packet][:3] == b"GGG")
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        cut = _matroska_end(file) > size
    elif head.startswith(_ASF):
        cut = _asf_end(head) > size
    elif head.startswith(b"FLV"):
        cut = not _flv_is_whole(file, size)
    elif head.startswith(b"GIF8"):
        cut = not _tail(file, size).endswith(b";")
    elif head.startswith(b"\xff\xd8\xff"):
        cut = not _tail(file, size).endswith(b"\xff\xd9")
    return cut


def _tail(file: BinaryIO, size: int) -> bytes:
    """The last bytes, without padding."""
    file.seek(max(0, size - 1024))
    return file.read(1024).rstrip(b"\0")


def _avi(file: BinaryIO, size: int) -> Container:
    end = 0
    for _ in range(_MAX_PARTS):
        file.seek(end)
        head = file.read(8)
        if head[:4] != b"RIFF" or len(head) < 8:
            break
        length = struct.unpack("<I", head[4:])[0]
        if length in {0, 0xFFFFFFFF}:  # never finished: it states nothing
            break
        end += 8 + length + length % 2
    file.seek(0)
    header = file.read(_MAX_HEADER_BYTES)
    main, stream = header.find(b"avih"), _video_header(header)
    timed, seconds = True, None
    if 0 < stream <= len(header) - 44 and 0 < main <= len(header) - 12:
        scale, rate, _, frames = struct.unpack_from("<4I", header, stream + 28)
        if not (scale and rate):  # then FFmpeg takes the microseconds of a frame from the main header
            scale, rate = struct.unpack_from("<I", header, main + 8)[0], 1_000_000
            timed = scale > 0
        seconds = frames * scale / rate if timed else None
    return Container(end > size + _AVI_TOLERANCE_BYTES, timed, seconds or None)


def _video_header(header: bytes) -> int:
    """Position of the stream header of the video, -1 without one."""
    at = header.find(b"strh")
    while at >= 0 and header[at + 8 : at + 12] != b"vids":
        at = header.find(b"strh", at + 4)
    return at


def _mp4(file: BinaryIO, size: int) -> Container:
    cut, seconds = False, None
    for kind, begin, end in _boxes(file, 0, size):
        if kind in {b"mdat", b"moov", b"moof"} and end > size:
            cut = True
        if kind == b"moov":
            seconds = _video_seconds(file, begin, min(end, size))
    return Container(cut, seconds=seconds)


def _boxes(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of the content of each box between two positions."""
    for _ in range(_MAX_PARTS):
        file.seek(begin)
        head = file.read(16)
        if begin + 8 > end or len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head[:8])
        body = begin + 8
        if length == 1 and len(head) == 16:
            length, body = struct.unpack(">Q", head[8:])[0], begin + 16
        elif length == 0:
            length = end - begin
        if length < body - begin:
            return
        yield kind, body, begin + length
        begin += length


def _video_seconds(file: BinaryIO, begin: int, end: int) -> float | None:
    """Duration of the longest video track as it is played, i.e. without what an edit list leaves out."""
    scale, longest = 0, 0
    for kind, body, stop in _boxes(file, begin, end):
        if kind == b"mvhd":
            scale = _number(file, body, (12, 4), (20, 4))
        elif kind == b"trak" and _is_video(file, body, min(stop, end)):
            for part, inner, _ in _boxes(file, body, min(stop, end)):
                if part == b"tkhd":
                    longest = max(longest, _number(file, inner, (20, 4), (28, 8)))
    return longest / scale if scale and longest else None


def _is_video(file: BinaryIO, begin: int, end: int) -> bool:
    for kind, body, stop in _boxes(file, begin, end):
        if kind == b"mdia":
            for part, inner, _ in _boxes(file, body, min(stop, end)):
                if part == b"hdlr":
                    file.seek(inner + 8)
                    return file.read(4) == b"vide"
    return False


def _number(file: BinaryIO, body: int, short: tuple[int, int], long: tuple[int, int]) -> int:
    """A number at `(offset, bytes)` of a box of version 0 or 1; all ones (unknown) is 0."""
    file.seek(body)
    content = file.read(40)
    offset, width = long if content[:1] == b"\1" else short
    found = content[offset : offset + width]
    return 0 if found == b"\xff" * width else int.from_bytes(found, "big")


def _matroska_end(file: BinaryIO) -> int:
    """Where the last element of the file should end. What was written live has no size: its parts count."""
    end = 0
    for _ in range(_MAX_PARTS):
        file.seek(end)
        head = file.read(12)
        # Length of the id and of the size: leading zero bits of their first bytes.
        width = 9 - head[0].bit_length() if head else 9
        first = head[width : width + 1]
        if width > 4 or first in {b"", b"\0"}:
            break
        count = 9 - first[0].bit_length()
        unknown = (1 << 7 * count) - 1
        length = int.from_bytes(head[width : width + count], "big") & unknown
        end += width + count + (0 if length == unknown else length)
    return end


def _asf_end(head: bytes) -> int:
    """Size of the file in its properties object; 0 where it is not stated."""
    at = head.find(_ASF_PROPERTIES)
    return 0 if at < 0 else int.from_bytes(head[at + 40 : at + 48], "little")


def _flv_is_whole(file: BinaryIO, size: int) -> bool:
    """Whether the last four bytes state the size of the tag before them."""
    file.seek(max(0, size - 4))
    length = int.from_bytes(file.read(4), "big")
    start = size - 4 - length
    if not 9 < start < size:
        return False
    file.seek(start + 1)
    return int.from_bytes(file.read(3), "big") + 11 == length
