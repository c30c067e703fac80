"""Permissions of the state folder, and warnings of secrets that others can read."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge_agent.cli import app
from edge_agent.cli.checks import configuration
from edge_agent.core.loading import load, secret_files, state_folder
from edge_agent.core.private import exposed, is_open, make_private, private_folder


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def write(path: Path, text: str = "x", *, bits: int = 0o644) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(bits)
    return path


@pytest.mark.usefixtures("open_umask")
def test_new_folders_are_private(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    assert state_folder(deep) == deep
    assert [mode(tmp_path / "a"), mode(deep)] == [0o700, 0o700]
    private_folder(deep)
    write(tmp_path / "file")
    with pytest.raises(OSError, match="exists"):
        private_folder(tmp_path / "file")


def test_files_of_earlier_versions_are_mended(tmp_path: Path) -> None:
    state = tmp_path / "state"
    names = ("gallery.db", "gallery.db-wal", "outbox.db.marks", "crops-yard.sqlite", "audit.jsonl")
    files = [write(state / name) for name in names]
    nested = write(state / "engines" / "active.json")
    state.chmod(0o755)
    assert set(make_private(state)) == {*names, "engines", "engines/active.json", "."}
    assert {mode(one) for one in (*files, nested)} == {0o600}
    assert [mode(state), mode(nested.parent)] == [0o700, 0o700]
    assert make_private(state) == []


def test_what_is_not_the_agents_stays(tmp_path: Path) -> None:
    state = tmp_path / "state"
    other = write(tmp_path / "other")
    foreign = write(state / "holiday.jpg")
    state.chmod(0o755)
    (state / "gallery.db").symlink_to(other)
    (state / "engines").symlink_to(tmp_path)
    assert make_private(state) == []
    assert [mode(other), mode(foreign), mode(state)] == [0o644, 0o644, 0o755]
    assert is_open(state)


SECRETS = [
    "[mqtt]\npassword = 'hunter2'\nusername = 'x'",
    "[storage]\nkey = '" + "ab" * 32 + "'",
    "[telemetry]\nmetrics_port = 9100\nhttp_token = 'hunter2hunter2hunter2'",
    "[kafka]\nmechanism = 'PLAIN'\nusername = 'x'\npassword = 'hunter2'",
    "[mqtt]\nbroker = 'mqtts://me:hunter2@192.0.2.1'",
    "[[sources]]\nurl = 'rtsp://me:hunter2@192.0.2.1/s'",
    "[[sources]]\nurl = 'rtsp://192.0.2.1/user=me_password=hunter2'",
    "[[sources]]\nurl = 'http://192.0.2.1/s?x=hunter2hunter2'",
]
HARMLESS = [
    "",
    "[mqtt]\nbroker = 'mqtts://192.0.2.1'",
    "[[sources]]\nurl = 'rtsp://192.0.2.1/cam/realmonitor?channel=1&subtype=0'",
    "[[sources]]\nurl = '/data/clip.mp4'",
]


@pytest.mark.parametrize("text", SECRETS)
def test_a_readable_configuration_with_a_secret_is_reported(tmp_path: Path, text: str) -> None:
    config = write(tmp_path / "my config.toml", text)
    done = CliRunner().invoke(app, ["config", "check", "--config", str(config)])
    assert done.exit_code == 0
    assert f"chmod o= '{config}'" in done.stderr
    assert "hunter2" not in done.output
    [finding] = configuration.secrets(load(config), config)
    assert (finding.state, finding.advice) == ("warning", f"chmod o= '{config}'")
    config.chmod(0o640)  # the group of the service may read it
    assert CliRunner().invoke(app, ["config", "check", "--config", str(config)]).stderr == ""


@pytest.mark.parametrize("text", HARMLESS)
def test_a_readable_configuration_without_a_secret_is_not(tmp_path: Path, text: str) -> None:
    config = write(tmp_path / "config.toml", text)
    assert CliRunner().invoke(app, ["config", "check", "--config", str(config)]).stderr == ""


@pytest.mark.parametrize("variable", ["EDGE_AGENT__MQTT__PASSWORD", "EDGE_AGENT__TELEMETRY__HTTP_TOKEN"])
def test_other_files_with_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    credentials, key = tmp_path / "credentials", write(tmp_path / "key.pem")
    secret = write(credentials / "mqtt__password", "hunter2")
    write(credentials / "unrelated", "hunter2")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    environment = write(tmp_path / "environment", f"{variable}=hunter2\n")
    monkeypatch.setattr("edge_agent.core.loading.ENVIRONMENT_FILES", (environment, tmp_path / "none"))
    settings = load(write(tmp_path / "c.toml", f"[mqtt]\nkey_file = '{key}'"), {"mqtt": {"username": "x"}})
    found = secret_files(settings, tmp_path / "c.toml")
    assert found == [tmp_path / "c.toml", secret, key, environment]
    key.chmod(0o600)
    (tmp_path / "c.toml").chmod(0o600)
    assert list(exposed(found)) == [secret, environment]


def test_the_run_logs_it(tmp_path: Path) -> None:
    text = "[[sources]]\nurl = 'me:hunter2@192.0.2.1/s'\n[mqtt]\nusername = 'x'\npassword = 'hunter2'\n"
    config = write(tmp_path / "c.toml", text)
    command = [
        sys.executable,
        "-m",
        "edge_agent",
        "run",
        "--config",
        str(config),
        "--state",
        str(tmp_path / "s"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert '"event": "secret_readable"' in done.stderr
    assert f"chmod o= {config}" in done.stderr
    assert "hunter2" not in done.stderr
