"""Settings of the fleet: the address of the store, encryption, names; and what may be shown of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edge_agent.agent.preflight import all_problems
from edge_agent.core.config import Settings
from edge_agent.core.errors import ConfigError
from edge_agent.core.fleet_settings import FleetSettings, StoreAddress, parse_store
from edge_agent.core.loading import load
from edge_agent.core.redaction import redact
from edge_agent.core.setting_secrets import secrets_of, shown

NAMES = {"site": "plant-7", "device": "gate-b"}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("postgresql://plant.gate@db.example:6543/fleet", ("plant.gate", "db.example", 6543, "fleet")),
        ("postgres://gate-b@192.0.2.7/fleet", ("gate-b", "192.0.2.7", 5432, "fleet")),
        ("postgresql://g@[2001:db8::1]:5433/f", ("g", "2001:db8::1", 5433, "f")),
    ],
)
def test_the_form_of_an_address(text: str, address: tuple[str, str, int, str]) -> None:
    found = parse_store(text)
    assert found == StoreAddress(*address)
    assert parse_store(str(found)) == found


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("postgresql://gate:hunter2@db/fleet", "credential file fleet__password"),
        ("postgresql://gate:hun/ter2@db/fleet", "credential file fleet__password"),
        ("postgresql://gate:hunter2@db/fleet?sslmode=disable", "credential file fleet__password"),
        ("postgresql://gate@db/fleet?sslmode=disable", "without parameters"),
        ("postgresql://gate@db/fleet?password=hunter2", "without parameters"),
        ("db.example/hunter2", "postgresql://ROLE@HOST:PORT/DATABASE"),
        ("postgresql://db.example/hunter2", "postgresql://ROLE@HOST:PORT/DATABASE"),
        ("postgresql://gate@db:0/hunter2", "postgresql://ROLE@HOST:PORT/DATABASE"),
        ("postgresql://gate@db:70000/hunter2", "postgresql://ROLE@HOST:PORT/DATABASE"),
        ("postgresql://gate@a,b/hunter2", "postgresql://ROLE@HOST:PORT/DATABASE"),
        ("mysql://gate@db/hunter2", "postgresql://ROLE@HOST:PORT/DATABASE"),
        ("", "postgresql://ROLE@HOST:PORT/DATABASE"),
    ],
)
def test_a_wrong_address_is_refused_and_not_repeated(text: str, remedy: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"[fleet]\nstore = {text!r}\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: fleet.store: ")
    assert remedy in str(caught.value)
    assert "hun" not in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_an_error(text: str) -> None:
    for one in (text, f"postgresql://{text}", f"postgresql://me@{text}/db", f"postgresql://{text}@h/db"):
        try:
            address = parse_store(one)
        except ValueError:
            continue
        assert parse_store(str(address)) == address


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"enabled": True}, "enabled needs store"),
        ({"store": "postgresql://g@db.example/f"}, "db.example is another machine: set ca_file"),
        ({"store": "postgresql://g@127.example.org/f"}, "is another machine"),
        ({"store": "postgresql://g@10.0.0.1/f", "cert_file": "c", "key_file": "k"}, "needs ca_file"),
        ({"store": "postgresql://g@localhost/f", "ca_file": "a", "key_file": "k"}, "belong together"),
    ],
)
def test_what_does_not_fit_together_is_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        FleetSettings.model_validate(values)


def test_what_fits_together() -> None:
    here = FleetSettings(enabled=True, store="postgresql://g@127.0.0.1/f")
    assert here.address is not None
    assert here.address.authority == "127.0.0.1:5432"
    FleetSettings(enabled=True, store="postgresql://g@[::1]/f")
    files = {"ca_file": "ca.pem", "cert_file": "c.pem", "key_file": "k.pem"}
    FleetSettings.model_validate({"enabled": True, "store": "postgresql://g@db.example/f", **files})


def test_a_device_of_a_fleet_has_its_own_name() -> None:
    fleet = {"enabled": True, "store": "postgresql://g@127.0.0.1/f"}
    with pytest.raises(ValidationError, match="are those of an example"):
        Settings.model_validate({"fleet": fleet, "mqtt": {"site": "plant-1", "device": "gate-a"}})
    assert Settings.model_validate({"fleet": fleet, "mqtt": NAMES}).fleet.enabled


def test_nothing_is_shared_unless_it_is_asked_for() -> None:
    assert not Settings().fleet.enabled
    store = Settings.model_validate({"fleet": {"store": "postgresql://g@127.0.0.1/f"}})
    assert not store.fleet.enabled


def test_what_is_shown_of_the_fleet() -> None:
    store = "postgresql://gate-role@store.example:5432/fleet"
    fleet = {"enabled": True, "store": store, "password": "hunter2", "ca_file": "ca.pem"}
    settings = Settings.model_validate({"fleet": fleet, "mqtt": NAMES})
    assert "hunter2" in secrets_of(settings)
    assert "hunter2" not in str(shown(settings)) + repr(settings)
    assert redact(f"lost {store}: timeout") == "lost postgresql://***@store.example:5432/fleet: timeout"
    assert "hunter2" not in redact("cannot reach postgresql://gate:hunter2@store.example/fleet, retrying")


def test_files_host_and_client_library_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("ca_file", "cert_file", "key_file")
    fleet = {name: tmp_path / f"{name}.pem" for name in names}
    store = "postgresql://g@no-such-host.invalid/f"
    values = {"fleet": {"enabled": True, "store": store, **fleet}, "mqtt": NAMES}
    found = [str(one) for one in all_problems(Settings.model_validate(values))]
    assert [text.partition(":")[0] for text in found] == [*(f"fleet.{name}" for name in names), "fleet.store"]
    assert "no-such-host.invalid" in found[-1]
    values["fleet"]["enabled"] = False
    assert list(all_problems(Settings.model_validate(values))) == []
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    here = {"fleet": {"enabled": True, "store": "postgresql://g@127.0.0.1/f"}, "mqtt": NAMES}
    (text,) = [str(one) for one in all_problems(Settings.model_validate(here))]
    assert text.startswith("fleet.enabled needs asyncpg: ")
    assert "pip install" in text
