"""Export and import of a gallery: one ZIP file, uncompressed, with a manifest.

::

    manifest.json     kind `gallery`, version 1; sha256 and size of the members; data: space, dimension,
                      identities, exemplars, site
    identities.json   {"identities": [{id, name, kind, created, last_seen, sightings, ttl_s, age_s,
                      former_ids, "exemplars": [{quality, origin, camera, time, epoch}, ...]}, ...],
                      "facts": {key: value}}
    vectors.npy       (N, dimension) float32, rows of unit length, in the order of the exemplars above

Times are Unix seconds. An archive contains biometric data: it has mode 0600 and needs the same care as the
gallery itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, cast

import numpy as np
from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError, model_validator

from edge_agent.core.arrays import MOST_NUMBERS, ZIP_ERRORS, open_zip, read_array, stored_member, write_member
from edge_agent.core.config import MOST_EXEMPLARS
from edge_agent.core.errors import InputError, NonFiniteEmbedding, SpaceMismatch
from edge_agent.core.files import open_regular, parse_json, shown
from edge_agent.core.manifest import FileRecord, Manifest, atomic_file
from edge_agent.core.names import checked_name, composed, is_id
from edge_agent.core.setting_types import LONGEST_TTL_HOURS, Id
from edge_agent.core.text import is_visible, visible
from edge_agent.core.timing import LATEST_TIME
from edge_agent.gallery.exemplars import MOST_FOREIGN, checked_exemplars
from edge_agent.gallery.gallery import Gallery
from edge_agent.gallery.means import Vectors
from edge_agent.gallery.rows import CAMERAS_FACT, Imported, Kind, Rows
from edge_agent.gallery.sync import Space

_KIND = "gallery"
_VERSION = 1
_MANIFEST, _IDENTITIES, _VECTORS = "manifest.json", "identities.json", "vectors.npy"
_MEMBERS = (_MANIFEST, _IDENTITIES, _VECTORS)
_LARGEST_JSON = {_MANIFEST: 64 << 10, _IDENTITIES: 128 << 20}
_MOST_VALUES = 8_000_000
"""Values in a JSON member, of which each takes up to a hundred bytes: twelve for an exemplar are many."""
_LONGEST_TEXT = 256
_MOST_EPOCHS = 1 << 31
_MOST_CAMERAS = 1000
"""Cameras, each epoch counted: the time of each change of a gallery grows with their number."""
_MOST_PAIRS = 10_000
_LOCAL_HEADER = 30
"""Bytes before the name of a member."""
_CHUNK = 1 << 20


def _is_text(text: str) -> str:
    if len(text) > _LONGEST_TEXT or not is_visible(text):
        raise ValueError(f"must have at most {_LONGEST_TEXT} characters, all printable")
    return text


def _is_name(text: str) -> str:
    try:
        name = checked_name(text)
    except InputError as problem:
        raise ValueError(str(problem)) from problem
    if name != composed(text):
        raise ValueError("must not begin or end with a blank")
    return name


def _is_opaque(text: str) -> str:
    if not is_id(text):
        raise ValueError("must be `p-` and 12 characters of a-z and 2-7, as the agent makes them")
    return text


Text = Annotated[str, AfterValidator(_is_text)]
Opaque = Annotated[str, AfterValidator(_is_opaque)]
Time = Annotated[float, Field(strict=True, ge=0.0, le=LATEST_TIME)]
Camera = (
    Annotated[str, Field(max_length=0)]
    | Id
    | Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}/[a-z0-9_-]{0,64}$")]
)
"""Of this device, or ``DEVICE/CAMERA`` of another one, see `edge_agent.gallery.fleet_rows`."""
Epoch = Annotated[int, Field(strict=True, ge=0, le=_MOST_EPOCHS)]
Cosine = Annotated[float, Field(strict=True, ge=-1.0, le=1.0)]


class Exemplar(BaseModel):
    """The source of one vector, see `edge_agent.gallery.exemplars.Source`."""

    quality: Annotated[float, Field(strict=True, ge=0.0, le=1.0)]
    origin: Text
    camera: Camera
    time: Time
    epoch: Epoch = 0
    """Missing in old archives."""


class ArchivedIdentity(BaseModel):
    """One person in an archive, see `edge_agent.gallery.Identity`."""

    id: Opaque
    name: Annotated[str, AfterValidator(_is_name)] | None
    kind: Kind
    created: Time
    last_seen: Time
    sightings: Annotated[int, Field(strict=True, ge=0, le=1 << 53)]
    ttl_s: Annotated[float, Field(strict=True, ge=0.0, le=LONGEST_TTL_HOURS * 3600)] | None = None
    """Missing in old archives."""
    age_s: Annotated[float, Field(strict=True, ge=0.0, le=1e10)] | None = None
    """Seconds from the last sighting to the export, so that an import depends on no wall clock. None, as in
    old archives: unknown; the person counts as seen just now."""
    former_ids: tuple[Opaque, ...]
    exemplars: Annotated[tuple[Exemplar, ...], Field(max_length=MOST_EXEMPLARS + MOST_FOREIGN)]


class _SiteScores(BaseModel):
    """See `edge_agent.identify.site.SiteScores.to_json`."""

    pairs: Annotated[dict[Text, Cosine], Field(max_length=_MOST_PAIRS)] = {}


class _Guests(BaseModel):
    """People of a camera without an identity: their number, and the sum of their vectors."""

    epoch: Epoch
    people: Annotated[float, Field(strict=True, ge=1.0, le=1e6)]
    sum: Annotated[
        list[Annotated[float, Field(strict=True, ge=-1e6, le=1e6)]], Field(max_length=MOST_NUMBERS)
    ]

    @model_validator(mode="after")
    def _of_unit_vectors(self) -> _Guests:
        if math.hypot(*self.sum) > 1.001 * self.people:
            raise ValueError("sum is longer than that of so many vectors of length 1")
        return self


class _Cameras(BaseModel):
    """See `edge_agent.gallery.cameras`."""

    epochs: Annotated[dict[Id, Epoch], Field(max_length=_MOST_CAMERAS)] = {}
    guests: Annotated[dict[Id, _Guests], Field(max_length=_MOST_CAMERAS)] = {}


_FACTS: Mapping[str, type[BaseModel]] = {"site_scores": _SiteScores, CAMERAS_FACT: _Cameras}
"""Facts that an archive carries; others are of one gallery file, such as what it has to erase."""


class _Contents(BaseModel):
    """The manifest's `data`."""

    space: Annotated[Text, Field(min_length=1)]
    dimension: Annotated[int, Field(strict=True, ge=1, le=MOST_NUMBERS)]
    identities: Annotated[int, Field(strict=True, ge=0)]
    exemplars: Annotated[int, Field(strict=True, ge=0)]
    site: Text = ""
    """Where the cameras are, see `edge_agent.gallery.store`; missing in old archives."""


@dataclass(frozen=True, slots=True)
class Archive:
    """The content of an archive; `vectors` `(N, dimension)` are the exemplars of all people in order."""

    space: str
    dimension: int
    people: tuple[ArchivedIdentity, ...]
    facts: Mapping[str, Any]
    vectors: Vectors
    site: str = ""


def export_gallery(gallery: Gallery, path: Path) -> int:
    """Write an open gallery to an archive; return the number of identities.

    InputError: an identity has a value that no archive may have, which an import of an earlier version took.
    Other errors as in `write_archive`.
    """
    people, blobs = [], []
    with gallery.file.reading() as rows, rows.store.snapshot():
        for person in rows.identities():
            found = rows.store.rows(
                "SELECT quality, origin, camera, time, epoch, vector FROM exemplar WHERE number = ?"
                " ORDER BY row",
                (person.number,),
            )
            blobs += [row[-1] for row in found]
            exemplars = [dict(zip(Exemplar.model_fields, row, strict=False)) for row in found]
            former_ids = rows.former_ids(person.number)
            values = asdict(person) | {
                "age_s": rows.age_s(person.number), "former_ids": former_ids, "exemplars": exemplars
            }  # fmt: skip
            try:
                people.append(ArchivedIdentity.model_validate(values))
            except ValidationError as problem:
                reason = _first(problem)[1:]
                raise InputError(
                    f"identity {person.number} of {rows.store.where} cannot be exported: {reason}; "
                    f"change it, or erase it: edge-agent gallery forget {person.number}"
                ) from problem
        facts = {key: json.loads(text) for key, text in rows.store.rows("SELECT key, value FROM fact")}
        vectors, site = rows.exemplars.unpacked(blobs), str(rows.store.meta("site"))
    carried = {key: facts[key] for key in _FACTS if key in facts}
    write_archive(
        Path(path), Archive(gallery.space, gallery.dimension, tuple(people), carried, vectors, site)
    )
    return len(people)


def import_archive(gallery: Gallery, path: Path) -> Imported:
    """Add the identities of an archive to an open gallery; all of them, or none when there is an error.

    Ids are kept, numbers are new. Identities whose id is in the gallery already are skipped, so a second
    import changes nothing. Facts are added where the gallery has none of that key. Cameras of an archive of
    another site are other cameras, also those of the same name, unless the gallery has no identity yet.

    Raises:
        InputError: not an archive, damaged, a field has a value that no command would set (it is named), or
            another identity has a name in it.
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
        gallery.retention.make_room(rows, len(new), evict=False)
        first = _settle_cameras(rows, archive)
        for person, vectors in new:
            try:
                rows.require_free_name(person.name)
            except InputError as problem:
                raise InputError(f"{shown(path)} cannot be imported, {person.id}: {problem}") from problem
            values = person.model_dump(exclude={"age_s", "former_ids", "exemplars"})
            number = rows.insert(**values, seen=rows.ages.seen(person.age_s or 0.0))
            # A former id may be that of an identity here, which was merged into this one elsewhere.
            former = [(old, number) for old in person.former_ids if rows.number_of(old) is None]
            rows.store.run_many("INSERT INTO former VALUES (?, ?)", former)
            sources = [
                (one.quality, one.origin, one.camera, one.time, one.epoch + first if one.camera else 0)
                for one in person.exemplars
            ]
            rows.add_exemplars(number, vectors, sources)
        rows.store.run_many(
            "INSERT OR IGNORE INTO fact VALUES (?, ?)",
            [
                (key, json.dumps(value))
                for key, value in archive.facts.items()
                if not (first and key == CAMERAS_FACT)
            ],
        )
    return Imported(added=len(new), skipped=len(archive.people) - len(new))


def _settle_cameras(rows: Rows, archive: Archive) -> int:
    """Return what to add to the epochs of an archive: 0 where its cameras are those of the gallery.

    A gallery without identities takes over the cameras of the archive.
    """
    if not rows.store.value("SELECT count(*) FROM identity"):
        rows.store.put_meta("site", archive.site or rows.store.meta("site"))
        if CAMERAS_FACT in archive.facts:
            rows.store.run("DELETE FROM fact WHERE key = ?", (CAMERAS_FACT,))
            rows.note_other_cameras()
        return 0
    if archive.site == rows.store.meta("site"):
        return 0
    return 1 + int(rows.store.value("SELECT coalesce(max(epoch), 0) FROM exemplar"))


def write_archive(path: Path, archive: Archive) -> None:
    """Write the archive, complete or not at all; errors as in `edge_agent.core.manifest.atomic_file`.

    InputError: it would be larger than `read_archive` reads.
    """
    people = [person.model_dump() for person in archive.people]
    buffer = io.BytesIO()
    np.save(buffer, archive.vectors.astype("<f4"), allow_pickle=False)
    document = {"identities": people, "facts": dict(archive.facts)}
    members = {
        _IDENTITIES: json.dumps(document, separators=(",", ":"), allow_nan=False).encode(),
        _VECTORS: buffer.getvalue(),
    }
    if len(members[_IDENTITIES]) > _LARGEST_JSON[_IDENTITIES]:
        raise InputError(f"cannot write {path}: {len(people)} identities are more than an archive may have")
    manifest = Manifest(
        kind=_KIND,
        version=_VERSION,
        files={name: _record(data) for name, data in members.items()},
        data={
            "space": archive.space,
            "dimension": archive.dimension,
            "identities": len(people),
            "exemplars": len(archive.vectors),
            "site": archive.site,
        },
    )
    with atomic_file(path, mode=0o600) as handle, zipfile.ZipFile(handle, "w") as bundle:
        described = json.dumps(asdict(manifest), indent=2).encode()
        for name, data in ((_MANIFEST, described), *members.items()):
            with write_member(bundle, name) as member:
                member.write(data)


def read_archive(path: Path) -> Archive:
    """Read and check an archive; InputError when it is missing, not an archive, or a field is not usable.

    Sizes are compared with the file and with limits before anything is read into memory.
    """
    with open_regular(path) as handle:
        try:
            return _read(handle)
        except OSError as problem:
            raise InputError(f"cannot read {shown(path)}: {problem.strerror or problem}") from problem
        except (*ZIP_ERRORS, InputError, NonFiniteEmbedding, MemoryError) as problem:
            reason = visible(str(problem) or type(problem).__name__, 300)
            raise InputError(
                f"{shown(path)} is not a usable gallery archive ({reason}); "
                "export it again: edge-agent gallery export FILE"
            ) from problem


def _record(data: bytes) -> FileRecord:
    return FileRecord(hashlib.sha256(data).hexdigest(), len(data))


def _read(handle: BinaryIO) -> Archive:
    with open_zip(handle) as bundle:
        _check_members(bundle, handle.seek(0, io.SEEK_END))
        found = parse_json(bundle.read(_MANIFEST), _MANIFEST, unique=True)
        manifest = Manifest.parse(Path(_MANIFEST), found, kind=_KIND, version=_VERSION)
        contents = _validated(_Contents, manifest.data, f"{_MANIFEST}: data")
        if set(manifest.files) != {_IDENTITIES, _VECTORS}:
            raise InputError(f"{_MANIFEST}: files must list {_IDENTITIES} and {_VECTORS}")
        for name, record in manifest.files.items():
            if _digest(bundle, name) != record:
                raise InputError(f"{name} differs from its manifest entry")
        document = parse_json(_bounded_json(bundle), _IDENTITIES, unique=True)
        if not isinstance(document, dict) or not isinstance(document.get("facts"), dict):
            raise InputError(f"{_IDENTITIES} is not an object with `identities` and `facts`")
        people = _people(document.get("identities"))
        facts = {
            key: _validated(rule, document["facts"][key], f"{_IDENTITIES}: facts.{key}").model_dump()
            for key, rule in _FACTS.items()
            if key in document["facts"]
        }
        exemplars = [one for person in people for one in person.exemplars]
        if (views := len({(one.camera, one.epoch) for one in exemplars})) > _MOST_CAMERAS:
            raise InputError(f"{_IDENTITIES} names {views:,} cameras, at most {_MOST_CAMERAS:,} are read")
        if (len(people), len(exemplars)) != (contents.identities, contents.exemplars):
            raise InputError(
                f"{_MANIFEST} counts {contents.identities} identities and {contents.exemplars} exemplars, "
                f"{_IDENTITIES} has {len(people)} and {len(exemplars)}"
            )
        vectors = _vectors(bundle, exemplars, contents.dimension)
    return Archive(contents.space, contents.dimension, people, facts, vectors, contents.site)


def _check_members(bundle: zipfile.ZipFile, size: int) -> None:
    """Refuse unknown, repeated, compressed, encrypted, oversized and overlapping members."""
    names = [member.orig_filename for member in bundle.infolist()]
    if sorted(names) != sorted(_MEMBERS):
        listed = ", ".join(visible(name, 40) for name in names[:5])
        raise InputError(f"its members must be {', '.join(_MEMBERS)}, each once; it has {listed or 'none'}")
    free = 0
    for member in sorted(
        (stored_member(bundle, name) for name in _MEMBERS), key=lambda one: one.header_offset
    ):
        if member.flag_bits & 1:
            raise InputError(f"{member.filename} is encrypted; unpack the archive, and export it without")
        if member.header_offset < free:
            raise InputError(f"{member.filename} overlaps another member")
        free = member.header_offset + _LOCAL_HEADER + len(member.filename) + member.file_size
        if free > size:
            raise InputError(
                f"{member.filename} claims {member.file_size:,} bytes, which the file does not have"
            )
        if member.file_size > (limit := _LARGEST_JSON.get(member.filename, size)):
            raise InputError(f"{member.filename} has {member.file_size:,} bytes, at most {limit:,} are read")


@contextmanager
def _opened(bundle: zipfile.ZipFile, name: str) -> Iterator[BinaryIO]:
    with bundle.open(name) as handle:
        yield cast("BinaryIO", handle)


def _digest(bundle: zipfile.ZipFile, name: str) -> FileRecord:
    digest, size = hashlib.sha256(), 0
    with _opened(bundle, name) as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileRecord(digest.hexdigest(), size)


def _bounded_json(bundle: zipfile.ZipFile) -> bytes:
    data = bundle.read(_IDENTITIES)
    if sum(map(data.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise InputError(f"{_IDENTITIES} has more than {_MOST_VALUES:,} values")
    return data


def _people(found: object) -> tuple[ArchivedIdentity, ...]:
    """Check each identity, and that ids and names are unique."""
    people: tuple[ArchivedIdentity, ...] = _validated(
        TypeAdapter(tuple[ArchivedIdentity, ...]), found, f"{_IDENTITIES}: identities"
    )
    ids: dict[str, str] = {}
    names: dict[str, str] = {}
    for place, person in enumerate(people):
        where = f"identities[{place}]"
        for opaque in (person.id, *person.former_ids):
            if opaque in ids:
                raise InputError(f"{_IDENTITIES}: {where} has the id {opaque}, which {ids[opaque]} has too")
            ids[opaque] = where
        if person.name in names:
            name = visible(person.name or "", 60)
            raise InputError(f"{_IDENTITIES}: {where} has the name {name!r}, which {names[name]} has too")
        if person.name is not None:
            names[person.name] = where
    return people


def _vectors(bundle: zipfile.ZipFile, exemplars: list[Exemplar], dimension: int) -> Vectors:
    """Read the vectors, of length 1 each."""
    with _opened(bundle, _VECTORS) as handle:
        size = bundle.getinfo(_VECTORS).file_size
        vectors = read_array(handle, size, _VECTORS, kinds="f", shape=(len(exemplars), dimension))
    if vectors.dtype != np.dtype("<f4"):
        raise InputError(f"{_VECTORS} has numbers of type {vectors.dtype}, expected float32")
    with np.errstate(over="ignore", invalid="ignore"):
        checked, _ = checked_exemplars(vectors, np.zeros(len(vectors), np.float32), dimension)
    return checked


def _validated(rule: Any, found: object, where: str) -> Any:  # noqa: ANN401 - an object of the rule's type
    """Return what `rule` makes of JSON values; InputError names the first field that it refuses."""
    try:
        if isinstance(rule, TypeAdapter):
            return rule.validate_python(found)
        return rule.model_validate(found)
    except ValidationError as problem:
        raise InputError(f"{where}{_first(problem)}") from problem


def _first(problem: ValidationError) -> str:
    """Return place, reason and value of the first error of several."""
    fault = problem.errors(include_url=False)[0]
    place = "".join(
        f"[{part}]" if isinstance(part, int) else f".{visible(str(part), 40)}" for part in fault["loc"]
    )
    reason = fault["msg"].removeprefix("Value error, ")
    return f"{place}: {reason} (it is {visible(repr(fault['input']), 60)})"
