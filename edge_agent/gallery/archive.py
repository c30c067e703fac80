"""Export and import of a gallery: one ZIP file, uncompressed, with a manifest.

::

    manifest.json     kind `gallery`, version 1; sha256 and size of the members; data: space, dimension,
                      identities, exemplars
    identities.json   {"identities": [{id, name, kind, created, last_seen, sightings, ttl_s, former_ids,
                      "exemplars": [{quality, origin, camera, time}, ...]}, ...], "facts": {key: value}}
    vectors.npy       (N, dimension) float32, rows of unit length, in the order of the exemplars above

Times are Unix seconds. An archive contains biometric data: it has mode 0600 and needs the same care as the
gallery itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, TypeAdapter

from edge_agent.core.errors import InputError, SpaceMismatch
from edge_agent.core.manifest import FileRecord, Manifest, atomic_file
from edge_agent.gallery.gallery import Gallery
from edge_agent.gallery.index import Vectors
from edge_agent.gallery.rows import Imported, Kind, checked_exemplars
from edge_agent.gallery.sync import Space

_KIND = "gallery"
_VERSION = 1
_MANIFEST, _IDENTITIES, _VECTORS = "manifest.json", "identities.json", "vectors.npy"
_LARGEST_MEMBER = 4 << 30  # far above any gallery; keeps a crafted file from filling the memory


class Exemplar(BaseModel):
    """The source of one vector, see `edge_agent.gallery.rows.Source`."""

    quality: float
    origin: str
    camera: str
    time: float


class ArchivedIdentity(BaseModel):
    """One person in an archive, see `edge_agent.gallery.Identity`."""

    id: str
    name: str | None
    kind: Kind
    created: float
    last_seen: float
    sightings: int
    ttl_s: float | None = None  # missing in old archives
    former_ids: tuple[str, ...]
    exemplars: tuple[Exemplar, ...]


@dataclass(frozen=True, slots=True)
class Archive:
    """The content of an archive; `vectors` `(N, dimension)` are the exemplars of all people in order."""

    space: str
    dimension: int
    people: tuple[ArchivedIdentity, ...]
    facts: Mapping[str, Any]
    vectors: Vectors


def export_gallery(gallery: Gallery, path: Path) -> int:
    """Write an open gallery to an archive; return the number of identities. Errors as in `write_archive`."""
    people, blobs = [], []
    with gallery.file.reading() as rows, rows.store.snapshot():
        for person in rows.identities():
            found = rows.store.rows(
                "SELECT quality, origin, camera, time, vector FROM exemplar WHERE number = ? ORDER BY row",
                (person.number,),
            )
            blobs += [row[4] for row in found]
            exemplars = [dict(zip(Exemplar.model_fields, row, strict=False)) for row in found]
            former_ids = rows.former_ids(person.number)
            values = asdict(person) | {"former_ids": former_ids, "exemplars": exemplars}
            people.append(ArchivedIdentity.model_validate(values))
        facts = {key: json.loads(text) for key, text in rows.store.rows("SELECT key, value FROM fact")}
        vectors = rows.unpacked(blobs)
    write_archive(Path(path), Archive(gallery.space, gallery.dimension, tuple(people), facts, vectors))
    return len(people)


def import_archive(gallery: Gallery, path: Path) -> Imported:
    """Add the identities of an archive to an open gallery; all of them, or none when there is an error.

    Ids are kept, numbers are new. Identities whose id is in the gallery already are skipped, so a second
    import changes nothing. Facts are added where the gallery has none of that key.

    Raises:
        InputError: not an archive, damaged, or another identity has a name in it.
        SpaceMismatch: it was exported from a gallery of another embedding space.
        StorageError: the gallery has too little capacity for all.
    """
    archive = read_archive(Path(path))
    if (archive.space, archive.dimension) != (gallery.space, gallery.dimension):
        raise SpaceMismatch(
            f"{path} contains embeddings of {Space(archive.space, archive.dimension)}, the gallery"
            f" {gallery.file.where} those of {gallery.file.space}; they cannot be compared. Import it with"
            " --state naming a folder of its own"
        )
    ends = np.cumsum([len(person.exemplars) for person in archive.people], dtype=np.int64)
    with gallery.file.changing() as rows:
        new = [
            (person, vectors)
            for person, vectors in zip(archive.people, np.split(archive.vectors, ends), strict=False)
            if rows.number_of(person.id) is None
        ]
        gallery.retention.make_room(rows, len(new), now=gallery.retention.clock(), evict=False)
        for person, vectors in new:
            rows.require_free_name(person.name)
            number = rows.insert(**person.model_dump(exclude={"former_ids", "exemplars"}))
            rows.store.run_many(
                "INSERT OR IGNORE INTO former VALUES (?, ?)", [(old, number) for old in person.former_ids]
            )
            qualities = np.array([one.quality for one in person.exemplars], np.float32)
            checked, _ = checked_exemplars(vectors, qualities, archive.dimension)
            sources = [(one.quality, one.origin, one.camera, one.time) for one in person.exemplars]
            rows.add_exemplars(number, checked, sources)
        rows.store.run_many(
            "INSERT OR IGNORE INTO fact VALUES (?, ?)",
            [(key, json.dumps(value)) for key, value in archive.facts.items()],
        )
    return Imported(added=len(new), skipped=len(archive.people) - len(new))


def write_archive(path: Path, archive: Archive) -> None:
    """Write the archive, complete or not at all; errors as in `edge_agent.core.manifest.atomic_file`."""
    people = [person.model_dump() for person in archive.people]
    buffer = io.BytesIO()
    np.save(buffer, archive.vectors.astype("<f4"), allow_pickle=False)
    members = {
        _IDENTITIES: json.dumps({"identities": people, "facts": dict(archive.facts)}, indent=1).encode(),
        _VECTORS: buffer.getvalue(),
    }
    manifest = Manifest(
        kind=_KIND,
        version=_VERSION,
        files={name: _record(data) for name, data in members.items()},
        data={
            "space": archive.space,
            "dimension": archive.dimension,
            "identities": len(people),
            "exemplars": len(archive.vectors),
        },
    )
    with atomic_file(path, mode=0o600) as handle, zipfile.ZipFile(handle, "w") as bundle:
        bundle.writestr(_MANIFEST, json.dumps(asdict(manifest), indent=2))
        for name, data in members.items():
            bundle.writestr(name, data)


def read_archive(path: Path) -> Archive:
    """Read an archive; InputError when it is missing, not an archive, of another version, or damaged."""
    try:
        with zipfile.ZipFile(path) as bundle:
            found = json.loads(_bounded(bundle, _MANIFEST))
            manifest = Manifest.parse(Path(_MANIFEST), found, kind=_KIND, version=_VERSION)
            members = {name: _bounded(bundle, name) for name in (_IDENTITIES, _VECTORS)}
        return _parsed(manifest, members)
    except OSError as problem:
        raise InputError(f"cannot read {path}: {problem.strerror or problem}") from problem
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, IndexError, InputError) as problem:
        raise InputError(
            f"{path} is not a usable gallery archive ({problem}); "
            "export it again: edge-agent gallery export FILE"
        ) from problem


def _record(data: bytes) -> FileRecord:
    return FileRecord(hashlib.sha256(data).hexdigest(), len(data))


def _bounded(bundle: zipfile.ZipFile, name: str) -> bytes:
    if bundle.getinfo(name).file_size > _LARGEST_MEMBER:
        raise ValueError(f"{name} is too large")
    return bundle.read(name)


def _parsed(manifest: Manifest, members: Mapping[str, bytes]) -> Archive:
    for name, data in members.items():
        if _record(data) != manifest.files[name]:
            raise ValueError(f"{name} differs from its manifest entry")
    vectors = np.load(io.BytesIO(members[_VECTORS]), allow_pickle=False)
    document = json.loads(members[_IDENTITIES])
    people = TypeAdapter(tuple[ArchivedIdentity, ...]).validate_python(document["identities"])
    expected = (sum(len(person.exemplars) for person in people), int(manifest.data["dimension"]))
    if vectors.shape != expected or vectors.dtype != np.float32:
        raise ValueError(f"{_VECTORS} is {vectors.shape} {vectors.dtype}, expected {expected} float32")
    return Archive(str(manifest.data["space"]), expected[1], people, dict(document["facts"]), vectors)
