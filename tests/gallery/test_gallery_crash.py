"""The gallery after SIGKILL and on full disks, and traces of erased rows in its files."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.core.clock import Clock
from edge_agent.core.config import GallerySettings
from edge_agent.core.errors import DiskFull, StorageError
from edge_agent.gallery import Gallery
from edge_agent.gallery.archive import export_gallery
from tests.hand_clock import HandTime

D = 64

WRITER = """
    import sys
    import numpy as np
    from edge_agent.core.config import GallerySettings
    from edge_agent.gallery import Gallery

    path, seed = sys.argv[1], int(sys.argv[2])
    generator = np.random.default_rng(seed)

    def unit(rows):
        drawn = generator.normal(size=(rows, 64)).astype(np.float32)
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    seen = dict(origin="t", camera="c", time=float(seed))
    settings = GallerySettings(max_exemplars=6, capacity=40)
    with Gallery(path, settings, space="s", dimension=64, owner=True) as gallery:
        print("ready", flush=True)
        while True:
            # every exemplar of an identity has the identity's creation number of exemplars as its quality
            rows = int(generator.integers(1, 5))
            person = gallery.enrol(unit(rows), np.full(rows, 0.5), **seen)
            gallery.add_exemplars(person.number, unit(4), np.full(4, 0.5), **seen)
            people = gallery.identities()
            chosen = int(generator.integers(len(people)))
            if len(people) > 20:
                gallery.forget(people[chosen].number)
            elif len(people) > 2:
                gallery.merge(people[chosen].number, people[chosen - 1].number)
            gallery.facts.set("round", person.number)
"""


def unit(rows: int, seed: int = 0) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).normal(size=(rows, D)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def run(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=[pytest.mark.slow, pytest.mark.timeout(400)])])
def test_kill_9_at_any_moment_leaves_a_whole_gallery(tmp_path: Path, kills: int) -> None:
    path = tmp_path / "gallery.db"
    moments = random.Random(7)
    last_number = 0
    for attempt in range(kills):
        writer = run(WRITER, str(path), str(attempt))
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(moments.uniform(0.05, 0.5))
        finally:
            writer.send_signal(signal.SIGKILL)
            rest, _ = writer.communicate()
        assert writer.returncode == -signal.SIGKILL, rest.decode()
        last_number = assert_whole(path, last_number)
    assert last_number > 10


def assert_whole(path: Path, last_number: int) -> int:
    """SQLite is content, the index equals the file, no number was given twice; returns the last number."""
    with contextlib.closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert file.execute("PRAGMA foreign_key_check").fetchall() == []
    with Gallery(
        path, GallerySettings(max_exemplars=6, capacity=40), space="s", dimension=D, owner=True
    ) as gallery:
        people = gallery.identities()
        assert people
        assert_index_is_the_file(gallery)
        assert all(1 <= len(gallery.exemplars(person.number)[0]) <= 6 for person in people)
        newest = max(person.number for person in people)
        assert newest >= last_number - 20  # identities that were merged or forgotten since
        return newest


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A separate file system, which needs root."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("mounting a small tmpfs needs root")
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def assert_index_is_the_file(gallery: Gallery) -> None:
    queries = unit(2, 5)
    people = [person.number for person in gallery.identities()]
    for query, found, scores in zip(queries, *gallery.search(queries, len(people)), strict=True):
        assert sorted(found.tolist()) == people
        truth = [(gallery.exemplars(number)[0] @ query).max() for number in found.tolist()]
        np.testing.assert_allclose(scores, truth, atol=2e-6)


def fill_up(gallery: Gallery) -> None:
    """Enrol until there is no room."""
    for seed in range(2000):
        gallery.enrol(unit(8, seed), np.ones(8), origin="t", camera="c", time=1.0)


def test_a_full_disk_is_reported_and_changes_nothing(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", 2) as disk,
        Gallery(disk / "gallery.db", GallerySettings(), space="s", dimension=D) as gallery,
    ):
        with pytest.raises(DiskFull, match="no space is left"):
            fill_up(gallery)
        assert len(gallery) > 40
        assert_index_is_the_file(gallery)
        with pytest.raises(DiskFull):
            export_gallery(gallery, disk / "copy.zip")
        assert not (disk / "copy.zip").exists()
        assert Gallery.existing(disk / "gallery.db").__enter__().__exit__(None, None, None) is None
        assert gallery.search(unit(1, 3))[1][0, 0] == pytest.approx(1)


LIMITED = """
    import resource, sys
    import numpy as np
    from edge_agent.core.errors import StorageError
    from edge_agent.core.config import GallerySettings
    from edge_agent.gallery import Gallery

    def unit(rows, seed):
        drawn = np.random.default_rng(seed).normal(size=(rows, 64)).astype(np.float32)
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    with Gallery(sys.argv[1], GallerySettings(), space="s", dimension=64) as gallery:
        resource.setrlimit(resource.RLIMIT_FSIZE, (450_000, 450_000))
        enrolled = 0
        try:
            while True:
                gallery.enrol(unit(8, enrolled), np.ones(8), origin="t", camera="c", time=1.0)
                enrolled += 1
        except StorageError as problem:
            found = gallery.search(unit(1, 0), enrolled + 9)[0]
            print(enrolled, len(gallery), (found >= 0).sum(), problem)
"""


def test_a_file_size_limit_is_reported_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "gallery.db"
    output, _ = run(LIMITED, str(path)).communicate(timeout=60)
    enrolled, stored, indexed, problem = output.decode().split(" ", 3)
    assert int(enrolled) == int(stored) == int(indexed) > 5
    assert str(path) in problem
    with Gallery(path, GallerySettings(), space="s", dimension=D) as gallery:
        assert len(gallery) == int(enrolled)
        assert_index_is_the_file(gallery)


def remains(folder: Path, erased: NDArray[np.float32]) -> int:
    """Places in all files of a folder where 8 successive bytes of an erased vector stand."""
    pieces = np.unique(np.ascontiguousarray(erased).view("<u8"))
    places = 0
    for file in folder.iterdir():
        content = file.read_bytes()
        for offset in range(8):
            words = np.frombuffer(content[offset : len(content) - (len(content) - offset) % 8], "<u8")
            places += int(np.isin(words, pieces).sum())
    return places


@pytest.mark.parametrize(
    ("dimension", "people"), [(16, 40), (256, 20), (2048, 8)]
)  # cells within and over pages
def test_nothing_of_a_forgotten_person_remains_in_the_files(
    tmp_path: Path, dimension: int, people: int
) -> None:
    generator = np.random.default_rng(dimension)

    def draw(rows: int) -> NDArray[np.float32]:
        drawn = generator.normal(size=(rows, dimension)).astype(np.float32)
        return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)

    machine = HandTime()
    options = {"space": "s", "dimension": dimension, "owner": True, "clock": Clock(machine)}
    with Gallery(tmp_path / "gallery.db", GallerySettings(max_exemplars=4), **options) as gallery:
        for step in range(people):
            person = gallery.enrol(draw(3), np.ones(3), origin="t", camera="c", time=1.0)
            gallery.add_exemplars(person.number, draw(3), np.ones(3), origin="t", camera="c", time=1.0)
            if step % 3 == 0:
                gallery.rename(person.number, f"Name <{person.number}>")
        erased = []
        for number in range(2, people, 3):
            gallery.rename(number, f"Name <{number}>")
            erased.append(gallery.exemplars(number)[0])
            assert remains(tmp_path, erased[-1]) > 0  # so that finding nothing means something
            gallery.forget(number)
        assert remains(tmp_path, np.concatenate(erased)) == 0
        content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        assert b"Name <1>" in content
        assert not [number for number in range(2, people, 3) if f"Name <{number}>".encode() in content]
        assert_nothing_of_the_merged(gallery, tmp_path, machine)


def assert_nothing_of_the_merged(gallery: Gallery, folder: Path, machine: HandTime) -> None:
    """Exemplars that lost their place when two people became one, and those who expired, are gone too."""
    first, second = gallery.identities()[:2]
    before = np.concatenate([gallery.exemplars(first.number)[0], gallery.exemplars(second.number)[0]])
    gallery.merge(first.number, second.number)
    gallery.forget(first.number)
    assert remains(folder, before) == 0
    gallery.retention.apply(GallerySettings(ttl_hours=1 / 3600))
    auto = [person for person in gallery.identities() if person.kind == "auto"]
    machine.passes(2.0)
    vectors = np.concatenate([gallery.exemplars(person.number)[0] for person in auto])
    assert [person.number for person in gallery.retention.expire()] == [person.number for person in auto]
    assert remains(folder, vectors) == 0


def test_expire_does_not_wait_for_a_reader_of_the_log(tmp_path: Path) -> None:
    path, machine = tmp_path / "gallery.db", HandTime()
    clock = Clock(machine)
    with Gallery(path, GallerySettings(), space="s", dimension=D, owner=True, clock=clock) as gallery:
        for seed in range(3):
            gallery.enrol(unit(2, seed), np.ones(2), origin="t", camera="c", time=1.0)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM identity").fetchall()
            gallery.retention.apply(GallerySettings(ttl_hours=1 / 3600))
            machine.passes(2.0)
            assert len(gallery.retention.expire()) == 3  # does not wait
        gallery.enrol(unit(2, 9), np.ones(2), origin="t", camera="c", time=1e9)
        gallery.forget(4)
        assert remains(tmp_path, np.concatenate([unit(2, seed) for seed in (0, 1, 2, 9)])) == 0


def test_a_forget_that_cannot_clear_the_log_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.gallery.store._BUSY_S", 0.1)
    path = tmp_path / "gallery.db"
    with Gallery(path, GallerySettings(), space="s", dimension=D) as gallery:
        gallery.enrol(unit(2), np.ones(2), origin="t", camera="c", time=1.0)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM identity").fetchall()
            with pytest.raises(StorageError, match="write-ahead log"):
                gallery.forget(1)
        assert len(gallery) == 0
