"""Gallery and outbox under a key: no readable content, wrong keys refused, keys changed without loss."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from edge_agent.cli import app
from edge_agent.core import encryption
from edge_agent.core.config import GallerySettings
from edge_agent.core.encryption import database_key
from edge_agent.core.errors import ConfigError, EdgeAgentError, StorageError
from edge_agent.core.loading import load
from edge_agent.deliver.copies import COPIES_FILE
from edge_agent.gallery import Gallery
from tests.deliver.deliver_fixtures import outbox_at

KEY, OTHER = b"\x0f" * 32, b"\xab" * 32
NAME = "Ada Lovelace of the ground floor"
ROWS = np.eye(8, dtype=np.float32)
WORD = b"p-secretsecret"


@pytest.fixture(autouse=True)
def sqlcipher() -> None:
    pytest.importorskip("sqlcipher3", reason="extra `encrypt` is not installed")


def fill(state: Path, key: bytes | None) -> None:
    with Gallery(state / "gallery.db", GallerySettings(), space="s", dimension=8, key=key) as gallery:
        gallery.enrol(ROWS[:2], np.ones(2), name=NAME, kind="enrolled", origin="c:1", camera="c", time=1.0)
        gone = gallery.enrol(ROWS[2:3], np.ones(1), origin="c:2", camera="c", time=1.0)
        gallery.merge(1, gone.number)
    with outbox_at(state / "outbox.db", key=key) as outbox:
        for _ in range(20):
            outbox.append(b'{"who":"%b"}' % WORD, "t")


def check(state: Path, key: bytes | None) -> None:
    """Everything is stored, and can be changed."""
    with Gallery(state / "gallery.db", GallerySettings(), space="s", dimension=8, key=key) as gallery:
        assert [person.name for person in gallery.identities()] == [NAME]
        assert gallery.former_ids(1)
        assert gallery.search(ROWS[1:2])[0][0, 0] == 1
        added = gallery.enrol(ROWS[3:4], np.ones(1), origin="c:3", camera="c", time=2.0)
        assert added.number > 2, "a number was given twice"
        gallery.forget(added.number)
    with outbox_at(state / "outbox.db", key=key) as outbox:
        assert outbox.set_aside is None
        before = outbox.depth.rows
        assert before >= 20
        outbox.append(b"{}", "t")
        assert outbox.depth.rows == before + 1


def readable(state: Path) -> bool:
    """Whether any file contains a part of the content."""
    content = b"".join(path.read_bytes() for path in state.iterdir() if path.is_file())
    words = (NAME.encode(), WORD, ROWS[0].tobytes())
    return any(word in content for word in words)


def credentials(monkeypatch: pytest.MonkeyPatch, folder: Path, key: bytes | None) -> None:
    if key is None:
        monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
        return
    folder.mkdir(exist_ok=True)
    (folder / "storage__key").write_text(f"{key.hex()}\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))


def command(*words: object) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, EdgeAgentError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_no_content_is_readable_in_the_files(tmp_path: Path) -> None:
    fill(tmp_path, KEY)
    assert not readable(tmp_path)
    check(tmp_path, KEY)
    plain = tmp_path / "plain"
    plain.mkdir()
    fill(plain, None)
    assert readable(plain), "the look finds nothing where something is"


@pytest.mark.parametrize(
    ("made", "given", "words"),
    [
        (KEY, OTHER, "does not open with this key"),
        (KEY, None, "is encrypted"),
        (None, KEY, "edge-agent rekey"),
    ],
)
def test_a_key_that_does_not_fit_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], made: bytes | None, given: bytes | None, words: str
) -> None:
    fill(tmp_path, made)
    with (
        pytest.raises(StorageError, match=words),
        Gallery(tmp_path / "gallery.db", GallerySettings(), space="s", dimension=8, key=given),
    ):
        pass
    with pytest.raises(StorageError, match="storage__key"), outbox_at(tmp_path / "outbox.db", key=given):
        pass
    assert capfd.readouterr().err == "", "SQLCipher writes to stderr by itself"
    check(tmp_path, made)


def test_an_empty_credential_is_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "storage__key").write_text("\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert database_key(load().storage) is None
    (tmp_path / "storage__key").write_text("no key\n")
    with pytest.raises(ConfigError, match="openssl rand") as caught:
        database_key(load().storage)
    assert "no key" not in str(caught.value)


def test_a_key_without_the_extra_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlcipher3", None)
    with (
        pytest.raises(ConfigError, match=r"pip install '?sqlcipher3"),
        Gallery(tmp_path / "gallery.db", GallerySettings(), space="s", dimension=8, key=KEY),
    ):
        pass


@pytest.mark.parametrize(("old", "new"), [(None, KEY), (KEY, OTHER), (KEY, None)])
def test_rekey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bytes | None, new: bytes | None) -> None:
    state = tmp_path / "state"
    state.mkdir()
    fill(state, old)
    (tmp_path / "old").write_text(KEY.hex())
    words = ["rekey", "--state", state, *(["--old-key", tmp_path / "old"] if old else [])]
    credentials(monkeypatch, tmp_path / "credentials", new)
    assert "rewritten" in command(*words)
    assert "already" in command(*words)
    assert readable(state) is (new is None)
    assert {oct(path.stat().st_mode & 0o777) for path in state.glob("*.db")} == {"0o600"}
    assert sorted(path.name for path in state.iterdir()) == [
        "gallery.db", "gallery.db.lock", "outbox.db", "outbox.db.marks", "outbox.db.reserve",
    ]  # fmt: skip
    assert NAME in command("gallery", "list", "--state", state)
    check(state, new)


def test_rekey_of_copies_for_another_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with outbox_at(tmp_path / COPIES_FILE) as copies:
        copies.append(b"{}", "identity")
    credentials(monkeypatch, tmp_path / "credentials", KEY)
    assert "rewritten" in command("rekey", "--state", tmp_path)
    with pytest.raises(StorageError, match="storage__key"), outbox_at(tmp_path / COPIES_FILE):
        pass
    with outbox_at(tmp_path / COPIES_FILE, key=KEY) as copies:
        assert copies.depth.rows == 1


def test_rekey_with_a_wrong_key_or_a_running_agent_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, KEY)
    credentials(monkeypatch, tmp_path / "credentials", OTHER)
    with pytest.raises(StorageError, match="--old-key"):
        command("rekey", "--state", tmp_path)
    (tmp_path / "old").write_text("cd" * 32)
    with pytest.raises(StorageError, match="neither key"):
        command("rekey", "--state", tmp_path, "--old-key", tmp_path / "old")
    (tmp_path / "old").write_text(KEY.hex())
    with (
        Gallery(tmp_path / "gallery.db", GallerySettings(), space="s", dimension=8, key=KEY, owner=True),
        pytest.raises(StorageError, match="stop it"),
    ):
        command("rekey", "--state", tmp_path, "--old-key", tmp_path / "old")
    check(tmp_path, KEY)


def test_a_kill_while_the_key_is_changed_leaves_the_old_file_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after each step in turn; the next attempt completes it."""
    for step in ("_copy", "sync_folder", "_overwrite"):
        state = tmp_path / step
        state.mkdir()
        fill(state, None)
        with monkeypatch.context() as patched:
            patched.setattr(encryption, step, killed)
            with pytest.raises(Killed):
                encryption.rewrite(state / "gallery.db", None, KEY)
        encryption.rewrite(state / "gallery.db", None, KEY)
        with Gallery(state / "gallery.db", GallerySettings(), space="s", dimension=8, key=KEY) as gallery:
            assert len(gallery) == 1


class Killed(BaseException):
    """Passes through whatever catches errors."""


def killed(*_: object) -> None:
    raise Killed
