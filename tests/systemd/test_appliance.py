"""The service on a real systemd: installed, ready, watched, killed, upgraded, removed. Run: pytest -m systemd

Everything is real but for the board: Debian 12 and its systemd in a container, install.sh with a folder of
wheels and no network, a mosquitto outside that wants a password, people who walk through a folder of crops.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.test_agent import PEOPLE, Listener, pictures, put, wait_for
from tests.conftest import REPO, Mosquitto, find_free_port, mosquitto_binary
from tests.systemd import container as containers
from tests.systemd.container import CannotMake, Container

__all__ = ["pictures"]  # a fixture

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(900)]

USER, PASSWORD = "gate-a", "open sesame"
SOURCE, CROPS, CONFIG = "/usr/src/edge-agent", "/srv/crops", "/etc/edge-agent/config.toml"
INSTALL = f"{SOURCE}/install.sh --system --wheels /srv/wheels"
PARTS = ("edge_agent", "engines", "packaging", "systemd", "install.sh", "pyproject.toml", "README.md",
         "LICENSE", "NOTICE")  # fmt: skip

BEGAN = int(time.time()) - 5400  # Unix seconds: who was seen long ago would have expired

CALIBRATE = '''"""Stand-in."""
import typer
from pathlib import Path
def command(config: Path = typer.Option(...)) -> None:
    """Stand-in."""
    from edge_agent.core.loading import load
    print("calibrated for", load(config).state_dir)
'''


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """On 127.0.0.1 of this machine, for one user with a password."""
    folder = tmp_path_factory.mktemp("broker")
    port = find_free_port()
    if shutil.which("mosquitto_passwd") is None:
        pytest.skip("mosquitto_passwd is not installed (apt-get install mosquitto)")
    subprocess.run(["mosquitto_passwd", "-b", "-c", folder / "users", USER, PASSWORD], check=True)
    path = folder / "mosquitto.conf"
    path.write_text(
        f"listener {port} 127.0.0.1\npassword_file {folder}/users\npersistence true\n"
        f"persistence_location {folder}/\nuser root\n"
    )
    found = Mosquitto(mosquitto_binary(), path, port)
    found.start()
    yield found
    found.stop()


@contextlib.contextmanager
def machine(folder: Path, *, stand_in: bool = False) -> Iterator[Container]:
    """A bare machine with this source and the wheels.

    Args:
        folder: for its layer.
        stand_in: calibrate, which makes engines, is replaced by a command that only reads the settings.
    """
    try:
        wheels = containers.wheels()
        with containers.running(folder) as found:
            copy_source(found, SOURCE, stand_in=stand_in)
            shutil.copytree(wheels, found.root / "srv" / "wheels")
            yield found
    except CannotMake as problem:
        pytest.skip(f"no container here: {problem}")


def copy_source(machine: Container, place: str, *, stand_in: bool = False) -> Path:
    target = machine.root / place.lstrip("/")
    target.mkdir(parents=True)
    for part in PARTS:
        if (REPO / part).is_dir():
            shutil.copytree(REPO / part, target / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPO / part, target / part)
    if stand_in:
        (target / "edge_agent" / "cli" / "calibrate.py").write_text(CALIBRATE)
    return target


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def settings(broker: Mosquitto, **more: str) -> str:
    lines = [
        'state_dir = "/var/lib/edge-agent"', f'log_level = "{more.get("log_level", "info")}"',
        "[[sources]]", f'url = "crops:{CROPS}"', 'id = "yard"', "once = false", "poll_seconds = 0.1",
        "settle_seconds = 0.0",
        "[engine]", "threads = 1",
        "[telemetry]", "interval_s = 1.0",
        "[mqtt]", 'site = "lab"', 'device = "dev1"', f'broker = "{broker.url}"', f'username = "{USER}"',
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory, broker: Mosquitto) -> Iterator[Container]:
    """A machine on which the agent was installed, given settings, and started."""
    with machine(tmp_path_factory.mktemp("appliance")) as found:
        found.write("/srv/before", files(found, "/"))
        reported = found.run(INSTALL, 600)
        assert "no camera yet" in reported
        assert "nothing is missing" in reported
        found.run("systemctl start edge-agent")  # as a boot would: without a camera that is no failure
        assert shown(found, "ActiveState") == {"ActiveState": "inactive"}
        (found.root / CROPS.lstrip("/")).mkdir(parents=True)
        found.write(CONFIG, settings(broker), 0o640)
        found.run(f"chgrp edge-agent {CONFIG}")
        found.write("/etc/edge-agent/credentials/mqtt__password", f"{PASSWORD}\n", 0o600)
        found.write(
            "/etc/systemd/system/edge-agent.service.d/test.conf", "[Service]\nWatchdogSec=10\nRestartSec=1\n"
        )
        found.run("systemctl daemon-reload && systemctl start edge-agent")
        yield found


def files(machine: Container, *folders: str, form: str = "%p") -> str:
    """The files in `folders` of a machine, without those that a running system and tests write."""
    places = " ".join(folders)
    leave = [
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "var/log",
        "var/tmp",
        "srv",
        "usr/src",
        "var/lib/systemd",
        "root",
        "etc/ld.so.cache",
    ]
    unwanted = " -o ".join(f"-path /{name}" for name in leave)
    return machine.run(f"find {places} -xdev \\( {unwanted} \\) -prune -o -printf '{form}\\n' | sort")


def shown(machine: Container, *names: str) -> dict[str, str]:
    lines = machine.run(f"systemctl show edge-agent --property={','.join(names)}").splitlines()
    return dict(line.split("=", 1) for line in lines)  # type: ignore[misc]


def journal(machine: Container) -> list[dict[str, Any]]:
    """The log of the agent."""
    lines = machine.run("journalctl -u edge-agent -o cat --no-pager").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def logged(machine: Container, event: str) -> list[dict[str, Any]]:
    return [line for line in journal(machine) if line["event"] == event]


def active(machine: Container) -> bool:
    return shown(machine, "ActiveState", "SubState") == {"ActiveState": "active", "SubState": "running"}


def walk(machine: Container, pictures: dict[int, list[bytes]], start: int, *people: int) -> None:
    """People walk past, `start` seconds after an hour and a half ago; their tracks are numbered by that."""
    put(
        machine.root / CROPS.lstrip("/"),
        pictures,
        BEGAN + start,
        {start + person: person for person in people},
    )


@pytest.fixture
def listener(broker: Mosquitto) -> Iterator[Listener]:
    found = Listener(broker.port, user=(USER, PASSWORD))
    yield found
    found.close()


def identities(machine: Container) -> list[str]:
    reported = machine.run("sudo -u edge-agent edge-agent gallery list --json")
    return sorted(person["id"] for person in json.loads(reported))


def waiting_events(machine: Container) -> int:
    """Rows of the outbox, of a copy: the agent holds the database for itself."""
    folder = machine.root / "var" / "lib" / "edge-agent"
    with tempfile.TemporaryDirectory() as scratch:
        for path in folder.glob("outbox*"):
            shutil.copy(path, scratch)
        databases = [path for path in Path(scratch).iterdir() if path.suffix == ".db"]
        with contextlib.closing(sqlite3.connect(databases[0])) as copy:
            return int(copy.execute("SELECT count(*) FROM event").fetchone()[0])


# ---- the tests build on each other's machine, and leave the service running


def test_it_is_ready_and_people_are_recognised(
    appliance: Container, listener: Listener, pictures: dict[int, list[bytes]]
) -> None:
    assert active(appliance)
    assert shown(appliance, "Type", "StatusText", "NotifyAccess")["StatusText"]
    assert len(logged(appliance, "started")) == 1
    walk(appliance, pictures, 1000, *range(PEOPLE))
    walk(appliance, pictures, 2000, 1, 3)
    wait_for("matches", lambda: len(listener.of("identity/matched")) >= 2, 120)
    enrolled = {event["data"]["identity_id"] for event in listener.of("identity/enrolled")}
    assert len(enrolled) == PEOPLE
    assert {event["data"]["identity_id"] for event in listener.of("identity/matched")} <= enrolled
    assert set(identities(appliance)) == enrolled


def test_secrets_and_state_are_for_the_service_alone(appliance: Container) -> None:
    secret = "/run/credentials/edge-agent.service/mqtt__password"
    assert appliance.run(f"stat -c '%a %U' {secret}").split() in (
        ["400", "edge-agent"],
        ["440", "edge-agent"],
    )
    for path in (
        secret,
        CONFIG,
        "/etc/edge-agent/credentials/mqtt__password",
        "/var/lib/edge-agent/gallery.db",
    ):
        appliance.run(f"test -s {path}")
        refused = appliance.attempt(f"setpriv --reuid nobody --regid nogroup --clear-groups cat {path}")
        assert (refused.returncode, "denied" in refused.stdout) == (1, True), path
    own = "/etc/edge-agent/credentials/mqtt__password"
    assert appliance.attempt(f"sudo -u edge-agent cat {own}").returncode == 1
    modes = appliance.run("stat -c '%a %U:%G' /var/lib/edge-agent /etc/edge-agent/config.toml").splitlines()
    assert modes == ["700 edge-agent:edge-agent", "640 root:edge-agent"]
    pid = shown(appliance, "MainPID")["MainPID"]
    seen = appliance.run(
        f"tr '\\0' '\\n' </proc/{pid}/environ; tr '\\0' ' ' </proc/{pid}/cmdline; journalctl"
    )
    assert PASSWORD not in seen
    groups = appliance.run("id -nG edge-agent").split()
    assert {"video", "render"} <= set(groups)


def test_the_sandbox_holds(appliance: Container) -> None:
    pid = shown(appliance, "MainPID")["MainPID"]
    status = dict(re.findall(r"^(\w+):\s+(\S+)", appliance.run(f"cat /proc/{pid}/status"), re.MULTILINE))
    assert (int(status["CapEff"], 16), int(status["CapBnd"], 16)) == (0, 0)
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    mounts = appliance.run(f"cat /proc/{pid}/mountinfo")
    root = next(line for line in mounts.splitlines() if line.split()[4] == "/")
    assert "ro" in root.split()[5].split(",")
    assert appliance.run(f"cat /proc/{pid}/limits | grep core").split()[4:6] == ["0", "0"]


def test_reload_takes_over_what_may_change(appliance: Container, broker: Mosquitto) -> None:
    pid = shown(appliance, "MainPID")
    appliance.write(CONFIG, settings(broker, log_level="debug"), 0o640)
    appliance.run(f"chgrp edge-agent {CONFIG} && systemctl reload edge-agent")
    wait_for("the reload", lambda: logged(appliance, "settings_reloaded"))
    assert logged(appliance, "settings_reloaded")[-1]["applied"] == ["log_level"]
    appliance.write(CONFIG, settings(broker) + "nonsense = 1\n", 0o640)
    appliance.run(f"chgrp edge-agent {CONFIG} && systemctl reload edge-agent")
    wait_for("the refusal", lambda: logged(appliance, "reload_refused"))
    appliance.write(CONFIG, settings(broker), 0o640)
    appliance.run(f"chgrp edge-agent {CONFIG} && systemctl reload edge-agent")
    wait_for("the third", lambda: len(logged(appliance, "settings_reloaded")) == 2)
    wait_for("it to be active", lambda: active(appliance))
    assert shown(appliance, "MainPID") == pid


def test_after_a_kill_it_restarts_and_recognises_all_people(
    appliance: Container, listener: Listener, pictures: dict[int, list[bytes]]
) -> None:
    known, before = identities(appliance), shown(appliance, "MainPID", "NRestarts")
    appliance.run(f"kill -KILL {before['MainPID']}")
    wait_for(
        "a restart", lambda: int(shown(appliance, "NRestarts")["NRestarts"]) == int(before["NRestarts"]) + 1
    )
    wait_for("it to be ready", lambda: active(appliance))
    walk(appliance, pictures, 3000, 0, 2)
    wait_for("matches", lambda: len(listener.of("identity/matched")) >= 2, 120)
    assert {event["data"]["identity_id"] for event in listener.of("identity/matched")} <= set(known)
    assert identities(appliance) == known


def test_a_stuck_process_is_ended_by_the_watchdog_and_started_again(appliance: Container) -> None:
    before = shown(appliance, "MainPID", "NRestarts")
    appliance.run(f"kill -STOP {before['MainPID']}")
    wait_for(
        "a restart", lambda: int(shown(appliance, "NRestarts")["NRestarts"]) > int(before["NRestarts"]), 150
    )
    wait_for("it to be ready", lambda: active(appliance))
    assert "Watchdog timeout" in appliance.run("journalctl -u edge-agent -o cat --no-pager")
    assert shown(appliance, "MainPID") != before["MainPID"]


def test_after_a_reboot_it_runs_by_itself(appliance: Container) -> None:
    known = identities(appliance)
    appliance.reboot()
    wait_for("it to be ready", lambda: active(appliance), 120)
    assert identities(appliance) == known


WATCHED = (
    "/opt /usr/local /etc/edge-agent /etc/systemd /etc/sysusers.d /etc/tmpfiles.d /etc/passwd /etc/group"
)


def test_a_second_run_changes_nothing(appliance: Container) -> None:
    form = "%p %i %C@ %M %U %G"
    before, pid = files(appliance, WATCHED, form=form), shown(appliance, "MainPID")
    reported = appliance.run(INSTALL, 600)
    assert "is complete" in reported
    assert "the service runs" in reported
    assert files(appliance, WATCHED, form=form) == before
    assert shown(appliance, "MainPID") == pid


def test_an_upgrade_keeps_gallery_and_outbox(
    appliance: Container, broker: Mosquitto, pictures: dict[int, list[bytes]]
) -> None:
    """To another version; the events of an outage, which lie in the outbox, come after it."""
    known, former = identities(appliance), appliance.run("readlink /opt/edge-agent/current").strip()
    broker.stop()
    walk(appliance, pictures, 4000, 0, 1, 4)
    wait_for("events on the disk", lambda: waiting_events(appliance) >= 3, 120)
    place = "/usr/src/next"
    change(
        copy_source(appliance, place) / "edge_agent" / "__init__.py",
        '__version__ = "0.1.0"',
        '__version__ = "0.1.1"',
    )
    reported = appliance.run(f"{place}/install.sh --upgrade --wheels /srv/wheels", 600)
    assert "starting the service" in reported
    assert active(appliance)
    now = appliance.run("readlink /opt/edge-agent/current").strip()
    assert "/0.1.1-" in now
    assert appliance.run("edge-agent --version").strip() == "edge-agent 0.1.1"
    assert appliance.run("ls /opt/edge-agent/releases").split() == [Path(former).name, Path(now).name]
    broker.start()
    late = Listener(broker.port, user=(USER, PASSWORD))
    try:
        wait_for("the events of the outage", lambda: len(late.of("identity/matched")) >= 3, 120)
        assert {event["data"]["identity_id"] for event in late.of("identity/matched")} <= set(known)
    finally:
        late.close()
    assert identities(appliance) == known


def test_a_release_that_does_not_start_gives_way_to_the_former_one(appliance: Container) -> None:
    before = appliance.run("readlink /opt/edge-agent/current")
    place = "/usr/src/broken"
    source = copy_source(appliance, place)
    daemon = source / "edge_agent" / "agent" / "daemon.py"
    daemon.write_text("raise RuntimeError('this release is broken')\n")
    change(source / "systemd" / "edge-agent.service", "StartLimitBurst=15", "StartLimitBurst=2")
    done = appliance.attempt(f"{place}/install.sh --upgrade --wheels /srv/wheels", 600)
    assert done.returncode == 1
    assert "this release is broken" in done.stdout
    assert "runs again" in done.stdout
    assert "failed while starting the service" in done.stdout
    assert appliance.run("readlink /opt/edge-agent/current") == before
    assert active(appliance)
    assert "StartLimitBurst=15" in appliance.run("cat /usr/local/lib/systemd/system/edge-agent.service")


def test_an_interrupted_install_affects_nothing_running_and_is_continued(appliance: Container) -> None:
    place = "/usr/src/again"
    change(
        copy_source(appliance, place) / "edge_agent" / "__init__.py",
        '__version__ = "0.1.0"',
        '__version__ = "0.1.2"',
    )
    before, pid = appliance.run("readlink /opt/edge-agent/current"), shown(appliance, "MainPID")
    command = f"{place}/install.sh --upgrade --wheels /srv/wheels"
    begun = f"setsid --wait bash -c 'echo $$ >/run/install.pid; exec {command}'"
    with appliance.start(begun, stderr=subprocess.PIPE) as process:
        for line in process.stderr or ():
            if "installing edge-agent" in line:
                break
        time.sleep(2)  # so that pip is at it
        appliance.run("kill -KILL -- -$(cat /run/install.pid)")
    assert appliance.run("readlink /opt/edge-agent/current") == before
    assert shown(appliance, "MainPID") == pid
    failed = appliance.attempt(command.replace("/srv/wheels", "/srv"), 600)
    assert failed.returncode == 1
    assert "failed while installing edge-agent" in failed.stdout
    assert f"what is installed is {Path(before.strip()).name}" in failed.stdout
    reported = appliance.run(command, 600)
    assert "making the environment" not in reported
    assert "/0.1.2-" in appliance.run("readlink /opt/edge-agent/current")
    assert active(appliance)


def test_backup_and_restore_as_documented(appliance: Container) -> None:
    known = identities(appliance)
    text = (REPO / "docs" / "operations.md").read_text()
    section = text.partition("## Backup and restore")[2].partition("\n## ")[0]
    backup, restore = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[:2]
    assert known
    appliance.run(f"set -e; {backup}")
    appliance.run("sudo -u edge-agent edge-agent gallery forget --all --yes")
    assert identities(appliance) == []
    appliance.run(f"set -e; {restore}")
    assert identities(appliance) == known
    assert active(appliance)


def test_a_second_instance(appliance: Container, broker: Mosquitto, listener: Listener) -> None:
    other = settings(broker).replace('device = "dev1"', 'device = "dev2"').replace(CROPS, "/srv/other")
    (appliance.root / "srv" / "other").mkdir()
    appliance.write("/etc/edge-agent/yard.toml", other, 0o640)
    appliance.write("/etc/edge-agent/credentials/yard/mqtt__password", f"{PASSWORD}\n", 0o600)
    appliance.run("chgrp edge-agent /etc/edge-agent/yard.toml && systemctl enable --now edge-agent@yard")
    assert active(appliance)
    wait_for("its status", lambda: any("/dev2/" in topic for topic, _ in listener.messages))
    appliance.run("test -f /var/lib/edge-agent/instances/yard/gallery.db")
    assert appliance.run("systemctl is-active edge-agent@yard").strip() == "active"


def test_uninstall_keeps_what_it_prints_and_purge_nothing(appliance: Container) -> None:
    before = set((appliance.root / "srv" / "before").read_text().splitlines())
    pid = shown(appliance, "MainPID")["MainPID"]
    reported = appliance.run(f"{SOURCE}/install.sh --uninstall", 120)
    assert "kept: /etc/edge-agent, /var/lib/edge-agent" in reported
    assert not Path(f"{appliance.root}/opt/edge-agent").exists()
    assert appliance.attempt(f"test -d /proc/{pid}").returncode == 1
    assert "edge-agent" not in appliance.run("systemctl list-units --all --plain --no-legend --type=service")
    kept = set(files(appliance, "/").splitlines()) - before
    allowed = ("/etc/edge-agent", "/var/lib/edge-agent", "/etc/systemd/system/edge-agent.service.d",
               "/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-", "/etc/.pwd.lock")  # fmt: skip
    assert [path for path in sorted(kept) if not path.startswith(allowed)] == []
    assert appliance.run("id -un edge-agent").strip() == "edge-agent"
    appliance.run(f"{SOURCE}/install.sh --uninstall --purge", 120)
    left = set(files(appliance, "/").splitlines()) - before
    assert [path for path in sorted(left) if not path.startswith(allowed[3:])] == []
    assert appliance.attempt("id edge-agent").returncode == 1
    assert "edge-agent" not in appliance.run("cat /etc/passwd /etc/group")
