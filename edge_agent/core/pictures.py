"""Person crops on disk: which files are pictures, what a name in Market-1501 style says, decoding.

Numbers in a name may have any count of digits. Commands import this module for their options, so
numpy and OpenCV are imported by `read_picture`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["PICTURE_SUFFIXES", "CropName", "list_pictures", "parse_crop_name", "read_picture"]

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})

_NAME = re.compile(
    r"(?P<pid>-1|\d+)_c(?P<camid>\d+)(?:s(?P<sequence>\d+))?_f?(?P<frame>\d+)(?:_.*)?\.(?:jpg|jpeg|png)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class CropName:
    """What a file name in Market-1501 style says; `sequence` is None where the name has none."""

    pid: int
    camid: int
    sequence: int | None
    frame: int


def parse_crop_name(name: str) -> CropName | None:
    """Read `PPPP_cCsS_FFFFFF_NN.jpg`; None where `name` (no folders) is not of that form."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    sequence = match["sequence"]
    return CropName(
        pid=int(match["pid"]),
        camid=int(match["camid"]),
        sequence=None if sequence is None else int(sequence),
        frame=int(match["frame"]),
    )


def list_pictures(folder: Path) -> tuple[Path, ...]:
    """Pictures directly inside `folder`, sorted by name, whatever they are called.

    Raises:
        InputError: not a folder, or no picture in it.
    """
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


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Decode one picture to `(H, W, 3)` uint8 BGR.

    OpenCV fills the missing part of a cut-off JPEG with grey and calls it read, so the end marker
    is looked for first.

    Raises:
        InputError: missing, unreadable, cut off, or not a picture.
    """
    import cv2
    import numpy as np

    try:
        encoded = Path(path).read_bytes()
    except OSError as problem:
        raise InputError(f"cannot read {path}: {problem.strerror or problem}") from problem
    if _cut_off(encoded):
        raise InputError(f"cannot read {path}: the file is cut off") from ValueError("is cut off")
    try:
        picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) if encoded else None
    except cv2.error:  # a size beyond OpenCV's limits, for example
        picture = None
    if picture is None:
        raise InputError(f"cannot read {path}: it is not a picture") from ValueError("cannot be decoded")
    return np.asarray(picture, np.uint8)


def _cut_off(encoded: bytes) -> bool:
    """Whether a JPEG or PNG misses its end; some cameras append a few bytes after it."""
    tail = encoded[-1024:]
    if encoded.startswith(b"\xff\xd8"):
        return b"\xff\xd9" not in tail
    return encoded.startswith(b"\x89PNG") and b"IEND" not in tail
