"""Settings: precedence, refusals that help, secrets, the example and the reference."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.agent.status import fingerprint
from edge_agent.core import loading
from edge_agent.core.config import Settings
from edge_agent.core.errors import ConfigError
from edge_agent.core.loading import load
from edge_agent.core.reloading import changes
from edge_agent.core.setting_secrets import shown
from tests.conftest import REPO
from tests.core.test_files import KINDS, make


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("stat_dir = 'x'", "stat_dir", "state_dir"),
        ("[identify]\nthreshhold = 0.4", "identify.threshhold", "threshold"),
        ("[mqtt]\npasswrd = 'x'", "mqtt.passwrd", "password"),
        ("[[sources]]\nurl = 'a'\nfsp = 1", "sources.0.fsp", "fps"),
    ],
)
def test_an_unknown_key_names_the_nearest(tmp_path: Path, text: str, key: str, near: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert repr(key) in str(caught.value)
    assert f"did you mean {near!r}" in str(caught.value)


def test_several_faults_are_reported_together(tmp_path: Path) -> None:
    path = write(tmp_path, "[gallery]\ncapacity = 0\n[mqtt]\nsite = 'Not An Id'\nnosuch = 1\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    text = str(caught.value)
    assert len(text.splitlines()) == 3
    assert "gallery.capacity" in text
    assert "mqtt.site" in text


@pytest.mark.parametrize(
    ("text", "part"), [("a = [", "not valid TOML"), ("[gallery]\ncapacity = 'many'", "valid integer")]
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, part: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=part) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {"missing", "dangling"}])
def test_a_file_of_another_kind_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = make(kind, tmp_path / "config.toml")
    with pytest.raises(ConfigError, match="configuration: cannot read") as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"a = " + b"{a=" * 100_000, "nested too deeply"),
        (bytes(range(256)) * 8, "not UTF-8 text"),
        (b"\x00" * 100, "not valid TOML"),
        (b"x = " + b"9" * 10_000, "not valid TOML"),
        (b"#" * (2 << 20), "larger than 1 MiB"),
    ],
)
def test_hostile_content_is_one_error(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=part):
        load(path)


@given(st.binary(max_size=300))
def test_any_bytes_are_settings_or_one_error(content: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(content)
        file.flush()
        with contextlib.suppress(ConfigError):
            load(Path(file.name))


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbf[gallery]\ncapacity = 7\n")
    assert load(path).gallery.capacity == 7


@pytest.mark.parametrize("kind", KINDS)
def test_credentials_of_another_kind_hang_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    make(kind, tmp_path / "mqtt__password")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with contextlib.suppress(ConfigError):
        assert load(None).mqtt.password is None


def test_a_credential_that_is_not_text_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mqtt__password").write_bytes(b"pass\xe9")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(ConfigError, match=r"mqtt__password: it is not UTF-8"):
        load(None)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration file"):
        load(tmp_path / "none.toml")


def test_two_sources_with_one_id(tmp_path: Path) -> None:
    path = write(tmp_path, "[[sources]]\nid = 'a'\nurl = 'x'\n[[sources]]\nid = 'a'\nurl = 'y'\n")
    with pytest.raises(ConfigError, match="settings: two sources have the id 'a'"):
        load(path)


def test_command_line_over_environment_over_secret_over_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "[mqtt]\nsite = 'file'\ndevice = 'file'\nusername = 'file'\npassword = 'file'\n")
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "mqtt__password").write_text("from-credential\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    monkeypatch.setenv("EDGE_AGENT__MQTT__SITE", "environment")
    monkeypatch.setenv("EDGE_AGENT__MQTT__DEVICE", "environment")
    settings = load(path, {"mqtt": {"device": "option"}})
    assert settings.mqtt.username == "file"
    assert settings.mqtt.site == "environment"
    assert settings.mqtt.device == "option"
    assert settings.mqtt.password is not None
    assert settings.mqtt.password.get_secret_value() == "from-credential"


def test_a_variable_of_no_section_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_AGENT__MQT__BROKER", "mqtt://user:secret@192.0.2.1")
    with pytest.raises(ConfigError, match=r"EDGE_AGENT__MQT__BROKER.*did you mean 'mqtt'") as caught:
        load()
    assert "secret" not in str(caught.value)


def test_a_credential_of_no_section_names_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mqt__password").write_text("secret")
    (tmp_path / "somebody-elses").write_text("secret")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(ConfigError, match=r"mqt__password.*did you mean 'mqtt'"):
        load()
    (tmp_path / "mqt__password").rename(tmp_path / "mqtt__passwrd")
    with pytest.raises(ConfigError, match=r"mqtt.passwrd.*did you mean 'password'"):
        load()
    (tmp_path / "mqtt__passwrd").rename(tmp_path / "mqtt__password")
    assert load().mqtt.password is not None


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "[[sources]]\nurl = 'rtsp://viewer:hun/ter2hunter2@192.0.2.1/s?password=hunter2'\n"
        "[mqtt]\nbroker = 'mqtt://me:hunter2@192.0.2.2'\nusername = 'me'\npassword = 'hunter2'\n",
    )
    settings = load(path)
    assert "hunter2" not in str(shown(settings))
    assert "hunter2" not in repr(settings.mqtt)


def test_the_fingerprint_changes_with_the_settings(tmp_path: Path) -> None:
    one = load(write(tmp_path, "[gallery]\ncapacity = 5\n"))
    two = load(write(tmp_path, "[gallery]\ncapacity = 6\n"))
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint(one) == fingerprint(load(None, {"gallery": {"capacity": 5}}))


def test_changes_list_the_settings_that_need_a_restart(tmp_path: Path) -> None:
    old = load(write(tmp_path, ""))
    new = load(write(tmp_path, "log_level = 'debug'\n[identify]\nmargin = 0.1\n[gallery]\ncapacity = 7\n"))
    assert changes(old, new) == (["identify.margin", "log_level"], ["gallery.capacity"])


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().gallery.capacity = 3


def test_the_example_is_right() -> None:
    settings = load(REPO / "config.example.toml")
    assert [source.id for source in settings.sources] == ["entrance", "yard"]


def test_the_reference_matches_the_code() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent", "config", "reference"],
        capture_output=True,
        text=True,
        check=True,
    )
    written = (REPO / "docs" / "configuration.md").read_text()
    assert done.stdout.strip() in written, "run: edge-agent config reference, and put it into the document"


def test_every_field_has_a_description() -> None:
    def fields(model: type) -> None:
        for name, field in model.model_fields.items():
            inner = field.annotation
            if hasattr(inner, "model_fields"):
                fields(inner)
            else:
                assert field.description, f"{model.__name__}.{name} has no description"

    fields(Settings)


def test_the_null_device_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "DEFAULT_CONFIG", tmp_path / "config.toml")
    (tmp_path / "config.toml").write_text('log_level = "debug"')
    assert loading.load(Path(os.devnull)).log_level == "info"
    assert loading.load().log_level == "debug"


@pytest.mark.parametrize(
    "key", ["rtsp://me:Qz7xLeak@cam/s", "/user=admin_password=Qz7xLeak", "me:Qz7xLeak@cam", "a\nQz7xLeak"]
)
@pytest.mark.parametrize("table", ["[[sources]]", "[mqtt]", "[detector]", ""])
def test_an_address_in_the_place_of_a_key_is_not_shown(tmp_path: Path, key: str, table: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"{table}\n{json.dumps(key)} = 1\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert "Qz7xLeak" not in str(caught.value)
    assert "***" in str(caught.value)
