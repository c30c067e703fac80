"""The calibration sample: a seeded, balanced draw from the training split.

Only `bounding_box_train` is opened. With ranges from query or gallery crops, the accuracy gate would measure
an engine on its own calibration data.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.core.errors import DatasetError, InputError
from edge_agent.core.manifest import FileRecord, Manifest
from edge_agent.core.pictures import read_picture
from edge_agent.engine.graph.prepared import PreprocessProfile
from edge_agent.offline.dataset import Crop, MarketDataset, Split

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["DEFAULT_SIZE", "Replaced", "Sample", "draw"]

DEFAULT_SIZE = 512
"""Crops in a sample; NVIDIA's guides recommend 500 to 1,000."""

_KIND = "calibration-sample"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Replaced:
    """A drawn picture that cannot be read.

    Attributes:
        name: path relative to the data set's folder.
        reason: why it cannot be used.
        by: replacement, of the same person; None if that person had no other picture left.
    """

    name: str
    reason: str
    by: str | None


@dataclass(frozen=True, slots=True)
class Sample:
    """Crops to calibrate with, in the order of the draw.

    Attributes:
        dataset: name of the data set's folder.
        seed: of the draw.
        asked: crops requested; `files` has fewer where the split has fewer.
        files: size and SHA-256 by name relative to the data set's folder, all in `bounding_box_train`.
        identities: people among them.
        cameras: cameras among them.
        replaced: pictures that could not be read.
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
            "replaced": [{"name": r.name, "reason": r.reason, "by": r.by} for r in self.replaced],
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
            return Sample(
                str(data["dataset"]),
                int(data["seed"]),
                int(data["asked"]),
                manifest.files,
                int(data["identities"]),
                int(data["cameras"]),
                tuple(Replaced(entry["name"], entry["reason"], entry["by"]) for entry in data["replaced"]),
            )
        except (KeyError, TypeError, ValueError) as problem:
            what = f"key {problem} is missing" if isinstance(problem, KeyError) else str(problem)
            raise InputError(f"{path} is a damaged sample: {what}; draw it again") from problem

    def verify(self, root: Path) -> None:
        """Check that every crop in the data set `root` is unchanged since the draw.

        Raises:
            InputError: a file is missing or differs (names the first).
        """
        for name, expected in self.files.items():
            path = Path(root) / name
            if not path.is_file():
                raise InputError(f"{path} is missing, but the calibration sample names it; draw it again")
            if FileRecord.of(path) != expected:
                raise InputError(f"{path} changed since the calibration sample was drawn; draw it again")

    def pixels(self, root: Path, profile: PreprocessProfile, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the crops as network input: `(N, H, W, 3)` uint8 BGR, resized as at run time.

        Args:
            root: the data set's folder.
            profile: preprocess profile of the network; its resize rule is used.
            size: `(H, W)` of the network. 512 crops of 256 x 128 take 50 MB.

        Raises:
            InputError: a crop cannot be read.
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
    drawn picture is decoded; an unreadable one is replaced by the person's next one.

    Args:
        root: the data set's folder.
        size: crops to draw; all readable ones where there are fewer.
        seed: of the draw.
        advance: called with the number of newly drawn crops.

    Raises:
        DatasetError: no training split, or no readable crop in it.
        ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"a sample has at least 1 crop, got {size}")
    root = Path(root)
    crops = [crop for crop in MarketDataset.open(root, (Split.TRAIN,)).train if not crop.is_junk]
    turns = _turns(crops, random.Random(seed))  # noqa: S311 - a draw to be repeated, not a secret
    taken: dict[Path, FileRecord] = {}
    by_path = {crop.path: crop for crop in crops}
    replaced: list[Replaced] = []
    while turns and len(taken) < size:
        waiting = turns.popleft()
        found = _next_readable(waiting, root, replaced)
        if found is not None:
            taken[found.path] = FileRecord.of(found.path)
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
        files={_name(root, path): record for path, record in taken.items()},
        identities=len({by_path[path].pid for path in taken}),
        cameras=len({by_path[path].camid for path in taken}),
        replaced=tuple(replaced),
    )


def _turns(crops: Sequence[Crop], dice: random.Random) -> deque[deque[Crop]]:
    """Each person's crops in the order of drawing; people in the order of their turns."""
    people: dict[int, list[Crop]] = {}
    for crop in crops:
        people.setdefault(crop.pid, []).append(crop)
    order = sorted(people)
    dice.shuffle(order)
    return deque(_camera_by_camera(people[pid], dice) for pid in order)


def _camera_by_camera(crops: list[Crop], dice: random.Random) -> deque[Crop]:
    cameras: dict[int, list[Crop]] = {}
    for crop in crops:
        cameras.setdefault(crop.camid, []).append(crop)
    order = sorted(cameras)
    dice.shuffle(order)
    for camid in order:
        dice.shuffle(cameras[camid])
    longest = max(map(len, cameras.values()))
    return deque(
        cameras[camid][turn] for turn in range(longest) for camid in order if turn < len(cameras[camid])
    )


def _next_readable(waiting: deque[Crop], root: Path, replaced: list[Replaced]) -> Crop | None:
    """Take the person's next readable crop; append the unreadable ones before it to `replaced`."""
    broken: list[tuple[str, str]] = []
    found: Crop | None = None
    while waiting and found is None:
        crop = waiting.popleft()
        try:
            read_picture(crop.path)
            found = crop
        except InputError as problem:
            broken.append((_name(root, crop.path), str(problem.__cause__ or problem)))
    by = None if found is None else _name(root, found.path)
    replaced += [Replaced(name, reason, by) for name, reason in broken]
    return found


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
