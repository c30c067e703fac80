"""The form of the log for each kind of stream."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from edge_agent.core import logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def logged(stream, **options) -> str:
    logs.configure("info", stream, **options)
    structlog.get_logger("test").warning("happened", camera="yard")
    return stream.getvalue()


def test_a_terminal_gets_text():
    line = logged(Terminal())
    assert "happened" in line
    assert "{" not in line


def test_a_stream_that_takes_nothing_ends_nothing():
    reading, writing = os.pipe()
    os.close(reading)
    for number in (os.open("/dev/full", os.O_WRONLY), writing):
        stream = os.fdopen(number, "w", buffering=1)
        logs.configure("info", stream)
        for _ in range(3):
            structlog.get_logger("test").error("happened", camera="yard")
        with contextlib.suppress(OSError):
            stream.close()
        structlog.get_logger("test").error("happened", camera="yard")


@pytest.mark.parametrize("form", ["auto", "json"])
def test_a_pipe_gets_json_without_the_priority(form):
    assert json.loads(logged(io.StringIO(), form=form))["camera"] == "yard"


def test_each_form_can_be_demanded():
    assert logged(io.StringIO(), form="journald").startswith("<4>{")
    text = logged(io.StringIO(), form="text")
    assert "happened" in text
    assert "\x1b" not in text, "colours are for terminals"
    assert json.loads(logged(Terminal(), form="json"))["event"] == "happened"


def test_the_stream_of_the_journal_gets_priorities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with (tmp_path / "journal").open("w+") as stream:
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        logs.configure("info", stream)
        structlog.get_logger("test").error("happened")
        stream.seek(0)
        assert stream.read().startswith("<3>{")
    with (tmp_path / "elsewhere").open("w+") as stream:  # redirected by the service's own command
        logs.configure("info", stream)
        structlog.get_logger("test").error("happened")
        stream.seek(0)
        assert stream.read().startswith("{")
