"""A gallery file in which another program has written: a clear error, or the commands work."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from edge_agent.cli import app
from edge_agent.core.config import GallerySettings
from edge_agent.core.errors import EdgeAgentError, StorageError
from edge_agent.gallery.gallery import Gallery

D = 4
COLUMNS = {
    "identity": ("id", "name", "kind", "created", "last_seen", "expires", "ttl", "seen", "sightings",
                 "revision", "number"),
    "exemplar": ("vector", "quality", "origin", "camera", "time", "number"),
    "former": ("id", "number"),
    "meta": ("value", "key"),
    "fact": ("value", "key"),
}  # fmt: skip
CELLS = [(table, column) for table, columns in COLUMNS.items() for column in columns]
WRONG: list[Any] = [
    "text", "\x1b]0;x\x07", "[/red]", b"blob", b"", "", None, -1, 0, 1.5, 1e300, float("inf"), 2**62,
    "9" * 1_000, "{", "[" * 50_000, "x" * 1_000_000,
]  # fmt: skip
COMMANDS = (
    ("list",), ("list", "--json"), ("show", "1"), ("show", "Ada"), ("stats",), ("name", "1", "Bob"),
    ("keep", "1", "--hours", "5"), ("forget", "1", "--yes"),
)  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder whose gallery has a row in every table."""
    folder = tmp_path_factory.mktemp("good")
    with Gallery(folder / "gallery.db", GallerySettings(), space="s", dimension=D) as gallery:
        for name, row in (("Ada", [1, 0, 0, 0]), ("Eve", [0, 1, 0, 0]), ("Sue", [0, 0, 1, 0])):
            gallery.enrol(
                np.array([row], np.float32), np.array([0.5]), name=name, origin="s:cam:1", camera="cam",
                time=1.7e9,
            )  # fmt: skip
        gallery.merge(1, 3)
        gallery.facts.set("site_scores", {"pairs": {"#1|#2": 0.3}})
    return folder


def changed(good: Path, target: Path, statement: str, values: tuple[Any, ...] = ()) -> bool:
    """Copy the state folder and change its gallery; False where SQLite itself refuses the change."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(good, target)
    connection = sqlite3.connect(target / "gallery.db")
    try:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute(statement, values)
        connection.commit()
    except (sqlite3.IntegrityError, OverflowError):
        return False
    finally:
        connection.close()
    return True


def run(folder: Path, *command: str) -> str:
    """Run a gallery command; return its error, or "" where it has none."""
    verb, *rest = command
    done = CliRunner().invoke(app, ["gallery", verb, "--state", str(folder), *rest])
    assert all(line.isprintable() for line in done.stdout.split("\n"))
    if isinstance(done.exception, EdgeAgentError):
        message = str(done.exception)
        assert len(message.split("\n")) == 1
        return message
    assert done.exception is None or done.exit_code == 0, done.exception
    return ""


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(
    st.sampled_from(CELLS),
    st.sampled_from(WRONG) | st.integers(-(2**63), 2**63 - 1) | st.binary() | st.text("a\x1b\n\u202e"),
    st.sampled_from(COMMANDS),
)
def test_any_value_in_any_cell(
    good: Path, tmp_path: Path, cell: tuple[str, str], value: Any, command: tuple[str, ...]
) -> None:
    table, column = cell
    where = "number = 1" if table in {"identity", "exemplar"} else "true"
    if changed(good, tmp_path / "state", f"UPDATE {table} SET {column} = ? WHERE {where}", (value,)):
        run(tmp_path / "state", *command)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER UPDATE ON identity BEGIN DELETE FROM identity; END",
        "CREATE VIEW v AS SELECT 1",
        "DROP TABLE exemplar",
        "ALTER TABLE identity DROP COLUMN sightings",
        "UPDATE identity SET name = CAST(x'ff80' AS TEXT) WHERE number = 1",
        "UPDATE exemplar SET vector = x'0000c07f0000c07f0000c07f0000c07f'",
        "UPDATE exemplar SET vector = x'00'",
        "UPDATE meta SET value = 5 WHERE key = 'space'",
        "UPDATE meta SET value = 1000000000 WHERE key = 'dimension'",
        "UPDATE meta SET value = 'many' WHERE key = 'capacity'",
        "UPDATE identity SET created = 'then'",
    ],
)
def test_content_of_another_program_is_named(good: Path, tmp_path: Path, statement: str) -> None:
    assert changed(good, tmp_path / "state", statement)
    assert "gallery.db is damaged or of another kind" in run(tmp_path / "state", "list")


@pytest.mark.parametrize("value", [float("inf"), 1e300, -1e300])
def test_a_time_that_is_none_is_shown_and_the_person_can_be_forgotten(
    good: Path, tmp_path: Path, value: float
) -> None:
    """An earlier version imported such values: the file is not damaged."""
    state = tmp_path / "state"
    assert changed(good, state, "UPDATE identity SET last_seen = ?, expires = ?", (value, value))
    for command in COMMANDS:
        assert run(state, *command) == ""


@pytest.mark.parametrize(
    "who", ["9" * 30, "9" * 5_000, "-1", "\udcff", "\x1b", "a" * 100_000, "0", "²", "p-"]
)
def test_nobody_is_known_by_any_text(good: Path, tmp_path: Path, who: str) -> None:
    shutil.copytree(good, tmp_path / "state")
    for verb in ("show", "forget"):
        message = run(tmp_path / "state", verb, "--", who)
        assert "no identity is known as" in message
        assert len(message) < 500


def test_a_healthy_file_opens(good: Path) -> None:
    with Gallery.existing(good / "gallery.db") as gallery:
        assert len(gallery) == 2
    with pytest.raises(StorageError, match="no gallery"):
        Gallery.existing(good / "missing.db")
