"""Person crops on disk: list files, parse names in Market-1501 style, decode.

Numbers in a name may have any number of digits. Commands import this module for their options, so numpy and
the decoders are imported where they are used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.core.errors import ConfigError, InputError
from edge_agent.core.files import read_file, shown
from edge_agent.core.picture_structure import Flaw, PictureFile, check_pixels, examine, padding_before_end

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
MAX_PICTURE_BYTES = 256 << 20
"""Limit of one file; phones append videos to pictures."""
MAX_PICTURE_PIXELS = 64_000_000
"""Limit of a picture that a command reads: decoding takes 3 bytes a pixel, of a progressive JPEG 9."""
MAX_CROP_PIXELS = 16_000_000
"""Limit of a picture that a running agent reads, which shows one person."""

KEPT_SIDE = 256
"""Greatest height and width of a picture that the gallery keeps: networks take 256 x 128."""
LARGEST_KEPT = 32 << 10
"""Bytes of one such JPEG: most take 4 to 16 KB."""
_KEPT_QUALITIES = (90, 75, 60, 40)

_LEFT_OVER = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
_READ_AHEAD_BYTES = 8
"""Bytes that libjpeg may have taken into its buffer beyond the last code."""

_LARGEST = (1 << 63) - 1
"""Of a number in a name: arrays and databases have 64 bits."""
_NUMBER = r"0*\d{1,19}"
_NAME = re.compile(
    rf"(?P<pid>-1|{_NUMBER})_c(?P<camid>{_NUMBER})(?:s(?P<sequence>{_NUMBER}))?_f?(?P<frame>{_NUMBER})"
    r"(?:_.*)?\.(?:jpg|jpeg|png)",
    re.IGNORECASE | re.ASCII,
)


class UnreadablePicture(InputError):
    """A picture that cannot be read; `reason` completes a sentence that begins with its name."""

    def __init__(self, name: str, reason: str, message: str = "") -> None:
        super().__init__(message or f"cannot read {name}: it {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class CropName:
    """A file name in Market-1501 style; `sequence` is None where the name has none."""

    pid: int
    camid: int
    sequence: int | None
    frame: int


def parse_crop_name(name: str) -> CropName | None:
    """Parse `PPPP_cCsS_FFFFFF_NN.jpg` (without folder); None for another form, or a number beyond 64 bits.

    Zeros in front do not count: `1` and `0001` are one person.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    pid, camid, sequence, frame = (None if text is None else int(text) for text in match.groups())
    if pid is None or camid is None or frame is None or max(pid, camid, sequence or 0, frame) > _LARGEST:
        return None
    return CropName(pid, camid, sequence, frame)


def list_pictures(folder: Path) -> tuple[Path, ...]:
    """Return the pictures directly inside `folder`, sorted by name; InputError: there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    pictures = tuple(
        path
        for path in sorted(folder.iterdir(), key=lambda path: path.name)
        if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    if not pictures:
        raise InputError(f"{folder} holds no picture (.jpg, .jpeg or .png)")
    return pictures


def read_picture(
    path: Path, *, max_pixels: int = MAX_PICTURE_PIXELS, follow: bool = True
) -> NDArray[np.uint8]:
    """Decode one picture to `(H, W, 3)` uint8 BGR, turned as its EXIF data say.

    UnreadablePicture: missing, unreadable, not a JPEG or PNG, cut off, damaged (see `decode_picture`), or
    larger than `max_pixels`; or, without `follow`, a symbolic link.
    """
    name = shown(path)
    try:
        encoded = read_file(path, MAX_PICTURE_BYTES, follow=follow)
    except InputError as problem:
        reason = str(problem).removeprefix(f"cannot read {name}: ")
        raise UnreadablePicture(name, f"cannot be read: {reason}", str(problem)) from problem
    return decode_picture(encoded, name, max_pixels=max_pixels)


def decode_picture(encoded: bytes, name: str, *, max_pixels: int = MAX_PICTURE_PIXELS) -> NDArray[np.uint8]:
    """Decode a JPEG or PNG to `(H, W, 3)` uint8 BGR; `name` is that of the picture in messages.

    The size is read from the header, before memory is taken. A JPEG is damaged where its decoder notices it:
    a code that does not exist, data that end early or are left over. Damage that gives valid codes of the
    same number cannot be noticed. A PNG has checksums.

    UnreadablePicture: another format, cut off, damaged, or larger than `max_pixels`.
    """
    try:
        found = examine(encoded)
        _check_size(found, max_pixels)
        return _decode_jpeg(found) if found.is_jpeg else _decode_png(found)
    except Flaw as flaw:
        raise UnreadablePicture(name, str(flaw)) from None


def _check_size(found: PictureFile, max_pixels: int) -> None:
    if found.pixels > max_pixels:
        raise Flaw(f"has {found.width} x {found.height} pixels, more than {max_pixels:,}; crop or scale it")


def _decode_png(found: PictureFile) -> NDArray[np.uint8]:
    check_pixels(found)
    return _decode_by_opencv(found.data)


def _decode_jpeg(found: PictureFile) -> NDArray[np.uint8]:
    colours = "CMYK" if found.colours == 4 else "BGR"
    try:
        picture, data = _decode_strictly(found.data, colours), found.data
    except ValueError as problem:
        left = _LEFT_OVER.fullmatch(str(problem))
        padding = padding_before_end(found.data) if left else 0
        # Some encoders pad the end. Where zeros stand for lost data, the decoder uses some of them up first.
        if left is None or not int(left[1]) <= padding <= int(left[1]) + _READ_AHEAD_BYTES:
            raise Flaw(f"is damaged: {problem}") from None
        data = found.data[: -2 - padding] + found.data[-2:]
        try:
            picture = _decode_strictly(data, colours)
        except ValueError as further:
            raise Flaw(f"is damaged: {further}") from None
    return _decode_by_opencv(data) if found.is_turned or picture.shape[2] != 3 else picture


def _decode_strictly(data: bytes, colours: str) -> NDArray[np.uint8]:
    """Decode by libjpeg; ValueError at its first warning."""
    try:
        import simplejpeg
    except ImportError as problem:  # no fault of the picture, which must not be refused for good
        raise ConfigError("JPEG pictures need the package simplejpeg: run ./install.sh again") from problem
    picture: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colours)
    return picture


def _decode_by_opencv(data: bytes) -> NDArray[np.uint8]:
    import cv2
    import numpy as np

    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        picture = None
    if picture is None:
        raise Flaw("cannot be decoded")
    return np.asarray(picture, np.uint8)


def encode_kept(picture: NDArray[np.uint8]) -> bytes:
    """Encode a picture of one person, `(H, W, 3)` uint8 BGR, as a JPEG for the gallery.

    It is scaled down to `KEPT_SIDE`, and has at most `LARGEST_KEPT` bytes.
    """
    import cv2

    height, width = picture.shape[:2]
    scale = min(1.0, KEPT_SIDE / max(height, width))
    while True:
        size = max(1, round(scale * width)), max(1, round(scale * height))
        shown = picture if scale == 1.0 else cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        for quality in _KEPT_QUALITIES:
            encoded = cv2.imencode(".jpg", shown, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
            if len(encoded) <= LARGEST_KEPT:
                return encoded
        scale /= 2
