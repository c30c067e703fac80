"""Changes that are committed at once: what a kill, a failure and another process see of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_agent.core.config import GallerySettings
from edge_agent.core.errors import InputError, StorageError
from edge_agent.gallery.gallery import Gallery

D = 8


def opened(path: Path | str) -> Gallery:
    return Gallery(path, GallerySettings(), space="s", dimension=D)


def add(gallery: Gallery, seed: int) -> int:
    row = np.random.default_rng(seed).normal(size=(1, D)).astype(np.float32)
    row /= np.linalg.norm(row)
    return gallery.enrol(row, np.ones(1, np.float32), origin=f"o{seed}", camera="c", time=1.0).number


def test_others_see_all_changes_at_the_end_or_none(tmp_path: Path) -> None:
    with opened(tmp_path / "g.db") as gallery, opened(tmp_path / "g.db") as other:
        with gallery.exclusive(together=True):
            numbers = [add(gallery, 1)]
            gallery.touch(numbers[0], 2.0)
            numbers.append(add(gallery, 2))
            assert gallery.present() == set(numbers)
            assert len(gallery.search(np.eye(D, dtype=np.float32)[:1], 2)[0][0]) == 2
            assert other.present() == set()
        assert other.present() == set(numbers)
        assert other.get(numbers[0]).sightings == 2


def test_a_durable_change_after_another_is_seen_with_it(tmp_path: Path) -> None:
    with opened(tmp_path / "g.db") as gallery, opened(tmp_path / "g.db") as other:
        first = add(gallery, 1)
        assert other.present() == {first}
        row = np.eye(D, dtype=np.float32)[:1]
        with gallery.exclusive(together=True):
            gallery.add_exemplars(first, row, np.ones(1, np.float32), origin="x", camera="c", time=2.0)
            second = add(gallery, 2)
        assert other.present() == {first, second}
        np.testing.assert_array_equal(other.vectors([first])[1], gallery.vectors([first])[1])


def test_a_change_that_fails_is_undone_alone() -> None:
    with opened(":memory:") as gallery:
        with gallery.exclusive(together=True):
            number = add(gallery, 1)
            with pytest.raises(InputError):
                gallery.merge(number, 99)
        assert gallery.present() == {number}
        assert gallery.get(number).exemplars == 1


def test_the_index_follows_the_file_when_the_commit_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> None:
        monkeypatch.undo()
        connection.execute("ROLLBACK")
        raise StorageError("no space")

    with opened(tmp_path / "g.db") as gallery:
        kept = add(gallery, 1)
        with gallery.file.reading() as rows:
            connection = rows.store.run("SELECT 1").connection
        frame = gallery.exclusive(together=True)
        frame.__enter__()
        add(gallery, 2)
        monkeypatch.setattr("edge_agent.gallery.store.end_transaction", fails)
        with pytest.raises(StorageError):
            frame.__exit__(None, None, None)
        assert gallery.present() == {kept}
        assert set(gallery.search(np.eye(D, dtype=np.float32)[:1], 3)[0][0].tolist()) == {kept, -1}


KILLED = """
import sys
from pathlib import Path
from tests.gallery.test_changes_together import add, opened
with opened(Path(sys.argv[1])) as gallery:
    seed = 0
    while True:
        with gallery.exclusive(together=True):
            made = []
            for _ in range(3):
                seed += 1
                made.append(add(gallery, seed))
                gallery.touch(made[0], float(seed))
        print(*made, flush=True)
"""


def test_what_was_decided_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        published = [process.stdout.readline() for _ in range(5)]
        os.kill(process.pid, signal.SIGKILL)
        published += process.stdout.readlines()
    numbers = [int(word) for line in published if line.endswith("\n") for word in line.split()]
    with opened(path) as gallery:
        present = gallery.present()
        assert set(numbers) <= present
        assert len(present) % 3 == 0  # all changes of a frame, or none


def test_a_block_inside_another_is_committed_with_it(tmp_path: Path) -> None:
    with opened(tmp_path / "g.db") as gallery, opened(tmp_path / "g.db") as other:
        with gallery.exclusive(together=True):
            numbers = set()
            for seed in range(3):
                with gallery.exclusive(together=True):
                    numbers.add(add(gallery, seed))
                assert other.present() == set()
        assert other.present() == numbers


def test_the_log_is_written_once_before_others_learn_of_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def fsync(descriptor: int) -> None:
        written.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        if fail:
            raise OSError(5, "Input/output error")

    fail = False
    monkeypatch.setattr("edge_agent.gallery.log.os.fsync", fsync)
    with opened(tmp_path / "g.db") as gallery:
        log = gallery.file.log
        with gallery.exclusive(together=True):
            number = add(gallery, 1)
            log.settle()
            assert written == []  # nothing is committed yet
        log.settle()
        log.settle()
        assert written == ["g.db-wal"]
        with gallery.exclusive(together=True):
            gallery.touch(number, 2.0)  # a power cut may undo it
        log.settle()
        assert written == ["g.db-wal"]
        with gallery.exclusive(together=True):
            add(gallery, 2)
        fail = True
        with pytest.raises(StorageError, match=r"g\.db"):
            log.settle()
        fail = False
        log.settle()
        assert written == ["g.db-wal"] * 3
