"""Archives from elsewhere: each field has the rules of its command; all is imported, or nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.cli.gallery import people_table
from edge_agent.core.config import GallerySettings
from edge_agent.core.errors import EdgeAgentError, InputError
from edge_agent.core.text import is_visible
from edge_agent.gallery.archive import export_gallery, import_archive, read_archive
from edge_agent.gallery.gallery import Gallery
from tests.core.test_text import HOSTILE

D = 4
NOW = 1_700_000_000.0


def person(number: int, **changes: Any) -> dict[str, Any]:
    exemplar = {"quality": 0.5, "origin": "s:cam:1", "camera": "cam", "time": NOW}
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    return {
        "id": "p-" + "".join(letters[number // 32**place % 32] for place in range(12)),
        "name": f"Person {number}",
        "kind": "enrolled",
        "created": NOW,
        "last_seen": NOW,
        "sightings": 1,
        "ttl_s": None,
        "former_ids": [],
        "exemplars": [exemplar, dict(exemplar)],
    } | changes


def npy(rows: Any, dtype: str = "<f4") -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(rows, dtype))
    return buffer.getvalue()


def units(count: int, dimension: int = D) -> Any:
    rows = np.random.default_rng(count).standard_normal((count, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write(
    path: Path,
    people: Any,
    vectors: bytes | None = None,
    *,
    facts: Any = None,
    data: dict[str, Any] | None = None,
    members: Callable[[dict[str, bytes]], dict[str, bytes]] = lambda found: found,
    compression: int = zipfile.ZIP_STORED,
    text: Callable[[str], str] = lambda found: found,
) -> Path:
    """Write an archive whose digests are right, whatever it contains."""
    count = 2 * len(people) if isinstance(people, list) else 0
    content = text(json.dumps({"identities": people, "facts": facts or {}})).encode()
    found = {"identities.json": content, "vectors.npy": npy(units(count)) if vectors is None else vectors}
    files = {
        name: {"sha256": hashlib.sha256(one).hexdigest(), "bytes": len(one)} for name, one in found.items()
    }
    described = {"space": "s", "dimension": D, "identities": len(people), "exemplars": count} | (data or {})
    manifest = {
        "kind": "gallery", "version": 1, "created": "2024-01-01T00:00:00Z", "agent": "1.0",
        "files": files, "data": described,
    }  # fmt: skip
    found = members({"manifest.json": json.dumps(manifest).encode(), **found})
    with zipfile.ZipFile(path, "w", compression) as bundle:
        for name, one in found.items():
            bundle.writestr(name, one)
    return path


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    with Gallery(tmp_path / "state" / "gallery.db", GallerySettings(), space="s", dimension=D) as opened:
        yield opened


def refused(gallery: Gallery, path: Path) -> str:
    """Return the error of an import, after which nothing is changed."""
    before = gallery.identities(), gallery.facts.get("site_scores")
    with pytest.raises(EdgeAgentError) as error:
        import_archive(gallery, path)
    assert (gallery.identities(), gallery.facts.get("site_scores")) == before
    message = str(error.value)
    assert path.name in message
    assert message.isprintable()
    assert len(message) < 1_000
    assert "damaged" not in message or "gallery.db" not in message
    return message


def attempt(call: Callable[[], object]) -> str | None:
    """Return the message of an InputError, which is one short line; None without error."""
    try:
        call()
    except InputError as problem:
        message = str(problem)
    else:
        return None
    assert message.isprintable()
    assert len(message) < 1_000
    return message


WRONG = {
    "name": [*(one for one in HOSTILE if not one or not is_visible(one)), " ", "12", "p-abcdefghijkl", " Ada",
             "a" * 129, "a" * 1_000_000, 5, True, [], {}, 1.5],
    "id": ["../../../etc/passwd", "p-\x1b]0;x", "", "word", "p-ABCDEFGHIJKL", "p-abcdefghijklm",
           "p-abcdefghijk1", "p-abcdefghijkl\n", 5, None, []],
    "kind": ["", "other", None, 1],
    "sightings": [-1, 1.5, "1", True, None, 2**63, 10**400],
    "created": [-1, 1e300, 1.1e11, "2024", None, True, 10**400],
    "last_seen": [-1, 1e300, None, [], 10**400],
    "ttl_s": [-1, 1e300, "1", True, 10**400],
    "former_ids": [["x"], ["../a"], [5], [None], "p-abcdefghijkl", {"a": 1}, 5, ["p-abcdefghijkl"] * 2],
    "exemplars": [None, 5, [5], {}, [[]]],
}  # fmt: skip
WRONG_EXEMPLAR = {
    "quality": [-0.1, 1.1, 1e308, "1", None, True, 10**400],
    "origin": ["a\nb", "\x1b", "a" * 257, 5, None],
    "camera": ["a b", "\x1b", "../x", "a" * 65, 5, None],
    "time": [-1, 1e300, None, "now", True],
}


@pytest.mark.parametrize(("field", "value"), [(key, one) for key, values in WRONG.items() for one in values])
def test_a_field_that_no_command_would_set(
    tmp_path: Path, gallery: Gallery, field: str, value: object
) -> None:
    path = write(tmp_path / "people.zip", [person(1), person(2, **{field: value})])
    message = refused(gallery, path)
    # a surrogate or a number of 400 digits is refused by the JSON reader, or is named with its field
    assert (
        f"identities[1].{field}" in message
        or "identities.json is not usable JSON" in message
        or "[1]" in message
    )


@pytest.mark.parametrize(
    ("field", "value"), [(key, one) for key, values in WRONG_EXEMPLAR.items() for one in values]
)
def test_an_exemplar_that_no_track_would_add(
    tmp_path: Path, gallery: Gallery, field: str, value: object
) -> None:
    wrong = person(2)
    wrong["exemplars"][1][field] = value
    message = refused(gallery, write(tmp_path / "people.zip", [person(1), wrong]))
    # a number of 400 digits is refused by the JSON reader
    assert f"identities[1].exemplars[1].{field}" in message or "identities.json is not usable JSON" in message


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "9" * 5_000])
@pytest.mark.parametrize("field", ["ttl_s", "last_seen", "sightings"])
def test_a_number_that_is_none(tmp_path: Path, gallery: Gallery, field: str, number: str) -> None:
    path = write(
        tmp_path / "people.zip",
        [person(1, **{field: "HERE"})],
        text=lambda found: found.replace('"HERE"', number),
    )
    assert "identities.json" in refused(gallery, path)


@pytest.mark.parametrize(
    "people",
    [
        [person(1), person(1, name="B")],
        [person(1), person(2, name="Person 1")],
        [person(1), person(2, former_ids=[person(1)["id"]])],
        [person(1, former_ids=[person(3)["id"]]), person(2, former_ids=[person(3)["id"]])],
        [person(1, former_ids=[person(1)["id"]])],
    ],
)
def test_ids_and_names_come_once(tmp_path: Path, gallery: Gallery, people: list[Any]) -> None:
    assert "has too" in refused(gallery, write(tmp_path / "people.zip", people))


@pytest.mark.parametrize(
    "vectors",
    [
        np.zeros((2, D)), units(2) * 1e30, units(2) * 1.1, units(2) * np.nan, units(2) * np.inf, units(3),
        units(1), units(2, 5), units(2)[0],
    ],
)  # fmt: skip
def test_vectors_of_another_length_or_shape(tmp_path: Path, gallery: Gallery, vectors: Any) -> None:
    with np.errstate(all="ignore"):
        path = write(tmp_path / "people.zip", [person(1)], npy(vectors))
    assert "vectors" in refused(gallery, path) or "embedding" in refused(gallery, path)


@pytest.mark.parametrize(
    "vectors",
    [
        npy(units(2), "<f8"), npy(units(2), ">f4"), npy(units(2), "<i4"), b"", b"rubbish", npy(units(2))[:-4],
        npy(units(2)).replace(b"(2, 4)", b"(4398046511104, 4)"),
        npy(units(2)).replace(b"'<f4'", b"'|O'"),
        npy(units(2)).replace(b"(2, 4)", b"(0, 4)"),
    ],
)  # fmt: skip
def test_arrays_that_are_none(tmp_path: Path, gallery: Gallery, vectors: bytes) -> None:
    assert "vectors" in refused(gallery, write(tmp_path / "people.zip", [person(1)], vectors))


@pytest.mark.parametrize(
    "data",
    [
        {"dimension": 0}, {"dimension": 10**9}, {"dimension": -1}, {"dimension": "4"}, {"dimension": 4.0},
        {"dimension": True}, {"space": ""}, {"space": "a\x1b"}, {"space": None}, {"space": "s" * 10_000},
        {"identities": 2}, {"exemplars": 3}, {"identities": -1}, {"exemplars": "2"},
    ],
)  # fmt: skip
def test_a_manifest_that_does_not_fit(tmp_path: Path, gallery: Gallery, data: dict[str, Any]) -> None:
    message = refused(gallery, write(tmp_path / "people.zip", [person(1)], data=data))
    assert "manifest.json" in message


@pytest.mark.parametrize(
    ("facts", "kept"),
    [
        ({"site_scores": {"pairs": {"#1|#2": 0.5}}}, {"pairs": {"#1|#2": 0.5}}),
        ({"other": {"pairs": 1}, "erased": ["p-abcdefghijkl"]}, None),
        ({"site_scores": {"pairs": {"#1|#2": 2.0}}}, "refused"),
        ({"site_scores": {"pairs": {"a\x1b|b": 0.5}}}, "refused"),
        ({"site_scores": {"pairs": [1]}}, "refused"),
        ({"site_scores": 5}, "refused"),
        ([1], "refused"),
    ],
)
def test_facts_that_an_archive_carries(tmp_path: Path, gallery: Gallery, facts: Any, kept: Any) -> None:
    path = write(tmp_path / "people.zip", [person(1)], facts=facts)
    if kept == "refused":
        assert "facts" in refused(gallery, path)
        return
    import_archive(gallery, path)
    assert gallery.facts.get("site_scores") == kept
    assert gallery.facts.get("erased") is None
    assert gallery.facts.get("other") is None


@pytest.mark.parametrize(
    "members",
    [
        lambda found: found | {"../../etc/x": b"x"},
        lambda found: found | {"more.json": b"{}"},
        lambda found: {"/" + name: one for name, one in found.items()},
        lambda found: {name: one for name, one in found.items() if name != "vectors.npy"},
        lambda found: found | {"vectors.npy": b""},
        lambda found: found | {"manifest.json": b"[" * 100_000},
        lambda found: found | {"manifest.json": b'{"kind": "gallery", "kind": "gallery"}'},
        lambda found: found | {"manifest.json": b" " * 100_000 + found["manifest.json"]},
        lambda found: found | {"manifest.json": found["manifest.json"].replace(b'"bytes": ', b'"bytes": 1')},
        lambda found: found | {"manifest.json": b"\xff"},
        lambda found: {},
    ],
)
def test_members_that_are_unknown_missing_or_changed(tmp_path: Path, gallery: Gallery, members: Any) -> None:
    refused(gallery, write(tmp_path / "people.zip", [person(1)], members=members))


def test_a_member_that_comes_twice(tmp_path: Path, gallery: Gallery) -> None:
    path = write(tmp_path / "people.zip", [person(1)])
    with zipfile.ZipFile(path, "a") as bundle, pytest.warns(UserWarning, match="Duplicate"):
        bundle.writestr("identities.json", b"{}")
    assert "each once" in refused(gallery, path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members_are_not_read(tmp_path: Path, gallery: Gallery, compression: int) -> None:
    path = write(
        tmp_path / "people.zip",
        [person(1)],
        compression=compression,
        text=lambda found: found + " " * (50 << 20),
    )
    began = time.monotonic()
    assert "compressed" in refused(gallery, path)
    assert time.monotonic() - began < 1.0


def test_json_that_is_deep_or_has_a_key_twice(tmp_path: Path, gallery: Gallery) -> None:
    for number, change in enumerate(
        (
            lambda found: found.replace('"facts": {}', '"facts": ' + "[" * 50_000 + "]" * 50_000),
            lambda found: found.replace('"facts": {}', '"facts": {}, "identities": []'),
            lambda found: found.replace('"sightings": 1', '"sightings": 1, "sightings": 2'),
            lambda found: found.replace('"Person 1"', r'"\ud800"'),
            lambda found: "5",
            lambda found: "[]",
            lambda found: "{}",
            lambda found: "",
        )
    ):
        path = write(tmp_path / f"people-{number}.zip", [person(1)], text=change)
        assert "identities.json" in refused(gallery, path)


def test_a_directory_that_lies(tmp_path: Path, gallery: Gallery) -> None:
    good = write(tmp_path / "people.zip", [person(1)]).read_bytes()
    place = good.index(b"PK\x01\x02")
    lies = []
    for offset, content in (
        (8, b"\x01\x00"),  # encrypted
        (20, b"\xff\xff\xff\x7f\xff\xff\xff\x7f"),  # two gigabytes
        (42, b"\x10\x00\x00\x00"),  # begins elsewhere
        (42, b"\xff\xff\xff\x7f"),
        (10, b"\x63\x00"),  # another method
        (28, b"\xff\xff"),  # a long name
        (16, b"\x00\x00\x00\x00"),  # another CRC
    ):
        lies.append(good[: place + offset] + content + good[place + offset + len(content) :])
    second = good.index(b"PK\x01\x02", place + 4)
    overlapping = bytearray(good)
    overlapping[second + 42 : second + 46] = good[place + 42 : place + 46]
    for number, content in enumerate(
        [*lies, bytes(overlapping), good[:-30], good[:100], good[50:], b"PK\x05\x06" * 9]
    ):
        path = tmp_path / f"lie-{number}.zip"
        path.write_bytes(content)
        refused(gallery, path)


def test_files_that_are_no_regular_files(tmp_path: Path, gallery: Gallery) -> None:
    os.mkfifo(tmp_path / "pipe.zip")
    (tmp_path / "folder.zip").mkdir()
    for name in ("pipe.zip", "folder.zip", "missing.zip"):
        refused(gallery, tmp_path / name)
    with pytest.raises(InputError, match="device"):
        read_archive(Path("/dev/zero"))


def test_a_good_archive_is_imported_and_exported_again(tmp_path: Path, gallery: Gallery) -> None:
    people = [
        person(1, name="[/red] {{ states }} <script>"),
        person(2, name=None, kind="auto", ttl_s=0.0, former_ids=[person(9)["id"]], created=0.0, sightings=0),
        person(3, exemplars=[], name="李 ü", ttl_s=3600),
    ]
    path = write(tmp_path / "people.zip", people, npy(units(4)), data={"exemplars": 4})
    assert import_archive(gallery, path).added == 3
    assert gallery.get(person(9)["id"]).number == 2
    export_gallery(gallery, tmp_path / "again.zip")
    assert [one.id for one in read_archive(tmp_path / "again.zip").people] == [one["id"] for one in people]


def test_names_that_differ_by_composition_are_one_name(tmp_path: Path, gallery: Gallery) -> None:
    both = write(tmp_path / "both.zip", [person(1, name="Ren\u00e9"), person(2, name="Rene\u0301")])
    assert "has the name" in refused(gallery, both)
    import_archive(gallery, write(tmp_path / "one.zip", [person(1, name="Rene\u0301")]))
    assert [one.name for one in gallery.identities()] == ["Ren\u00e9"]
    assert gallery.get("Rene\u0301") == gallery.get("Ren\u00e9")
    import_archive(gallery, write(tmp_path / "two.zip", [person(2)]))
    with pytest.raises(InputError, match="belongs to identity 1"):
        gallery.rename(2, "Rene\u0301")


@pytest.mark.parametrize("shown", [0.0, 2e8, 4.2e9, 8e9])
def test_an_export_whatever_the_clock_shows(
    tmp_path: Path, gallery: Gallery, monkeypatch: pytest.MonkeyPatch, shown: float
) -> None:
    """ZIP has no dates before 1980 and after 2107; people may have been seen at such a clock."""
    import_archive(gallery, write(tmp_path / "in.zip", [person(1, created=shown, last_seen=shown)]))
    monkeypatch.setattr(time, "time", lambda: shown)
    export_gallery(gallery, tmp_path / "out.zip")
    assert [one.last_seen for one in read_archive(tmp_path / "out.zip").people] == [shown]


def test_a_former_id_that_is_an_identity_here(tmp_path: Path, gallery: Gallery) -> None:
    import_archive(gallery, write(tmp_path / "one.zip", [person(1)]))
    two = person(2, former_ids=[person(1)["id"]])
    assert import_archive(gallery, write(tmp_path / "two.zip", [two])).added == 1
    assert gallery.get(person(1)["id"]).number == 1
    assert gallery.former_ids(2) == ()


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(HOSTILE)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.sampled_from(sorted(person(1))), values)
def test_any_value_is_taken_and_can_be_listed_or_is_refused(
    tmp_path: Path, field: str, value: object
) -> None:
    path = write(tmp_path / "any.zip", [person(1), person(2, **{field: value})])
    with Gallery(":memory:", GallerySettings(), space="s", dimension=D) as gallery:
        problem = attempt(lambda: import_archive(gallery, path))
        if problem is not None:
            assert len(gallery) == 0
        else:
            assert all(line.isprintable() for line in people_table(gallery.identities()))
            export_gallery(gallery, tmp_path / "again.zip")
            gallery.retention.expire()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.data())
def test_changed_bytes_are_refused_in_one_line(tmp_path: Path, data: st.DataObject) -> None:
    good = tmp_path / "good.zip"
    if not good.exists():
        write(good, [person(1), person(2)])
    content = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 40))
    path = tmp_path / "changed.zip"
    path.write_bytes(bytes(content[: len(content) - cut]))
    attempt(lambda: read_archive(path))


def test_memory_stays_bounded_over_many_hostile_archives(tmp_path: Path, gallery: Gallery) -> None:
    bombs = [
        write(tmp_path / "deep.zip", [], text=lambda _: "[" * 5_000_000),
        write(tmp_path / "wide.zip", [], text=lambda _: "[" + "[]," * 4_000_000 + "[]]"),
        write(tmp_path / "keys.zip", [], text=lambda _: '{"identities":[],"facts":{"%s":1}}' % ("a" * 10**7)),
        write(tmp_path / "array.zip", [person(1)], npy(units(2)).replace(b"(2, 4)", b"(4398046511104, 4)")),
        write(tmp_path / "zeros.zip", [], compression=zipfile.ZIP_DEFLATED, text=lambda _: " " * (100 << 20)),
        write(tmp_path / "name.zip", [person(1, name="a" * 5_000_000)]),
    ]  # fmt: skip
    for path in bombs:
        refused_or_empty = attempt(lambda path=path: import_archive(gallery, path))
        assert refused_or_empty is not None or path.name == "keys.zip"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(5):
        for path in bombs:
            attempt(lambda path=path: import_archive(gallery, path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KiB


IMPORT = """
import sys
from pathlib import Path
from edge_agent.core.config import GallerySettings
from edge_agent.gallery.archive import import_archive
from edge_agent.gallery.gallery import Gallery
with Gallery(Path(sys.argv[1]), GallerySettings(), space="s", dimension=4) as gallery:
    print("open", flush=True)
    import_archive(gallery, Path(sys.argv[2]))
    print("done", flush=True)
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_imports_all_or_nothing(tmp_path: Path) -> None:
    count = 3_000
    path = write(tmp_path / "people.zip", [person(number + 1) for number in range(count)])
    partly = 0
    for turn in range(12):
        database = tmp_path / f"{turn}" / "gallery.db"
        process = subprocess.Popen(
            [sys.executable, "-c", IMPORT, str(database), str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        time.sleep(0.12 * turn)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with Gallery(database, GallerySettings(), space="s", dimension=D) as gallery:
            assert len(gallery) in {0, count}
            partly += len(gallery) == 0
            if len(gallery) == 0:
                assert import_archive(gallery, path).added == count
    assert partly
