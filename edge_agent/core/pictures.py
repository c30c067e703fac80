"""Person crops on disk: list files, parse names in Market-1501 style, decode.

Numbers in a name may have any number of digits. Commands import this module for their options, so numpy and
OpenCV are imported in `read_picture`.
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

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})

_NAME = re.compile(
    r"(?P<pid>-1|\d+)_c(?P<camid>\d+)(?:s(?P<sequence>\d+))?_f?(?P<frame>\d+)(?:_.*)?\.(?:jpg|jpeg|png)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class CropName:
    """A file name in Market-1501 style; `sequence` is None where the name has none."""

    pid: int
    camid: int
    sequence: int | None
    frame: int


def parse_crop_name(name: str) -> CropName | None:
    """Parse `PPPP_cCsS_FFFFFF_NN.jpg` (without folder); None for another form."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    sequence = None if match["sequence"] is None else int(match["sequence"])
    return CropName(int(match["pid"]), int(match["camid"]), sequence, int(match["frame"]))


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


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Decode one picture to `(H, W, 3)` uint8 BGR.

    InputError: missing, unreadable, not a picture, or cut off: OpenCV decodes a truncated JPEG and fills the
    missing part with grey, so the end marker is checked first.
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
    except cv2.error:  # e.g. a size beyond the limits of OpenCV
        picture = None
    if picture is None:
        raise InputError(f"cannot read {path}: it is not a picture") from ValueError("cannot be decoded")
    return np.asarray(picture, np.uint8)


def _cut_off(encoded: bytes) -> bool:
    """Whether a JPEG or PNG has no end marker; some cameras append a few bytes after it."""
    tail = encoded[-1024:]
    if encoded.startswith(b"\xff\xd8"):
        return b"\xff\xd9" not in tail
    return encoded.startswith(b"\x89PNG") and b"IEND" not in tail
