"""Person crops in Market-1501 layout: reading, checking and counting.

::

    DIR/bounding_box_train/PPPP_cCsS_FFFFFF_NN.jpg     training identities
    DIR/bounding_box_test/...                          gallery
    DIR/query/...                                      queries

P is the person, C the camera, S the sequence, F the frame; the text after the third underscore is ignored
(ReIdentificationNet model card, "Data set"). Numbers may have any number of digits, as in the AI City part of
NVIDIA's data. Person `-1` is junk: a bad box, ignored in evaluation. Person `0000` is a distractor: a person
who matches no query; it stays in the gallery. Names without a sequence (`0001_c2_f0046182.jpg`,
`0001_c2_000451.jpg`) are also read.

Opening a data set reads only names and sizes; `check_pictures` and `read_picture` decode pictures. Commands
import this module for their options, so it imports neither numpy nor OpenCV.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from edge_agent.core.errors import DatasetError, InputError
from edge_agent.core.files import native_path, read_text
from edge_agent.core.pictures import (
    PICTURE_SUFFIXES,
    CropName,
    UnreadablePicture,
    parse_crop_name,
    read_picture,
)

JUNK = -1
"""Person number of a bad box; ignored in all figures."""

DISTRACTOR = 0
"""Person number of people who match no query."""

EXPECTED_NAME = "expected PPPP_cCsS_FFFFFF_NN, as in 0002_c1s1_000451_03.jpg, with numbers of at most 64 bits"

_IGNORED = frozenset({"thumbs.db", "desktop.ini"})  # Market-1501's archive has a Thumbs.db in each folder


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
    """Treatment of junk and distractors in an evaluation.

    STRICT removes junk from both sides, as in the Market-1501 protocol, and no distractor is a match.
    TAO_COMPAT imitates NVIDIA TAO's reader: its pattern skips the minus sign, so junk becomes person 1, and
    distractors are one person like any other. Use it only for parity with TAO's figures.
    """

    STRICT = "strict"
    TAO_COMPAT = "tao-compat"


@dataclass(frozen=True, slots=True)
class Crop:
    """One picture of a person: `pid`, `JUNK` (-1) or `DISTRACTOR` (0); `frame` counts in its `sequence`."""

    path: Path
    pid: int
    camid: int
    sequence: int | None
    frame: int
    split: Split


@dataclass(frozen=True, slots=True)
class Problem:
    """An unusable file and the reason."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class SyntheticList:
    """Rendered people and cameras of a data set: a crop of a listed person or camera is synthetic."""

    identities: frozenset[int] = frozenset()
    cameras: frozenset[int] = frozenset()

    @staticmethod
    def read(path: Path) -> SyntheticList:
        """Read a text file with a person (`0760`), camera (`c14`) or range (`760-907`, `c14-c135`) per line.

        `#` starts a comment.

        Raises:
            InputError: unreadable, or a line has another form (named).
        """
        lines = read_text(path).splitlines()
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


def numbering_notes(split: Split, pids: Sequence[int]) -> list[str]:
    """Return what is left out of queries or training pictures for its person number, and how to mend it.

    Market-1501 has no distractors and no junk there: a set that has is numbered from 0, or by other rules.
    """
    what = {Split.QUERY: "queries", Split.TRAIN: "training pictures"}[split]
    strangers, bad = (sum(pid == number for pid in pids) for number in (DISTRACTOR, JUNK))
    notes = []
    if strangers:
        notes.append(
            f"{strangers} of {len(pids)} {what} are person 0000, which counts as a distractor in "
            "Market-1501; number people from 1"
        )
    if bad:
        notes.append(
            f"{bad} of {len(pids)} {what} are person -1, which counts as junk in Market-1501; "
            "give them their person's number, from 1 on, or remove them"
        )
    return notes


@dataclass(frozen=True, slots=True)
class SplitStatistics:
    """Counts of one split, or of its real or synthetic part.

    `identities` exclude, `images` include junk and distractors; `sequences` are pairs of camera and sequence.
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
            distractor_images=sum(crop.pid == DISTRACTOR for crop in crops),
            junk_images=sum(crop.pid == JUNK for crop in crops),
        )


@dataclass(frozen=True, slots=True)
class MarketDataset:
    """A data set in Market-1501 layout: crops of each opened split by file name, and files left out."""

    root: Path
    splits: Mapping[Split, tuple[Crop, ...]]
    problems: tuple[Problem, ...] = field(default=())

    @staticmethod
    def open(root: Path, splits: Iterable[Split] = tuple(Split)) -> MarketDataset:
        """List the given splits of the data set in `root`; misnamed and empty files go to `problems`.

        Raises:
            DatasetError: the folder or a split is missing, or contains no usable picture.
        """
        root = Path(root)
        _require_layout(root)
        found: dict[Split, tuple[Crop, ...]] = {}
        problems: list[Problem] = []
        for split in splits:
            crops, refused = list_crops(root / split.folder, split)
            if not crops:
                raise DatasetError(_why_empty(root, split, refused))
            found[split] = tuple(crops)
            problems += refused
        return MarketDataset(root, found, tuple(problems))

    @staticmethod
    def of_folders(folders: Mapping[Split, Path]) -> MarketDataset:
        """List the given folders as splits, as `open` does; `root` is the folder of the first."""
        found: dict[Split, tuple[Crop, ...]] = {}
        problems: list[Problem] = []
        for split, folder in folders.items():
            if not folder.is_dir():
                raise DatasetError(f"{folder} is not a folder")
            crops, refused = list_crops(folder, split)
            if not crops:
                raise DatasetError(_without_crops(folder, refused))
            found[split] = tuple(crops)
            problems += refused
        return MarketDataset(next(iter(folders.values())).parent, found, tuple(problems))

    def split(self, split: Split) -> tuple[Crop, ...]:
        """Return the crops of one split; DatasetError if the data set was opened without it."""
        if split not in self.splits:
            raise DatasetError(f"{self.root} was opened without its {split.folder} split")
        return self.splits[split]

    @property
    def crops(self) -> Iterator[Crop]:
        """All crops, split by split."""
        return (crop for crops in self.splits.values() for crop in crops)

    def statistics(self) -> dict[Split, SplitStatistics]:
        """Return the counts of each split."""
        return {split: SplitStatistics.of(crops) for split, crops in self.splits.items()}

    def statistics_by_origin(
        self, synthetic: SyntheticList
    ) -> dict[Split, tuple[SplitStatistics, SplitStatistics]]:
        """Return the counts of the real and the synthetic part of each split, as in the model card."""
        parts = {}
        for split, crops in self.splits.items():
            real, rendered = ([c for c in crops if synthetic.covers(c) is kind] for kind in (False, True))
            parts[split] = (SplitStatistics.of(real), SplitStatistics.of(rendered))
        return parts

    def notes(self) -> list[str]:
        """Return `numbering_notes` of queries and training pictures, as far as they were opened."""
        listed = ((split, self.splits.get(split, ())) for split in (Split.QUERY, Split.TRAIN))
        return [
            note for split, crops in listed for note in numbering_notes(split, [one.pid for one in crops])
        ]

    def check_pictures(self) -> Iterator[Problem | None]:
        """Decode every crop; yield None for a good one and a Problem for a broken one."""
        for crop in self.crops:
            try:
                read_picture(crop.path)
            except UnreadablePicture as problem:
                yield Problem(crop.path, problem.reason)
            else:
                yield None


def _require_layout(root: Path) -> None:
    """Raise DatasetError unless `root` has a split folder; suggest the right folder if possible."""
    folders = list(_FOLDERS.values())
    listed = ", ".join(folders)
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder; name the folder that contains {listed}")
    if any((root / folder).is_dir() for folder in folders):
        return
    if root.name in folders:
        raise DatasetError(f"{root} is one split of a data set; name its parent folder, {root.parent}")
    for child in sorted(path for path in root.iterdir() if path.is_dir()):
        if any((child / folder).is_dir() for folder in folders):
            raise DatasetError(f"{root} is not in Market-1501 layout, but {child} is; name that folder")
    raise DatasetError(f"{root} is not in Market-1501 layout: it has none of the folders {listed}")


def list_crops(folder: Path, split: Split) -> tuple[list[Crop], list[Problem]]:
    """Return usable crops and unusable files of the folder of one split, each sorted by name."""
    crops: list[Crop] = []
    problems: list[Problem] = []
    paths = folder.iterdir() if folder.is_dir() else ()
    for path in sorted(paths, key=lambda path: path.name):
        if path.name.startswith(".") or path.name.lower() in _IGNORED:
            continue
        reason, name = _check(path)
        if name is None:
            problems.append(Problem(path, reason))
        else:
            crops.append(Crop(path, name.pid, name.camid, name.sequence, name.frame, split))
    return crops, problems


def _check(path: Path) -> tuple[str, CropName | None]:
    """The reason why a file cannot be used, or its parsed name."""
    if path.is_dir():
        return "is a folder; crops lie directly in the split's folder", None
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        return "is not a picture (.jpg, .jpeg or .png)", None
    name = parse_crop_name(path.name)
    if name is None:
        return f"is misnamed: {EXPECTED_NAME}", None
    reason = _check_file(path)
    return (reason, None) if reason else ("", name)


def _check_file(path: Path) -> str:
    """The reason why a file that is named well cannot be read, or ""."""
    try:
        native_path(path.name)
        status = path.stat()
    except InputError:
        return "has a name that is not UTF-8 text; rename it"
    except OSError as problem:
        return f"cannot be read: {problem.strerror or problem}"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    return "" if status.st_size else "is empty (0 bytes)"


def _why_empty(root: Path, split: Split, refused: Sequence[Problem]) -> str:
    folder = root / split.folder
    if not folder.is_dir():
        return f"{root} has no {split.folder} folder, and the {split.value} split is needed here"
    return _without_crops(folder, refused)


def _without_crops(folder: Path, refused: Sequence[Problem]) -> str:
    if refused:
        first = refused[0]
        return (
            f"{folder} contains no usable crop: {len(refused)} files were refused, "
            f"the first of them, {first.path.name}, {first.reason}"
        )
    return f"{folder} is empty; put crops named like 0002_c1s1_000451_03.jpg into it"
