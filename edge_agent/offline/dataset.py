"""Person crops in Market-1501 layout: reading, checking, counting, showing.

::

    DIR/bounding_box_train/PPPP_cCsS_FFFFFF_NN.jpg     identities to learn from
    DIR/bounding_box_test/...                          gallery
    DIR/query/...                                      queries

P is the person, C the camera, S the sequence, F the frame; what follows the third underscore is
ignored (ReIdentificationNet model card, "Data set"). Numbers may have any count of digits, as in the
AI City part of NVIDIA's data. Person `-1` is junk: a bad box that counts neither for nor against a
match. Person `0000` is a distractor: somebody, but nobody that a query asks for; it stays in the gallery.
Conversions without a sequence (`0001_c2_f0046182.jpg`, `0001_c2_000451.jpg`) are read too.

Opening a set looks at names and sizes only; pictures are decoded by `check_pictures` and `read_picture`.
Commands import this module for their options, so numpy and OpenCV are imported by the functions that draw
and decode.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.core.errors import DatasetError, InputError
from edge_agent.core.pictures import PICTURE_SUFFIXES, CropName, parse_crop_name, read_picture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "DISTRACTOR",
    "JUNK",
    "Crop",
    "JunkRule",
    "MarketDataset",
    "Problem",
    "Split",
    "SplitStatistics",
    "SyntheticList",
    "contact_sheet",
]

JUNK = -1
"""Person number of a box that shows nobody properly; ignored in every figure."""

DISTRACTOR = 0
"""Person number of people that no query asks for."""


_CLUTTER = frozenset({"thumbs.db", "desktop.ini"})  # Market-1501's own archive has a Thumbs.db in each folder


class Split(str, Enum):
    """Part of a data set."""

    TRAIN = "train"
    GALLERY = "gallery"
    QUERY = "query"

    @property
    def folder(self) -> str:
        """Name of its folder in the Market-1501 layout."""
        return _FOLDERS[self]


_FOLDERS = {
    Split.TRAIN: "bounding_box_train",
    Split.GALLERY: "bounding_box_test",
    Split.QUERY: "query",
}


class JunkRule(str, Enum):
    """What an evaluation makes of person `-1`.

    STRICT removes it from both sides, as the Market-1501 protocol says, and lets no distractor be a match.
    TAO_COMPAT does what NVIDIA TAO's reader does: its pattern skips the minus sign, so junk becomes
    person 1, and distractors are one person like any other. For parity with TAO's printed figures only.
    """

    STRICT = "strict"
    TAO_COMPAT = "tao-compat"


@dataclass(frozen=True, slots=True)
class Crop:
    """One picture of one person.

    Attributes:
        path: the file.
        pid: person, `JUNK` (-1) or `DISTRACTOR` (0) where it is nobody in particular.
        camid: camera, as numbered in the name.
        sequence: recording of that camera, or None.
        frame: frame number within the recording.
        split: which part of the set it belongs to.
    """

    path: Path
    pid: int
    camid: int
    sequence: int | None
    frame: int
    split: Split

    @property
    def is_junk(self) -> bool:
        """Whether it is to be ignored."""
        return self.pid == JUNK

    @property
    def is_distractor(self) -> bool:
        """Whether it shows somebody whom no query asks for."""
        return self.pid == DISTRACTOR


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that cannot be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class SyntheticList:
    """Which people and cameras of a set are rendered, not filmed.

    A crop is synthetic when its person or its camera is listed.
    """

    identities: frozenset[int] = frozenset()
    cameras: frozenset[int] = frozenset()

    @staticmethod
    def read(path: Path) -> SyntheticList:
        """Read a text file: one person (`0760`), camera (`c14`) or range (`760-907`, `c14-c135`) a line.

        `#` starts a comment.

        Raises:
            InputError: unreadable, or a line of another form (with its number).
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as problem:
            raise InputError(f"cannot read the list of synthetic people {path}: {problem}") from problem
        identities: set[int] = set()
        cameras: set[int] = set()
        for number, line in enumerate(lines, 1):
            entry = line.split("#", 1)[0].strip()
            if not entry:
                continue
            match = re.fullmatch(r"(c?)(\d+)(?:\s*-\s*\1(\d+))?", entry)
            if match is None:
                raise InputError(
                    f"{path}, line {number}: {entry!r} is not a person (`0760`), a camera (`c14`) "
                    "or a range of them (`760-907`, `c14-c135`)"
                )
            last = int(match[3] or match[2])
            (cameras if match[1] else identities).update(range(int(match[2]), last + 1))
        return SyntheticList(frozenset(identities), frozenset(cameras))

    def covers(self, crop: Crop) -> bool:
        """Whether the crop is synthetic."""
        return crop.pid in self.identities or crop.camid in self.cameras


@dataclass(frozen=True, slots=True)
class SplitStatistics:
    """Counts of one split, or of its real or synthetic part.

    Attributes:
        identities: people, without junk and distractors.
        images: pictures with a valid name, junk and distractors included.
        cameras: distinct camera numbers.
        sequences: distinct pairs of camera and sequence.
        distractor_images: pictures of person `0000`.
        junk_images: pictures of person `-1`.
    """

    identities: int
    images: int
    cameras: int
    sequences: int
    distractor_images: int
    junk_images: int

    @staticmethod
    def of(crops: Sequence[Crop]) -> SplitStatistics:
        """Count `crops`."""
        return SplitStatistics(
            identities=len({crop.pid for crop in crops} - {JUNK, DISTRACTOR}),
            images=len(crops),
            cameras=len({crop.camid for crop in crops}),
            sequences=len({(crop.camid, crop.sequence) for crop in crops if crop.sequence is not None}),
            distractor_images=sum(crop.is_distractor for crop in crops),
            junk_images=sum(crop.is_junk for crop in crops),
        )


@dataclass(frozen=True, slots=True)
class MarketDataset:
    """A data set in Market-1501 layout, opened for some or all of its splits.

    Attributes:
        root: its folder.
        splits: the crops of each opened split, sorted by file name.
        problems: files that were left out, sorted by path.
    """

    root: Path
    splits: Mapping[Split, tuple[Crop, ...]]
    problems: tuple[Problem, ...] = field(default=())

    @staticmethod
    def open(root: Path, splits: Iterable[Split] = tuple(Split)) -> MarketDataset:
        """List the named splits of the set in `root`.

        Misnamed and empty files go to `problems`.

        Raises:
            DatasetError: the folder or one of the splits is missing, or holds no usable picture.
        """
        root = Path(root)
        _require_layout(root)
        found: dict[Split, tuple[Crop, ...]] = {}
        problems: list[Problem] = []
        for split in splits:
            crops, refused = _list_split(root, split)
            if not crops:
                raise DatasetError(_why_empty(root, split, refused))
            found[split] = tuple(crops)
            problems += refused
        return MarketDataset(root, found, tuple(problems))

    def split(self, split: Split) -> tuple[Crop, ...]:
        """Crops of one split; DatasetError where the set was opened without it."""
        if split not in self.splits:
            raise DatasetError(f"{self.root} was opened without its {split.folder} split")
        return self.splits[split]

    @property
    def train(self) -> tuple[Crop, ...]:
        """Crops to learn from."""
        return self.split(Split.TRAIN)

    @property
    def gallery(self) -> tuple[Crop, ...]:
        """Crops to be searched."""
        return self.split(Split.GALLERY)

    @property
    def query(self) -> tuple[Crop, ...]:
        """Crops to search with."""
        return self.split(Split.QUERY)

    @property
    def crops(self) -> Iterator[Crop]:
        """All crops, split by split."""
        return (crop for crops in self.splits.values() for crop in crops)

    def statistics(self) -> dict[Split, SplitStatistics]:
        """Counts of each split."""
        return {split: SplitStatistics.of(crops) for split, crops in self.splits.items()}

    def statistics_by_origin(
        self, synthetic: SyntheticList
    ) -> dict[Split, tuple[SplitStatistics, SplitStatistics]]:
        """Counts of the real and of the synthetic part of each split, as in the model card."""
        return {
            split: (
                SplitStatistics.of([crop for crop in crops if not synthetic.covers(crop)]),
                SplitStatistics.of([crop for crop in crops if synthetic.covers(crop)]),
            )
            for split, crops in self.splits.items()
        }

    def check_pictures(self) -> Iterator[Problem | None]:
        """Decode every crop in turn; yields None for a good one and a Problem for a broken one."""
        for crop in self.crops:
            try:
                read_picture(crop.path)
            except InputError as problem:
                yield Problem(crop.path, str(problem.__cause__ or problem))
            else:
                yield None


def _require_layout(root: Path) -> None:
    """Raise DatasetError, with a hint where the set really is, unless `root` looks like one."""
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder; name the folder that holds {_folder_list()}")
    folders = set(_FOLDERS.values())
    if any((root / folder).is_dir() for folder in folders):
        return
    if root.name in folders:
        raise DatasetError(f"{root} is one split of a data set; name its parent folder, {root.parent}")
    for child in sorted(path for path in root.iterdir() if path.is_dir()):
        if any((child / folder).is_dir() for folder in folders):
            raise DatasetError(f"{root} is not in Market-1501 layout, but {child} is; name that folder")
    raise DatasetError(f"{root} is not in Market-1501 layout: it has none of the folders {_folder_list()}")


def _folder_list() -> str:
    return ", ".join(_FOLDERS.values())


def _list_split(root: Path, split: Split) -> tuple[list[Crop], list[Problem]]:
    """Usable crops and refused files of one split, each sorted by name."""
    crops: list[Crop] = []
    problems: list[Problem] = []
    folder = root / split.folder
    if not folder.is_dir():
        return crops, problems
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith(".") or path.name.lower() in _CLUTTER:
            continue
        reason, name = _judge(path)
        if name is None:
            problems.append(Problem(path, reason))
        else:
            crops.append(Crop(path, name.pid, name.camid, name.sequence, name.frame, split))
    return crops, problems


def _judge(path: Path) -> tuple[str, CropName | None]:
    """Why a file cannot be used, or what its name says."""
    if path.is_dir():
        return "is a folder; crops lie directly in the split's folder", None
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        return "is not a picture (.jpg, .jpeg or .png)", None
    name = parse_crop_name(path.name)
    if name is None:
        return "is misnamed: expected PPPP_cCsS_FFFFFF_NN, as in 0002_c1s1_000451_03.jpg", None
    try:
        empty = path.stat().st_size == 0
    except OSError as problem:
        return f"cannot be read: {problem.strerror or problem}", None
    return ("is empty (0 bytes)", None) if empty else ("", name)


def _why_empty(root: Path, split: Split, refused: Sequence[Problem]) -> str:
    folder = root / split.folder
    if not folder.is_dir():
        return f"{root} has no {split.folder} folder, and the {split.value} split is needed here"
    if refused:
        first = refused[0]
        return (
            f"{folder} holds no usable crop: {len(refused)} files were refused, "
            f"the first of them, {first.path.name}, {first.reason}"
        )
    return f"{folder} is empty; put crops named like 0002_c1s1_000451_03.jpg into it"


_TILE_WIDTH, _TILE_HEIGHT, _GAP = 64, 128, 4
_LABEL_WIDTH, _HEADER_HEIGHT = 92, 28


def contact_sheet(dataset: MarketDataset, *, people: int = 8, pictures: int = 12) -> NDArray[np.uint8]:
    """Draw a sample of each split: one row per person, crops spread over that person's cameras.

    People are taken at even steps through the sorted ids, so the same set gives the same sheet;
    distractors and junk come last, one row each. A picture that cannot be decoded is a crossed box.

    Returns:
        `(H, W, 3)` uint8 BGR.
    """
    import numpy as np

    bands = [
        _draw_split(split, crops, people=people, pictures=pictures) for split, crops in dataset.splits.items()
    ]
    return np.concatenate(bands)


def _draw_split(split: Split, crops: Sequence[Crop], *, people: int, pictures: int) -> NDArray[np.uint8]:
    import cv2
    import numpy as np

    by_person: dict[int, list[Crop]] = {}
    for crop in crops:
        by_person.setdefault(crop.pid, []).append(crop)
    named = [pid for pid in sorted(by_person) if pid not in {JUNK, DISTRACTOR}]
    shown = _even_steps(named, people) + [pid for pid in (DISTRACTOR, JUNK) if pid in by_person]
    width = _LABEL_WIDTH + pictures * (_TILE_WIDTH + _GAP)
    band = np.full((_HEADER_HEIGHT + len(shown) * (_TILE_HEIGHT + _GAP), width, 3), 255, np.uint8)
    counts = SplitStatistics.of(crops)
    header = (
        f"{split.folder}: {counts.identities} identities, {counts.images} images, {counts.cameras} cameras"
    )
    cv2.putText(band, header, (6, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    for row, pid in enumerate(shown):
        top = _HEADER_HEIGHT + row * (_TILE_HEIGHT + _GAP)
        label = {JUNK: "junk", DISTRACTOR: "distractor"}.get(pid, f"{pid:04d}")
        cv2.putText(band, label, (6, top + 60), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
        _draw_row(band, top, _spread_over_cameras(by_person[pid], pictures))
    return band


def _draw_row(band: NDArray[np.uint8], top: int, crops: Sequence[Crop]) -> None:
    import cv2

    for column, crop in enumerate(crops):
        left = _LABEL_WIDTH + column * (_TILE_WIDTH + _GAP)
        tile = band[top : top + _TILE_HEIGHT, left : left + _TILE_WIDTH]
        try:
            tile[:] = cv2.resize(read_picture(crop.path), (_TILE_WIDTH, _TILE_HEIGHT))
        except InputError:
            tile[:] = (220, 220, 255)
            corner = (left + _TILE_WIDTH - 1, top + _TILE_HEIGHT - 1)
            cv2.line(band, (left, top), corner, (0, 0, 255), 2)
        cv2.putText(
            band, f"c{crop.camid}", (left + 2, top + 10), cv2.FONT_HERSHEY_SIMPLEX, 0.33, (0, 0, 0), 2
        )
        cv2.putText(
            band, f"c{crop.camid}", (left + 2, top + 10), cv2.FONT_HERSHEY_SIMPLEX, 0.33, (255, 255, 255), 1
        )


def _even_steps(items: list[int], count: int) -> list[int]:
    """At most `count` items at even steps, first and last included."""
    if len(items) <= count:
        return items
    last = len(items) - 1
    return [items[round(step * last / max(1, count - 1))] for step in range(count)]


def _spread_over_cameras(crops: Sequence[Crop], count: int) -> list[Crop]:
    """At most `count` crops, taken from the cameras in turn, each camera's at even steps of time."""
    by_camera: dict[int, list[Crop]] = {}
    for crop in crops:
        by_camera.setdefault(crop.camid, []).append(crop)
    quota = -(-count // len(by_camera))
    chosen = [
        [group[index] for index in _even_steps(list(range(len(group))), quota)]
        for _, group in sorted(by_camera.items())
    ]
    # The first of each camera, then the second of each, ... until `count`; then sorted by camera again.
    ranked = [crop for turn in range(quota) for group in chosen for crop in group[turn : turn + 1]]
    return sorted(ranked[:count], key=lambda crop: (crop.camid, crop.path.name))
