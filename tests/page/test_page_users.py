"""Users, links, sessions and attempts."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path

import pytest

from edge_agent.core.config import Settings
from edge_agent.core.errors import ConfigError, InputError
from edge_agent.core.loading import load
from edge_agent.page.errors import Refused
from edge_agent.page.sessions import MAX_KEYS, MAX_SESSIONS, WINDOW_S, Attempts, Sessions
from edge_agent.page.users import (
    LINK_FILE,
    LINK_S,
    User,
    Users,
    check_name,
    hashed,
    link_address,
    make_link,
    read_users,
    take_link,
    write_users,
)

PASSWORD = "a long enough one"


def test_a_password_is_checked_and_its_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "users.json"
    write_users(path, {"anna": hashed("anna", "viewer", PASSWORD)})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert PASSWORD not in path.read_text()
    users = Users(path)
    found = users.check("anna", PASSWORD)
    assert found is not None
    assert found.role == "viewer"
    assert users.check("anna", PASSWORD + "x") is None
    assert users.check("bert", PASSWORD) is None
    assert users.check("", "") is None


def test_an_unknown_name_takes_as_long_as_a_wrong_password(tmp_path: Path) -> None:
    path = tmp_path / "users.json"
    write_users(path, {"anna": hashed("anna", "viewer", PASSWORD)})
    users = Users(path)

    def spent(name: str) -> float:
        began = time.process_time()
        users.check(name, "wrong one here")
        return time.process_time() - began

    known, unknown = min(spent("anna") for _ in range(3)), min(spent("nobody") for _ in range(3))
    assert 0.5 < known / unknown < 2


def test_a_user_who_changes_is_another(tmp_path: Path) -> None:
    path = tmp_path / "users.json"
    first = hashed("anna", "operator", PASSWORD)
    write_users(path, {"anna": first})
    users = Users(path)
    assert users.has(first)
    write_users(path, {"anna": hashed("anna", "operator", PASSWORD + "!")})
    assert not users.has(first)
    path.unlink()
    assert users.all() == {}


@pytest.mark.parametrize("password", ["short", "", "x" * 201, "aaaaaaaaaaaaa", "operator-one"])
def test_passwords_that_are_refused(password: str) -> None:
    with pytest.raises(InputError):
        hashed("operator-one", "operator", password)


@pytest.mark.parametrize("name", ["", "a b", "<b>", "x" * 33, "-x", "a\n", "ä", "../x", "a:b"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(InputError):
        check_name(name)


@pytest.mark.parametrize(
    "text", ['{"users": []}', '{"users": {"a": {"role": "root", "salt": "", "scrypt": ""}}}', "[]", "{", "{}",
             '{"users": {"a": {"role": "viewer", "salt": "zz", "scrypt": ""}}}', '{"users": {"a": null}}'],
)  # fmt: skip
def test_a_damaged_file_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "users.json"
    path.write_text(text)
    with pytest.raises(InputError):
        read_users(path)


def test_an_entry_without_a_hash_admits_nobody(tmp_path: Path) -> None:
    path = tmp_path / "users.json"
    path.write_text(json.dumps({"users": {"a": {"role": "operator", "salt": "", "scrypt": ""}}}))
    assert Users(path).check("a", "") is None


def test_a_link_works_once_and_only_the_newest(tmp_path: Path) -> None:
    former, token = make_link(tmp_path), make_link(tmp_path, "viewer")
    assert token not in (tmp_path / LINK_FILE).read_text()
    assert take_link(tmp_path, former) is None
    user = take_link(tmp_path, token)
    assert user is not None
    assert user.role == "viewer"
    assert take_link(tmp_path, token) is None


def test_an_old_link_and_one_from_the_future(tmp_path: Path) -> None:
    for until in (time.time() - 1, time.time() + 2 * LINK_S, "soon", None):
        token = make_link(tmp_path)
        path = tmp_path / LINK_FILE
        path.write_text(json.dumps(json.loads(path.read_text()) | {"until": until}))
        assert take_link(tmp_path, token) is None


def test_sessions_end_and_are_bounded() -> None:
    sessions = Sessions(hours=1.0)
    user = User("anna", "viewer")
    tokens = [sessions.begin(user, linked=False)[0] for _ in range(MAX_SESSIONS + 1)]
    assert sessions.get(tokens[0]) is None
    assert sessions.get(tokens[-1]) is not None
    for token in (None, "", "x", tokens[-1] + "x", "\ud800", "x" * 10_000):
        assert sessions.get(token) is None
    short = Sessions(hours=1e-9)
    token, _ = short.begin(user, linked=False)
    time.sleep(0.001)
    assert short.get(token) is None


def test_guesses_of_many_addresses_at_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = Attempts()
    now = [1000.0]
    monkeypatch.setattr("edge_agent.page.sessions.time.monotonic", lambda: now[0])
    for n in range(20):
        attempts.begin(f"10.0.0.{n}", "anna")
    with pytest.raises(Refused):
        attempts.begin("10.0.1.1", "anna")
    attempts.begin("10.0.1.1", "bert")
    now[0] += WINDOW_S + 1
    attempts.begin("10.0.1.1", "anna")
    for n in range(2 * MAX_KEYS):
        attempts.begin(f"10.1.{n // 250}.{n % 250}", f"name {n}")


def test_one_computer_has_many_addresses_of_ipv6() -> None:
    attempts = Attempts()
    for guess in range(5):
        attempts.begin(f"2001:db8::{guess + 1}", f"user {guess}")
        attempts.begin(f"::ffff:192.0.2.{guess + 1}", f"other {guess}")
    with pytest.raises(Refused):
        attempts.begin("2001:db8::99", "anna")
    attempts.succeeded("2001:db8::1", "user 0")
    attempts.begin("2001:db8::99", "anna")


def test_a_success_takes_its_attempt_back() -> None:
    attempts = Attempts()
    for _ in range(50):
        attempts.begin("127.0.0.1", "anna")
        attempts.succeeded("127.0.0.1", "anna")


# --- settings ---------------------------------------------------------------------------------------------


def page(**values: object) -> Settings:
    return load(Path("/dev/null"), {"page": values})


@pytest.mark.parametrize(
    "values",
    [{"address": "0.0.0.0"}, {"address": "192.168.1.5"}, {"address": "::"}, {"cert_file": "a.pem"},
     {"address": "localhost"}, {"hosts": ["http://x"]}, {"hosts": ["x:80"]}, {"hosts": [""]}, {"port": 0},
     {"session_hours": 0}, {"fps": 100}, {"picture_width": 10}],
)  # fmt: skip
def test_settings_that_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        page(**values)


def test_the_address_of_a_link() -> None:
    assert link_address(page().page, "T") == "http://127.0.0.1:8750/#link=T"
    assert link_address(page(address="::1").page, "T") == "http://[::1]:8750/#link=T"
    outside = page(address="0.0.0.0", cert_file="c", key_file="k", hosts=["Gate.example"], users_file="u")
    assert link_address(outside.page, "T") == "https://gate.example:8750/#link=T"
