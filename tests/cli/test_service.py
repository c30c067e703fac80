"""systemd/: units that systemd reads without a word, closed as far as they can be; examples that fit.

What they do on a running systemd is in tests/systemd.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from pydantic import BaseModel

from edge_agent.core.config import Settings
from edge_agent.core.errors import ConfigError
from edge_agent.core.loading import load
from edge_agent.page.users import CREDENTIAL
from tests.conftest import REPO

UNITS = REPO / "systemd"
EXAMPLES = sorted((UNITS / "examples").glob("*.conf"))
MOST_EXPOSED = 25
"""Tenths, as `systemd-analyze security --threshold` takes them; 10.0 is a service without any sandbox."""


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units as install.sh lays them out, with a program that is there."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (apt-get install systemd)")
    shutil.copy(UNITS / "edge-agent.service", tmp_path)
    shutil.copy(UNITS / "edge-agent-page.service", tmp_path)
    shutil.copy(UNITS / "edge-agent.service", tmp_path / "edge-agent@.service")
    shutil.copytree(UNITS / "edge-agent@.service.d", tmp_path / "edge-agent@.service.d")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            program = "/opt/edge-agent/current/bin/edge-agent"
            path.write_text(path.read_text().replace(program, shutil.which("true") or "/bin/true"))
    return tmp_path


def verify(unit: Path) -> str:
    """The complaints of systemd about a unit; its exit code is 0 even for unknown keys."""
    done = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stderr + ("" if done.returncode == 0 else f"exit code {done.returncode}")


@pytest.mark.parametrize("unit", ["edge-agent.service", "edge-agent-page.service", "edge-agent@yard.service"])
def test_systemd_verifies_the_units(units: Path, unit: str) -> None:
    assert verify(units / unit) == ""


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_systemd_verifies_the_examples(units: Path, example: Path) -> None:
    folder = units / "edge-agent.service.d"
    folder.mkdir()
    shutil.copy(example, folder)
    reported = verify(units / "edge-agent.service").splitlines()
    # what an example waits for may not be on this machine
    assert [line for line in reported if "nvargus-daemon.service" not in line] == []


def test_a_typo_would_be_noticed(units: Path) -> None:
    unit = units / "edge-agent.service"
    unit.write_text(unit.read_text().replace("ProtectHome=", "ProtectHomes="))
    assert "ProtectHomes" in verify(unit)


@pytest.mark.parametrize("unit", ["edge-agent.service", "edge-agent-page.service"])
def test_the_sandbox_is_closed_as_far_as_it_can_be(units: Path, unit: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager",
         units / unit],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot look at a file (--offline came with 250)")
    assert done.returncode == 0, done.stdout[-400:] + done.stderr


def test_every_line_of_the_unit_has_a_reason() -> None:
    """A comment above each group, and above each thing that stays open."""
    text = (UNITS / "edge-agent.service").read_text()
    below = text.partition("not restricted, and why\n")[2].partition("\n\n")[0].splitlines()
    assert len(below) >= 10
    for comment, setting in zip(below[::2], below[1::2], strict=True):
        assert comment.startswith("# "), setting
        assert re.match(r"\w+=", setting), setting


def test_credentials_of_unit_and_documents_are_the_same() -> None:
    unit = (UNITS / "edge-agent.service").read_text()
    loaded = re.findall(r"^LoadCredential=([\w.]+):/etc/edge-agent/credentials/([\w.]+)$", unit, re.MULTILINE)
    stand_ins = re.findall(r"^SetCredential=([\w.]+):\\n$", unit, re.MULTILINE)
    assert [name for name, _ in loaded] == [file for _, file in loaded] == stand_ins
    instance = (UNITS / "edge-agent@.service.d" / "instance.conf").read_text()
    of_instance = re.findall(
        r"^LoadCredential=([\w.]+):/etc/edge-agent/credentials/%i/", instance, re.MULTILINE
    )
    assert of_instance == stand_ins
    table = (REPO / "docs" / "operations.md").read_text()
    assert all(f"| `{name}` |" in table for name in stand_ins)
    secrets = {
        f"{section}__{key}"
        for section, field in Settings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        for key, setting in field.annotation.model_fields.items()
        if "SecretStr" in str(setting.annotation)
    }
    assert {name for name in stand_ins if "__" in name} == secrets, "the service must get every secret"


def test_the_page_gets_its_own_credentials_and_none_of_the_agent() -> None:
    unit = (UNITS / "edge-agent-page.service").read_text()
    loaded = re.findall(r"^LoadCredential=([\w.]+):/etc/edge-agent/credentials/([\w.]+)$", unit, re.MULTILINE)
    stand_ins = re.findall(r"^SetCredential=([\w.]+):\\n$", unit, re.MULTILINE)
    assert (
        [name for name, _ in loaded] == [file for _, file in loaded] == stand_ins == [CREDENTIAL, "page.key"]
    )
    table = (REPO / "docs" / "operations.md").read_text()
    assert all(f"| `{name}` |" in table for name in stand_ins)


def test_a_credential_that_is_not_there_is_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd 249 passes an empty line for a missing file; settings have precedence over it."""
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "mqtt__password").write_text("\n")
    for name in (
        "mqtt_client.key",
        "kafka__password",
        "kafka_client.key",
        "storage__key",
        "telemetry__http_token",
    ):
        (tmp_path / "credentials" / name).write_text("\n")
    file = tmp_path / "config.toml"
    file.write_text("[mqtt]\nusername = 'gate'\npassword = 'in the file'\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    settings = load(file)
    assert settings.storage.key is settings.telemetry.http_token is None
    password = settings.mqtt.password
    assert password is not None
    assert password.get_secret_value() == "in the file"
    (tmp_path / "credentials" / "mqtt__password").write_text("a credential\n")
    password = load(file).mqtt.password
    assert password is not None
    assert password.get_secret_value() == "a credential"


def test_the_settings_to_begin_with_are_right(tmp_path: Path) -> None:
    for path in (REPO / "packaging" / "config.toml", REPO / "config.example.toml"):
        assert str(load(path).state_dir) == "/var/lib/edge-agent"
    assert load(REPO / "packaging" / "config.toml").sources == ()


def test_settings_that_are_for_others_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user on a device with the service: its folder is closed to him."""
    from edge_agent.core import loading

    if os.geteuid() == 0:
        monkeypatch.setattr(Path, "is_file", _closed)
    else:
        (tmp_path / "closed").mkdir(mode=0o000)
        monkeypatch.setattr(loading, "DEFAULT_CONFIG", tmp_path / "closed" / "config.toml")
    with pytest.raises(ConfigError, match="sudo -u edge-agent"):
        load()


def _closed(path: Path) -> bool:
    raise PermissionError(13, "Permission denied", str(path))
