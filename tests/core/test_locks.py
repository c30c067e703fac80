"""Locks between processes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from edge_agent.core.errors import StorageError
from edge_agent.core.locks import FileLock


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    assert not second.acquire()
    assert second.holder() == str(os.getpid())
    first.release()
    first.release()
    assert second.acquire()
    second.release()


def test_waiting_is_announced(tmp_path: Path) -> None:
    first = FileLock(tmp_path / "lock")
    with FileLock(tmp_path / "lock").held(lambda: pytest.fail("the lock is free")):
        pass
    assert first.acquire()
    waiting = threading.Event()
    threading.Thread(target=lambda: (waiting.wait(10), first.release())).start()
    with FileLock(tmp_path / "lock").held(waiting.set):
        assert waiting.is_set()
        assert not first.acquire()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "none" / "lock")
    assert lock.holder() == "unknown"
    with pytest.raises(StorageError, match=r"cannot lock .*none"):
        lock.acquire()
