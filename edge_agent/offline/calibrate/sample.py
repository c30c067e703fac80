"""The calibration sample: a seeded, balanced draw from the training split.

Only `bounding_box_train` is opened. With ranges from query or gallery crops, the accuracy gate would measure
an engine on its own calibration data.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.core.errors import DatasetError, InputError
from edge_agent.core.files import native_path
from edge_agent.core.manifest import FileRecord, Manifest
from edge_agent.core.pictures import UnreadablePicture, read_picture
from edge_agent.engine.graph.prepared import PreprocessProfile
from edge_agent.offline.dataset import JUNK, Crop, MarketDataset, Split

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


DEFAULT_SIZE = 512
"""Crops in a sample; NVIDIA's guides recommend 500 to 1,000."""

_KIND = "calibration-sample"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Replaced:
    """An unreadable picture; `by`: its replacement, None if the person had no other picture left."""

    name: str
    reason: str
    by: str | None


@dataclass(frozen=True, slots=True)
class Sample:
    """Crops to calibrate with, in the order of the draw.

    `asked` crops were requested; `files` has fewer where the split has fewer: size and SHA-256 by name
    relative to the data set's folder, all in `bounding_box_train`.
    """

    dataset: str
    seed: int
    asked: int
    files: Mapping[str, FileRecord]
    identities: int
    cameras: int
    replaced: tuple[Replaced, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def digest(self) -> str:
        """SHA-256 over names and contents, in order."""
        text = json.dumps([[name, record.sha256] for name, record in self.files.items()])
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, path: Path) -> None:
        """Write the manifest, with names relative to the data set; StorageError where that fails."""
        Manifest(_KIND, _VERSION, dict(self.files), self.document()).write(path)

    def document(self) -> dict[str, Any]:
        """Return JSON values, without the files."""
        return {
            "dataset": self.dataset,
            "split": Split.TRAIN.folder,
            "seed": self.seed,
            "asked": self.asked,
            "size": len(self),
            "identities": self.identities,
            "cameras": self.cameras,
            "replaced": [asdict(replaced) for replaced in self.replaced],
            "digest": self.digest,
        }

    @staticmethod
    def read(path: Path) -> Sample:
        """Read a manifest written by `write`.

        Raises:
            InputError: missing, damaged, or names a file outside the training split.
        """
        manifest = Manifest.read(path, kind=_KIND, version=_VERSION)
        foreign = [name for name in manifest.files if Path(name).parent.as_posix() != Split.TRAIN.folder]
        if foreign or not manifest.files:
            what = f"{foreign[0]} is not in {Split.TRAIN.folder}" if foreign else "it names no file"
            raise InputError(f"{path} is not a calibration sample: {what}; draw it again")
        data = manifest.data
        try:
            seed, asked, identities, cameras = (
                int(data[key]) for key in ("seed", "asked", "identities", "cameras")
            )
            replaced = tuple(Replaced(**entry) for entry in data["replaced"])
            return Sample(str(data["dataset"]), seed, asked, manifest.files, identities, cameras, replaced)
        except (KeyError, TypeError, ValueError) as problem:
            what = f"key {problem} is missing" if isinstance(problem, KeyError) else str(problem)
            raise InputError(f"{path} is a damaged sample: {what}; draw it again") from problem

    def verify(self, root: Path) -> None:
        """Check that every crop in the data set `root` is unchanged since the draw; InputError otherwise."""
        for name, expected in self.files.items():
            path = Path(root) / name
            if not path.is_file():
                raise InputError(f"{path} is missing, but the calibration sample names it; draw it again")
            if FileRecord.of(path) != expected:
                raise InputError(f"{path} changed since the calibration sample was drawn; draw it again")

    def pixels(self, root: Path, profile: PreprocessProfile, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the crops as network input: `(N, H, W, 3)` uint8 BGR, resized to `size` as at run time.

        512 crops of 256 x 128 take 50 MB. InputError where a crop cannot be read.
        """
        import numpy as np

        batch = np.empty((len(self), *size, 3), np.uint8)
        for name, target in zip(self.files, batch, strict=True):
            profile.fit(read_picture(Path(root) / name), target)
        return batch


def draw(
    root: Path, *, size: int = DEFAULT_SIZE, seed: int = 0, advance: Callable[[int], None] | None = None
) -> Sample:
    """Draw crops from the training split of a data set in Market-1501 layout.

    Crops are drawn from the people in turn, in an order that the seed sets, and from each person's cameras in
    turn. The same files and seed give the same sample on every machine. Junk (`-1`) is never drawn. Every
    drawn picture is decoded; an unreadable one is replaced by the person's next one. Fewer than `size` are
    drawn where there are fewer. `advance` is called with the number of newly drawn crops.

    Raises:
        DatasetError: no training split, or no readable crop in it.
        ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"a sample has at least 1 crop, got {size}")
    root = Path(root)
    crops = [crop for crop in MarketDataset.open(root, (Split.TRAIN,)).split(Split.TRAIN) if crop.pid != JUNK]
    turns = _turns(crops, random.Random(seed))  # noqa: S311 - a draw to be repeated, not a secret
    taken: dict[Crop, FileRecord] = {}
    replaced: list[Replaced] = []
    while turns and len(taken) < size:
        waiting = turns.popleft()
        found = _next_readable(waiting, root, replaced)
        if found is not None:
            taken[found] = FileRecord.of(found.path)
            if advance is not None:
                advance(1)
        if waiting:
            turns.append(waiting)
    if not taken:
        raise DatasetError(f"{root / Split.TRAIN.folder} contains no picture that can be read")
    return Sample(
        dataset=root.resolve().name,
        seed=seed,
        asked=size,
        files={_name(root, crop.path): record for crop, record in taken.items()},
        identities=len({crop.pid for crop in taken}),
        cameras=len({crop.camid for crop in taken}),
        replaced=tuple(replaced),
    )


def _turns(crops: Sequence[Crop], dice: random.Random) -> deque[deque[Crop]]:
    """Each person's crops in the order of drawing; people in the order of their turns."""
    people = _shuffled_groups(crops, lambda crop: crop.pid, dice)
    return deque(_camera_by_camera(person, dice) for person in people)


def _camera_by_camera(crops: list[Crop], dice: random.Random) -> deque[Crop]:
    cameras = _shuffled_groups(crops, lambda crop: crop.camid, dice)
    for camera in cameras:
        dice.shuffle(camera)
    turns = itertools.zip_longest(*cameras)
    return deque(crop for turn in turns for crop in turn if crop is not None)


def _shuffled_groups(
    crops: Sequence[Crop], key: Callable[[Crop], int], dice: random.Random
) -> list[list[Crop]]:
    groups: defaultdict[int, list[Crop]] = defaultdict(list)
    for crop in crops:
        groups[key(crop)].append(crop)
    order = sorted(groups)
    dice.shuffle(order)
    return [groups[number] for number in order]


def _next_readable(waiting: deque[Crop], root: Path, replaced: list[Replaced]) -> Crop | None:
    """Take the person's next readable crop; append the unreadable ones before it to `replaced`."""
    broken: list[tuple[str, str]] = []
    found: Crop | None = None
    while waiting and found is None:
        crop = waiting.popleft()
        try:
            read_picture(crop.path)
            found = crop
        except UnreadablePicture as problem:
            broken.append((_name(root, crop.path), problem.reason))
    by = None if found is None else _name(root, found.path)
    replaced += [Replaced(name, reason, by) for name, reason in broken]
    return found


def _name(root: Path, path: Path) -> str:
    return native_path(path.relative_to(root).as_posix())
