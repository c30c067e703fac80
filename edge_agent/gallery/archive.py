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
from numpy.typing import NDArray

from edge_agent.core.errors import InputError, SpaceMismatch
from edge_agent.core.manifest import FileRecord, Manifest, atomic_file
from edge_agent.gallery.gallery import Gallery
from edge_agent.gallery.identity import Identity, Imported, Kind
from edge_agent.gallery.rows import Rows, Source, checked_exemplars
from edge_agent.gallery.sync import Space

__all__ = [
    "Archive",
    "ArchivedIdentity",
    "export_gallery",
    "import_archive",
    "read_archive",
    "write_archive",
]

_KIND = "gallery"
_VERSION = 1
_PERSON = ("id", "name", "kind", "created", "last_seen", "sightings", "ttl_s")
_SOURCE = ("quality", "origin", "camera", "time")
_MANIFEST, _IDENTITIES, _VECTORS = "manifest.json", "identities.json", "vectors.npy"
_LARGEST_MEMBER = 4 << 30  # far above any gallery; keeps a crafted file from filling the memory


@dataclass(frozen=True, slots=True)
class ArchivedIdentity:
    """One person in an archive.

    Attributes:
        exemplars: of each row of `vectors`.
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
    exemplars: tuple[Source, ...]
    vectors: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Archive:
    """The content of an archive."""

    space: str
    dimension: int
    people: tuple[ArchivedIdentity, ...]
    facts: Mapping[str, Any]


def export_gallery(gallery: Gallery, path: Path) -> int:
    """Write an open gallery to an archive; return the number of identities. Errors as in `write_archive`."""
    with gallery.file.reading() as rows, rows.store.snapshot():
        people = tuple(_archived(rows, person) for person in rows.identities())
        facts = {key: json.loads(text) for key, text in rows.store.rows("SELECT key, value FROM fact")}
    write_archive(Path(path), Archive(gallery.space, gallery.dimension, people, facts))
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
    with gallery.file.changing() as rows:
        new = [person for person in archive.people if rows.number_of(person.id) is None]
        gallery.retention.make_room(rows, len(new), now=gallery.retention.clock(), evict=False)
        for person in new:
            _insert(rows, person, archive.dimension)
        rows.store.run_many(
            "INSERT OR IGNORE INTO fact VALUES (?, ?)",
            [(key, json.dumps(value)) for key, value in archive.facts.items()],
        )
    return Imported(added=len(new), skipped=len(archive.people) - len(new))


def _archived(rows: Rows, person: Identity) -> ArchivedIdentity:
    found = rows.store.rows(
        "SELECT vector, quality, origin, camera, time FROM exemplar WHERE number = ? ORDER BY row",
        (person.number,),
    )
    return ArchivedIdentity(
        **{key: getattr(person, key) for key in _PERSON},
        former_ids=rows.former_ids(person.number),
        exemplars=tuple((one[1], one[2], one[3], one[4]) for one in found),
        vectors=rows.unpacked([one[0] for one in found]),
    )


def _insert(rows: Rows, person: ArchivedIdentity, dimension: int) -> None:
    rows.require_free_name(person.name)
    number = rows.insert(**{key: getattr(person, key) for key in _PERSON})
    rows.store.run_many(
        "INSERT OR IGNORE INTO former VALUES (?, ?)", [(old, number) for old in person.former_ids]
    )
    qualities = np.array([one[0] for one in person.exemplars], np.float32)
    vectors, _ = checked_exemplars(person.vectors, qualities, dimension)
    rows.add_exemplars(number, vectors, person.exemplars)


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
        InputError: missing, not an archive, of another version, or damaged.
    """
    try:
        with zipfile.ZipFile(path) as bundle:
            found = json.loads(_bounded(bundle, _MANIFEST))
            manifest = Manifest.parse(Path(_MANIFEST), found, kind=_KIND, version=_VERSION)
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
            **{key: getattr(person, key) for key in _PERSON},
            "former_ids": person.former_ids,
            "exemplars": [dict(zip(_SOURCE, source, strict=True)) for source in person.exemplars],
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


def _member(bundle: zipfile.ZipFile, manifest: Manifest, name: str) -> bytes:
    data = _bounded(bundle, name)
    if FileRecord(hashlib.sha256(data).hexdigest(), len(data)) != manifest.files[name]:
        raise ValueError(f"{name} differs from its manifest entry")
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
        ttl_s=None if entry.get("ttl_s") is None else float(entry["ttl_s"]),  # missing in old archives
        former_ids=tuple(entry["former_ids"]),
        exemplars=tuple(
            (float(one["quality"]), str(one["origin"]), str(one["camera"]), float(one["time"]))
            for one in entry["exemplars"]
        ),
        vectors=vectors,
    )
