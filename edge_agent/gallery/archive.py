"""The export format: one ZIP file, uncompressed, with a manifest.

::

    manifest.json     kind `gallery`, version 1; sha256 and size of the members; data: space, dimension,
                      identities, exemplars
    identities.json   {"identities": [{id, name, kind, created, last_seen, sightings, ttl_s, former_ids,
                      "exemplars": [{quality, origin, camera, time}, ...]}, ...], "facts": {key: value}}
    vectors.npy       (N, dimension) float32, rows of unit length, in the order of the exemplars above

Times are Unix seconds. It holds biometric data: it is written with mode 0600, and wants the same care as
the gallery itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import InputError
from edge_agent.core.manifest import FileRecord, Manifest, atomic_file
from edge_agent.gallery.identity import Kind

__all__ = ["Archive", "ArchivedIdentity", "read_archive", "write_archive"]

_KIND = "gallery"
_VERSION = 1
_MANIFEST, _IDENTITIES, _VECTORS = "manifest.json", "identities.json", "vectors.npy"
_LARGEST_MEMBER = 4 << 30  # far above any gallery; stops a crafted file from filling the memory


@dataclass(frozen=True, slots=True)
class ArchivedIdentity:
    """One person in an archive.

    Attributes:
        exemplars: quality, origin, camera and time of each row of `vectors`.
        vectors: `(M, D)` float32.
        Others as in `edge_agent.gallery.Identity`.
    """

    id: str
    name: str | None
    kind: Kind
    created: float
    last_seen: float
    sightings: int
    ttl_s: float | None
    former_ids: tuple[str, ...]
    exemplars: tuple[tuple[float, str, str, float], ...]
    vectors: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Archive:
    """What an archive holds."""

    space: str
    dimension: int
    people: tuple[ArchivedIdentity, ...]
    facts: Mapping[str, Any]


def write_archive(path: Path, archive: Archive) -> None:
    """Write the archive, complete or not at all; errors as in `edge_agent.core.manifest.atomic_file`."""
    members = {_IDENTITIES: _identities_json(archive), _VECTORS: _vectors_npy(archive)}
    manifest = Manifest(
        kind=_KIND,
        version=_VERSION,
        files={
            name: FileRecord(hashlib.sha256(data).hexdigest(), len(data)) for name, data in members.items()
        },
        data={
            "space": archive.space,
            "dimension": archive.dimension,
            "identities": len(archive.people),
            "exemplars": sum(len(person.exemplars) for person in archive.people),
        },
    )
    with atomic_file(path, mode=0o600) as handle, zipfile.ZipFile(handle, "w") as bundle:
        bundle.writestr(_MANIFEST, json.dumps(asdict(manifest), indent=2))
        for name, data in members.items():
            bundle.writestr(name, data)


def read_archive(path: Path) -> Archive:
    """Read and check an archive.

    Raises:
        InputError: missing, not an archive, of another version, or damaged; says which.
    """
    try:
        with zipfile.ZipFile(path) as bundle:
            manifest = _manifest(bundle)
            members = {name: _member(bundle, manifest, name) for name in (_IDENTITIES, _VECTORS)}
        return _parsed(manifest, members)
    except OSError as problem:
        raise InputError(f"cannot read {path}: {problem.strerror or problem}") from problem
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, IndexError, InputError) as problem:
        raise InputError(
            f"{path} is not a usable gallery archive ({problem}); "
            "export it again: edge-agent gallery export FILE"
        ) from problem


def _identities_json(archive: Archive) -> bytes:
    people = [
        {
            "id": person.id,
            "name": person.name,
            "kind": person.kind,
            "created": person.created,
            "last_seen": person.last_seen,
            "sightings": person.sightings,
            "ttl_s": person.ttl_s,
            "former_ids": person.former_ids,
            "exemplars": [
                {"quality": quality, "origin": origin, "camera": camera, "time": time}
                for quality, origin, camera, time in person.exemplars
            ],
        }
        for person in archive.people
    ]
    return json.dumps({"identities": people, "facts": dict(archive.facts)}, indent=1).encode()


def _vectors_npy(archive: Archive) -> bytes:
    rows = [person.vectors for person in archive.people]
    stacked = np.concatenate([np.empty((0, archive.dimension), np.float32), *rows]).astype("<f4")
    buffer = io.BytesIO()
    np.save(buffer, stacked, allow_pickle=False)
    return buffer.getvalue()


def _manifest(bundle: zipfile.ZipFile) -> Manifest:
    with tempfile.TemporaryDirectory() as folder:  # only the manifest, which says nothing about people
        copy = Path(folder) / _MANIFEST
        copy.write_bytes(_bounded(bundle, _MANIFEST))
        return Manifest.read(copy, kind=_KIND, version=_VERSION)


def _member(bundle: zipfile.ZipFile, manifest: Manifest, name: str) -> bytes:
    data = _bounded(bundle, name)
    if FileRecord(hashlib.sha256(data).hexdigest(), len(data)) != manifest.files[name]:
        raise ValueError(f"{name} differs from what the manifest says")
    return data


def _bounded(bundle: zipfile.ZipFile, name: str) -> bytes:
    if bundle.getinfo(name).file_size > _LARGEST_MEMBER:
        raise ValueError(f"{name} is too large")
    return bundle.read(name)


def _parsed(manifest: Manifest, members: Mapping[str, bytes]) -> Archive:
    dimension = int(manifest.data["dimension"])
    vectors = np.load(io.BytesIO(members[_VECTORS]), allow_pickle=False)
    document = json.loads(members[_IDENTITIES])
    people, start = [], 0
    for entry in document["identities"]:
        end = start + len(entry["exemplars"])
        people.append(_person(entry, vectors[start:end]))
        start = end
    if vectors.shape != (start, dimension) or vectors.dtype != np.float32:
        raise ValueError(
            f"{_VECTORS} is {vectors.shape} {vectors.dtype}, expected ({start}, {dimension}) float32"
        )
    return Archive(str(manifest.data["space"]), dimension, tuple(people), dict(document["facts"]))


def _person(entry: Mapping[str, Any], vectors: NDArray[np.float32]) -> ArchivedIdentity:
    if entry["kind"] not in {"auto", "enrolled"}:
        raise ValueError(f"kind {entry['kind']!r} of {entry['id']}")
    return ArchivedIdentity(
        id=str(entry["id"]),
        name=entry["name"],
        kind=entry["kind"],
        created=float(entry["created"]),
        last_seen=float(entry["last_seen"]),
        sightings=int(entry["sightings"]),
        ttl_s=None if entry.get("ttl_s") is None else float(entry["ttl_s"]),  # archives of old have none
        former_ids=tuple(entry["former_ids"]),
        exemplars=tuple(
            (float(one["quality"]), str(one["origin"]), str(one["camera"]), float(one["time"]))
            for one in entry["exemplars"]
        ),
        vectors=vectors,
    )
