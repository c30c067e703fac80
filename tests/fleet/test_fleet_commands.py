"""`edge-agent fleet` as administrators and installers run it, on a real server."""

from __future__ import annotations

import itertools
import json
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from edge_agent.cli import fleet_joining
from edge_agent.cli.fleet import app
from edge_agent.cli.fleet_invitation import Invitation, read_invitation, role_of
from edge_agent.cli.gallery import app as gallery
from edge_agent.core.config import GallerySettings
from edge_agent.core.errors import ConfigError, EdgeAgentError, InputError, StorageError
from edge_agent.fleet.store import StoreDown, StoreRefused
from edge_agent.gallery import Gallery
from edge_agent.gallery.sync import owner_lock
from tests.fleet.server_database import Database

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

D = 8
SPACE = "f7c0a2b41c9d33e0"
_numbers = itertools.count()


def unit(rows: int, seed: int) -> Any:
    drawn = np.random.default_rng(seed).normal(size=(rows, D)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def command(*words: object, answer: str | None = None, ok: bool = True) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words], input=answer)
    if isinstance(result.exception, EdgeAgentError):
        raise result.exception
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert (result.exit_code == 0) is ok, result.output
    return result


@dataclass
class Plant:
    """A site with its administrator, and devices with a settings file each."""

    folder: Path
    database: Database
    site: str = "plant-7"

    def admin(self, *words: object, **more: Any) -> Result:
        address = ["--store", self.database.address, "--site", self.site, "--config", "/dev/null"]
        return command(*words, *address, answer=f"{self.database.password}\n", **more)

    def init(self, *words: object) -> Result:
        return self.admin("init", "--space", SPACE, "--dimension", D, *words)

    def device(self, name: str, seeds: tuple[int, ...] = ()) -> Path:
        """Make a device with a settings file, and people; return its file."""
        state = self.folder / name
        settings = GallerySettings()
        with Gallery(state / "gallery.db", settings, space=SPACE, dimension=D, owner=True) as gallery:
            for seed in seeds:
                gallery.enrol(unit(2, seed), np.full(2, 0.5), origin=f"t{seed}", camera="c", time=1.7e9)
        file = self.folder / f"{name}.toml"
        file.write_text(f'state_dir = "{state}"\n[mqtt]\nsite = "{self.site}"\ndevice = "{name}"  # own\n')
        file.chmod(0o600)
        return file

    def joined(self, name: str, seeds: tuple[int, ...] = ()) -> Path:
        file = self.device(name, seeds)
        self.admin("join", name, "--output", self.folder)
        command("join", "--from", self.folder / f"{name}.fleet.toml", "--config", file)
        return file

    def gallery(self, file: Path) -> Gallery:
        return Gallery.existing(file.with_suffix("") / "gallery.db")

    def ids(self, file: Path) -> list[str]:
        with self.gallery(file) as gallery:
            return [one.id for one in gallery.identities()]


@pytest.fixture
def plant(tmp_path: Path, shared_database: Database) -> Plant:
    found = Plant(tmp_path, shared_database, f"plant-{next(_numbers)}")
    found.init()
    return found


def test_init_states_what_it_did_and_can_be_repeated(tmp_path: Path, database: Database) -> None:
    plant = Plant(tmp_path, database)
    first = plant.init().output
    assert "tables of version 1 created" in first
    assert f"site {plant.site} created" in first
    assert f"site {plant.site}: space {SPACE} ({D} numbers); people not seen for 72 h are erased" in first
    assert "next: edge-agent fleet join" in first
    assert database.password not in first
    again = json.loads(plant.init("--json").output)
    assert again == {"site": plant.site, "space": SPACE, "done": []}
    with pytest.raises(StoreRefused, match="another site"):
        plant.admin("init", "--space", "other", "--dimension", D)


def test_the_printed_sql_makes_the_same_store(tmp_path: Path, database: Database) -> None:
    words = [
        "init",
        "--dry-run",
        "--site",
        "plant-7",
        "--space",
        SPACE,
        "--dimension",
        D,
        "--config",
        "/dev/null",
    ]
    text = command(*words).output
    script = tmp_path / "init.sql"
    known = database.sql("SELECT count(*) FROM pg_roles WHERE rolname = 'edge_agent_device'").strip()
    lines = [line for line in text.split("\n") if known == "0" or not line.startswith("CREATE ROLE")]
    script.write_text("\n".join(lines))
    database.sql(script.read_text())
    done = json.loads(Plant(tmp_path, database).init("--json").output)
    assert done["done"] == []


def test_an_invitation_is_all_that_a_device_needs(plant: Plant) -> None:
    file = plant.device("gate-b")
    shown = plant.admin("join", "gate-b", "yard", "--output", plant.folder).output
    assert f"gate-b: role {plant.site}.gate-b, invitation " in shown
    assert "devices on other machines cannot reach 127.0.0.1: give --host" in shown
    invitation = plant.folder / "gate-b.fleet.toml"
    assert stat.S_IMODE(invitation.stat().st_mode) == 0o600
    found = read_invitation(invitation)
    assert found.password not in shown
    assert (found.site, found.device) == (plant.site, "gate-b")
    taken = command("join", "--from", invitation, "--config", file).output
    assert "the store takes this device; the site has 0 people" in taken
    assert found.password not in taken
    values = tomllib.loads(file.read_text())
    assert values["fleet"] == {"enabled": True, "store": found.store, "password": found.password}
    assert "# own" in file.read_text()
    site = json.loads(command("status", "--config", file, "--json").output)
    assert [(one["device"], one["lag"]) for one in site["site"]["devices"]] == [("gate-b", 0), ("yard", 0)]
    assert site["fleet"] == f"{plant.site}@127.0.0.1:{plant.database.server.port}"


def test_an_invitation_of_another_device_changes_nothing(plant: Plant) -> None:
    file = plant.device("gate-b")
    plant.admin("join", "yard", "--output", plant.folder)
    before = file.read_text()
    with pytest.raises(ConfigError, match=r'write in .mqtt. of .*: site = "plant-\d+", device = "yard"'):
        command("join", "--from", plant.folder / "yard.fleet.toml", "--config", file)
    assert file.read_text() == before


@pytest.mark.parametrize("text", ["", "x", "[a]\n", "site = 1", 'site = "a"\ndevice = "b"\nstore = 3', "\0"])
def test_what_is_no_invitation(plant: Plant, text: str) -> None:
    file = plant.device("gate-b")
    wrong = plant.folder / "wrong.toml"
    wrong.write_text(text)
    with pytest.raises(InputError, match="not an invitation"):
        command("join", "--from", wrong, "--config", file)
    wrong.write_text('site = "plant-7"\ndevice = "gate-b"\nstore = "postgresql://a:hunter2@db/f"\n')
    with pytest.raises(ConfigError, match="must not hold a password") as caught:
        command("join", "--from", wrong, "--config", file)
    assert "hunter2" not in str(caught.value)


def test_names_of_roles_are_short_and_different() -> None:
    assert role_of("plant-7", "gate-b") == "plant-7.gate-b"
    one, other = role_of("s" * 64, "a" * 63), role_of("s" * 64, "a" * 64)
    assert len(one) == len(other) == 63
    assert one != other
    tricky = Invitation("s", "d", "postgresql://x@h/d", 'pass"w\\ord\n', "-----BEGIN\nüñ\n")
    assert tomllib.loads(tricky.text())["password"] == tricky.password


def test_a_person_of_one_device_is_known_to_the_other_and_forgotten_by_both(plant: Plant) -> None:
    one, other = plant.joined("gate-b", (1, 2)), plant.joined("yard")
    assert "everything is exchanged" in command("sync", "--config", one).output
    values = json.loads(command("sync", "--config", other, "--json").output)
    assert values["by"] == "command"
    assert sorted(plant.ids(one)) == sorted(plant.ids(other))
    person = plant.ids(one)[0]
    command("erased", person, "--config", one, ok=False)
    assert "is erased at the site" in command("forget", person, "--config", other, "--yes").output
    assert "was erased before" in command("forget", person, "--config", other, "--yes").output
    shown = command("erased", person, "--config", one, ok=False).output
    assert "0 of 2 device(s) have confirmed" in shown
    command("sync", "--config", one)
    assert "1 of 2" in command("erased", person, "--config", one, ok=False).output
    command("sync", "--config", other)
    found = json.loads(command("erased", person, "--config", one, "--json").output)
    assert [device["confirmed"] for device in found["devices"]] == [True, True]
    assert person not in plant.ids(one) + plant.ids(other)
    assert len(plant.ids(one)) == 1
    audit = (one.with_suffix("") / "audit.jsonl", other.with_suffix("") / "audit.jsonl")
    assert "fleet-forget" in audit[1].read_text()


def test_the_question_names_the_site_where_people_are_erased_too(plant: Plant) -> None:
    joined, alone = plant.joined("gate-c", (1,)), plant.device("kiosk", (1,))
    command("sync", "--config", joined)

    def question(file: Path, *words: object) -> str:
        answered = CliRunner().invoke(
            gallery, ["forget", *map(str, words), "--config", str(file)], input="n\n"
        )
        return answered.output + answered.stderr

    everywhere = f", here and on all devices of the site {plant.site}?"
    assert f"Erase everyone{everywhere}" in question(joined, "--all")
    assert f"{everywhere}" in question(joined, 1)
    assert "Erase everyone?" in question(alone, "--all")
    assert len(plant.ids(joined)) == len(plant.ids(alone)) == 1


def test_an_id_that_the_site_does_not_know_can_be_forgotten_in_advance(plant: Plant) -> None:
    file = plant.joined("gate-b")
    person = "p-abcdefghijkl"
    with pytest.raises(InputError, match="does not know"):
        command("erased", person, "--config", file)
    assert (
        "a device that is away may bring it"
        in command("forget", person, "--config", file, answer="y\n").output
    )
    command("erased", person, "--config", file, ok=False)
    for wrong in ("Ada", "p-", "17", "p-ABCDEFGHIJKL"):
        with pytest.raises(InputError, match="is no id of a person"):
            command("forget", wrong, "--config", file, "--yes")


@pytest.mark.parametrize("keep", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_leaving_drops_people_whom_only_others_know(plant: Plant, keep: bool) -> None:
    one, other = plant.joined("gate-b", (1, 2)), plant.joined("yard", (3,))
    for file in (one, other, one):
        command("sync", "--config", file)
    assert len(plant.ids(one)) == 3
    words = ["--keep"] if keep else []
    text = command("leave", "--config", one, "--yes", *words).output
    assert f"gate-b has left {plant.site}" in text
    assert f"{one}: fleet.enabled = false" in text
    assert len(plant.ids(one)) == (3 if keep else 2)
    with plant.gallery(one) as gallery, gallery.file.reading() as rows:
        assert rows.fleet.device is None
        assert rows.fleet.waiting() == 0
    assert (
        command("status", "--config", one).output
        == "off: this device shares nothing (fleet.enabled = false)\n"
    )
    command("sync", "--config", other)
    assert len(plant.ids(other)) == 3
    shown = json.loads(command("status", "--config", other, "--json").output)["site"]["devices"]
    assert [(row["device"], row["left"]) for row in shown] == [("gate-b", True), ("yard", False)]
    plant.admin("join", "gate-b", "--output", plant.folder)
    command("join", "--from", plant.folder / "gate-b.fleet.toml", "--config", one)
    command("sync", "--config", one)
    assert len(plant.ids(one)) == 3


@pytest.mark.slow
def test_leaving_with_what_was_shared(plant: Plant) -> None:
    one, other = plant.joined("gate-b", (1, 2)), plant.joined("yard", (3,))
    for file in (one, other):
        command("sync", "--config", file)
    command("leave", "--withdraw", "--config", one, "--yes")
    command("sync", "--config", other)
    site = json.loads(command("status", "--config", other, "--json").output)["site"]
    assert (site["people"], site["exemplars"]) == (3, 2)
    with plant.gallery(other) as gallery:
        counts = sorted(one.exemplars for one in gallery.identities())
    assert counts[:2] == [0, 0]


@pytest.mark.slow
def test_a_stolen_device_is_excluded(plant: Plant) -> None:
    one, other = plant.joined("gate-b", (1,)), plant.joined("yard")
    command("sync", "--config", one)
    text = plant.admin("leave", "gate-b", "--withdraw", "--yes").output
    assert "its role cannot log in any more; its 2 embedding(s) are deleted" in text
    with pytest.raises(StoreRefused, match="does not admit this role"):
        command("sync", "--config", one)
    assert "here only: the store refuses it" in command("leave", "--config", one, "--yes").output
    command("sync", "--config", other)
    with pytest.raises(InputError, match="no device nobody"):
        plant.admin("leave", "nobody", "--yes")


def test_an_agent_that_runs_is_not_disturbed(plant: Plant) -> None:
    file = plant.joined("gate-b", (1,))
    lock = owner_lock(file.with_suffix("") / "gallery.db")
    assert lock.acquire()
    try:
        for words in (("sync",), ("leave", "--yes")):
            with pytest.raises(StorageError, match=r"an agent runs on .* stop it first"):
                command(*words, "--config", file)
    finally:
        lock.release()
    assert tomllib.loads(file.read_text())["fleet"]["enabled"]


def test_a_device_of_no_fleet(plant: Plant) -> None:
    file = plant.device("gate-b")
    for words in (("sync",), ("forget", "p-abcdefghijkl"), ("erased", "p-abcdefghijkl"), ("leave",)):
        with pytest.raises(ConfigError, match=r"fleet.enabled is false: .* fleet join --from"):
            command(*words, "--config", file)


def test_the_password_of_the_service_is_a_credential(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    file = plant.device("gate-b")
    plant.admin("join", "gate-b", "--output", plant.folder)
    credentials = plant.folder / "credentials"
    credentials.mkdir()
    monkeypatch.setattr(fleet_joining, "_credential", lambda _: credentials / "fleet__password")
    invitation = plant.folder / "gate-b.fleet.toml"
    text = command("join", "--from", invitation, "--config", file).output
    secret = credentials / "fleet__password"
    assert f"the password is stored in {secret}" in text
    assert secret.read_text().strip() == read_invitation(invitation).password
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert "password" not in tomllib.loads(file.read_text())["fleet"]


def test_faults_of_an_administrator(plant: Plant, tmp_path: Path) -> None:
    base = ("--space", SPACE, "--dimension", D, "--site", plant.site, "--config", "/dev/null")
    store = plant.database.address
    with pytest.raises(ConfigError, match="must not hold a password") as caught:
        command("init", "--store", store.replace("@", ":hunter2@"), *base)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(StoreRefused, match=r"set fleet\.ca_file"):
        command("init", "--store", "postgresql://admin@db.example/fleet", *base, answer="x\n")
    with pytest.raises(StoreRefused, match="password"):
        command("init", "--store", store, *base, answer="wrong\n")
    with pytest.raises(StoreRefused, match="no such database"):
        command("init", "--store", f"{store}x", *base, answer=f"{plant.database.password}\n")
    with pytest.raises(StoreDown, match="cannot be reached"):
        command("init", "--store", "postgresql://a@127.0.0.1:9/f", *base, answer="x\n")
    with pytest.raises(ConfigError, match="1 to 64 characters"):
        plant.admin("join", "Gate A", "--output", plant.folder)
    with pytest.raises(ConfigError, match="no folder"):
        plant.admin("join", "gate-b", "--output", tmp_path / "none")
    with pytest.raises(ConfigError, match="need --ca-file"):
        plant.admin("join", "gate-b", "--output", tmp_path, "--host", "store.plant")
    with pytest.raises(InputError, match="there is no site nowhere"):
        command(
            "join", "gate-b", "--store", store, "--site", "nowhere", "--config", "/dev/null",
            "--output", tmp_path, answer=f"{plant.database.password}\n",
        )  # fmt: skip
    for words in (("join",), ("init",), ("leave", "--store", store), ("join", "a", "--from", "f")):
        result = CliRunner().invoke(app, list(words))
        assert result.exit_code in (1, 2)
        assert not list(tmp_path.glob("*.fleet.toml"))
