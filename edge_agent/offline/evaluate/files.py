"""Embedding files: NumPy, NumPy archive, and the JSON of TAO's inference.

======== =========================================================================================
suffix   content
======== =========================================================================================
`.npy`   `(N, D)` float32; names in `FILE.npy.names.txt`, one per line
`.npz`   arrays `embeddings` `(N, D)` float32 and `names` `(N,)` text
`.json`  `[{"img_path": str, "embedding": [float, ...]}, ...]`, as TAO's `inference.output_file`
======== =========================================================================================

Each has a manifest `FILE.manifest.json`: digests, model, preprocess profile, embedding space, whether the
rows are of unit length. Names are paths relative to the input folder, such as
`query/0002_c1s1_000451_03.jpg`. Files of other programs are read without a manifest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.arrays import MOST_NUMBERS, load_array, open_archive, write_arrays
from edge_agent.core.errors import DatasetError, InputError, SpaceMismatch
from edge_agent.core.files import MAX_RESULT_BYTES, read_json, read_text, shown
from edge_agent.core.manifest import FileRecord, Manifest, atomic_file, write_atomic
from edge_agent.core.pictures import parse_crop_name
from edge_agent.offline.dataset import Crop, Split
from edge_agent.offline.evaluate.labels import EmbeddedCrops

EMBEDDING_SUFFIXES = (".npy", ".npz", ".json")

_KIND, _VERSION = "embeddings", 1
_MAX_NAMES_BYTES = 1 << 30
_NAMES_SUFFIX = ".names.txt"
_MANIFEST_SUFFIX = ".manifest.json"
_SPLIT_FOLDERS = frozenset(split.folder for split in Split)


@dataclass(frozen=True, slots=True)
class EmbeddingFile:
    """Names of N crops, embeddings `(N, D)` float32 of any length, and facts of the manifest, if any."""

    path: Path
    names: tuple[str, ...]
    vectors: NDArray[np.float32]
    about: dict[str, Any]


def write_embeddings(
    path: Path, names: Sequence[str], vectors: NDArray[np.float32], about: dict[str, Any]
) -> tuple[Path, ...]:
    """Write embeddings in the format of the suffix, with a manifest; return the written files.

    The manifest is written last: a file with a matching manifest is complete.

    Raises:
        InputError: the suffix is not one of `EMBEDDING_SUFFIXES`, or a name has a line break.
        StorageError: see `edge_agent.core.manifest.atomic_file`.
    """
    path = Path(path)
    check_suffix(path)
    if any("\n" in name or "\r" in name for name in names):
        raise InputError("a crop's file name contains a line break; rename it")
    made = [path]
    if path.suffix.lower() == ".npy":
        made.append(_sibling(path, _NAMES_SUFFIX))
        write_atomic(made[-1], "".join(f"{name}\n" for name in names).encode())
    with atomic_file(path) as handle:
        _WRITERS[path.suffix.lower()](handle, names, np.ascontiguousarray(vectors, np.float32))
    facts = {**about, "rows": len(names), "dimension": int(vectors.shape[1])}
    manifest_path = _sibling(path, _MANIFEST_SUFFIX)
    Manifest(_KIND, _VERSION, {file.name: FileRecord.of(file) for file in made}, facts).write(manifest_path)
    return (*made, manifest_path)


def check_suffix(path: Path) -> None:
    """Raise InputError unless the suffix names an embedding format."""
    if path.suffix.lower() not in EMBEDDING_SUFFIXES:
        raise InputError(
            f"{path}: the suffix determines the format of embeddings; "
            f"use one of {', '.join(EMBEDDING_SUFFIXES)}"
        )


def _sibling(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _write_npy(handle: Any, names: Sequence[str], vectors: NDArray[np.float32]) -> None:  # noqa: ANN401, ARG001 - numpy takes any binary file; the names have a file of their own
    np.save(handle, vectors, allow_pickle=False)


def _write_npz(handle: Any, names: Sequence[str], vectors: NDArray[np.float32]) -> None:  # noqa: ANN401 - as above
    write_arrays(handle, {"embeddings": vectors, "names": np.array(names, np.str_)})


def _write_tao(handle: Any, names: Sequence[str], vectors: NDArray[np.float32]) -> None:  # noqa: ANN401 - as above
    """Write entry by entry, since the text is ten times the size of the numbers."""
    handle.write(b"[")
    for index, (name, vector) in enumerate(zip(names, vectors, strict=True)):
        entry = json.dumps({"img_path": name, "embedding": vector.tolist()}, indent=4, allow_nan=False)
        indented = "".join(f"\n    {line}" for line in entry.splitlines())
        handle.write(f"{',' if index else ''}{indented}".encode())
    handle.write(b"\n]\n")


_WRITERS = {".npy": _write_npy, ".npz": _write_npz, ".json": _write_tao}


def read_embeddings(path: Path) -> EmbeddingFile:
    """Read an embedding file, and check it against its manifest if there is one.

    Raises:
        InputError: missing, damaged, of another format, without names, or different from its manifest.
    """
    path = Path(path)
    check_suffix(path)
    if not path.is_file():
        raise InputError(f"no embedding file {path}")
    manifest_path, manifest = _sibling(path, _MANIFEST_SUFFIX), None
    if manifest_path.is_file():
        manifest = Manifest.read(manifest_path, kind=_KIND, version=_VERSION)
        manifest.verify(path.parent)
        if wrong := [key for key in ("space", "name") if not isinstance(manifest.data.get(key, ""), str)]:
            raise InputError(f"{manifest_path}: data.{wrong[0]} must be text; create the embeddings again")
    names, vectors = _READERS[path.suffix.lower()](path)
    if not vectors.size or vectors.shape[1] > MOST_NUMBERS:
        raise InputError(
            f"{path}: expected an embedding of 1 to {MOST_NUMBERS:,} numbers for each of {len(names)} names, "
            f"got an array {vectors.shape}"
        )
    with np.errstate(over="ignore"):  # infinity is refused where rows are compared
        rows = vectors.astype(np.float32)
    return EmbeddingFile(path, names, rows, manifest.data if manifest else {})


def _read_npy(path: Path) -> tuple[tuple[str, ...], NDArray[Any]]:
    listed = _sibling(path, _NAMES_SUFFIX)
    if not listed.is_file():
        raise InputError(
            f"{path} has no names: {listed.name} must list the crops, one per line, in the order of the rows"
        )
    names = tuple(read_text(listed, _MAX_NAMES_BYTES).splitlines())
    return names, load_array(path, kinds="f", shape=(len(names), None))


def _read_npz(path: Path) -> tuple[tuple[str, ...], NDArray[Any]]:
    with open_archive(path) as archive:
        if missing := {"embeddings", "names"} - set(archive.names):
            present = ", ".join(archive.names)[:200]
            raise InputError(f"{path} has no array {', '.join(sorted(missing))}; it contains {present}")
        names = tuple(str(name) for name in archive.read("names", kinds="U", shape=(None,)))
        return names, archive.read("embeddings", kinds="f", shape=(len(names), None))


def _read_tao(path: Path) -> tuple[tuple[str, ...], NDArray[Any]]:
    entries = read_json(path, MAX_RESULT_BYTES)
    wanted = f'{path}: expected TAO\'s list [{{"img_path": ..., "embedding": [...]}}, ...]'
    if not isinstance(entries, list) or not entries:
        raise InputError(wanted)
    try:
        names = tuple(str(entry["img_path"]) for entry in entries)
        rows = [np.asarray(entry["embedding"], np.float64).ravel() for entry in entries]
    except (KeyError, TypeError, ValueError, OverflowError) as problem:
        raise InputError(f"{wanted}; an entry differs: {problem!r}") from problem
    sizes = {len(row) for row in rows}
    if len(sizes) != 1:
        raise InputError(f"{path}: embeddings differ in size: {sorted(sizes)}")
    return names, np.stack(rows)


_READERS = {".npy": _read_npy, ".npz": _read_npz, ".json": _read_tao}


def require_one_space(files: Sequence[EmbeddingFile]) -> None:
    """Raise SpaceMismatch if manifests name different embedding spaces; files without a manifest pass."""
    spaces = {file.about["space"]: file.path for file in files if file.about.get("space")}
    if len(spaces) > 1:
        listed = ", ".join(f"{path} ({space})" for space, path in spaces.items())
        raise SpaceMismatch(
            f"these embeddings come from different networks or preprocess profiles, or one is raw: {listed}; "
            "create them again with one network and profile"
        )


def labelled_by_name(file: EmbeddingFile, split: Split) -> EmbeddedCrops:
    """Read person and camera from the names in the file.

    If the names contain the folders of a data set, only crops of `split` are taken, so one file with all
    crops can be used for both sides.

    Raises DatasetError where a name has another form, and as `unit_rows`.
    """
    inside = [row for row, name in enumerate(file.names) if _split_folder(name) == split.folder]
    rows = inside or range(len(file.names))
    names = [file.names[row] for row in rows]
    pids, camids = [], []
    for name in names:
        label = parse_crop_name(PurePosixPath(name).name)
        if label is None:
            raise DatasetError(
                f"{file.path}: {name!r} is not named like 0002_c1s1_000451_03.jpg, so the person is unknown"
            )
        pids.append(label.pid)
        camids.append(label.camid)
    return EmbeddedCrops.of(file.vectors[list(rows)], pids, camids, names)


def _split_folder(name: str) -> str:
    """The split folder in a name, or "" without one."""
    folder = PurePosixPath(name).parent.name
    return folder if folder in _SPLIT_FOLDERS else ""


def labelled_by_dataset(file: EmbeddingFile, crops: Sequence[Crop]) -> EmbeddedCrops:
    """Return the embeddings of the given crops, matched by split folder and file name.

    A file may contain further crops, so one file with all crops can be used for both sides. Raises
    DatasetError where a crop has no embedding, and as `unit_rows`.
    """
    by_key = {(_split_folder(name), PurePosixPath(name).name): row for row, name in enumerate(file.names)}
    found = [
        by_key.get((crop.split.folder, name), by_key.get(("", name)))
        for crop, name in ((crop, shown(crop.path.name)) for crop in crops)
    ]
    rows = [index for index in found if index is not None]
    if len(rows) != len(crops):
        first = crops[found.index(None)]
        raise DatasetError(
            f"{file.path} lacks {len(crops) - len(rows)} of the {len(crops)} crops in "
            f"{first.split.folder}, the first of them {first.path.name} "
            "(TAO's own inference writes only its last batch; `edge-agent embed` writes all)"
        )
    return EmbeddedCrops.of_crops(file.vectors[rows], crops)
