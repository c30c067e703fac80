"""`edge-agent fleet init`, and what an administrator does with devices: admit and exclude them."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from edge_agent.cli.arguments import ConfigOption, JsonOption, ModelOption, StateOption, load_settings
from edge_agent.cli.fleet_access import (
    CaOption,
    CertOption,
    KeyOption,
    SiteOption,
    StoreOption,
    admin_login,
    complete,
    device_of,
    site_of,
    space_of,
)
from edge_agent.cli.fleet_invitation import Invitation, file_name, role_of
from edge_agent.cli.output import print_result, say
from edge_agent.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_agent.fleet.postgres.connection import Login

_PASSWORD_BYTES = 24


def init(
    store: StoreOption = None,
    site: SiteOption = None,
    space: Annotated[
        str | None, Option(metavar="ID", help="Embedding space, where this machine has another network.")
    ] = None,
    dimension: Annotated[int | None, Option(min=1, max=16_000, help="Length of its embeddings.")] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print the SQL for an empty database, and connect to nothing.")
    ] = False,
    ca_file: CaOption = None,
    cert_file: CertOption = None,
    key_file: KeyOption = None,
    model: ModelOption = None,
    state: StateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the store of a fleet in a database: tables, rights, and a site for the network of this device.

    Run it as administrator of the database, from any machine; again after an update of edge-agent, which
    brings the tables to its version, and where times to live have changed (gallery.ttl_hours). It never
    deletes anything.
    """
    from edge_agent.fleet.postgres import admin
    from edge_agent.gallery.sync import Space

    if (space is None) != (dimension is None):
        raise typer.BadParameter("--space and --dimension belong together: `edge-agent doctor` prints both")
    settings = load_settings(config, state=state, model=model)
    login = None if dry_run else admin_login(settings, store, ca_file, cert_file, key_file)
    wanted = space_of(settings) if space is None or dimension is None else Space(space, dimension)
    hours = settings.gallery.ttl_hours, settings.gallery.enrolled_ttl_hours
    ttl_s, enrolled_ttl_s = (None if one is None else one * 3600 for one in hours)
    new = admin.NewSite(site_of(settings, site), wanted.space, wanted.dimension, ttl_s, enrolled_ttl_s)
    if login is None:
        say(*admin.init_sql(new).rstrip("\n").split("\n"))
        return
    done = complete(admin.init(login, new))
    lines = [
        *done,
        *([] if done else ["everything is there"]),
        f"site {new.site}: {wanted}; people not seen for {_hours(hours[0])} are erased, enrolled ones"
        f" {_hours(hours[1])}",
        f"next: edge-agent fleet join DEVICE... --store {login.address}, with the mqtt.device of each device",
    ]
    print_result({"site": new.site, "space": wanted.space, "done": list(done)}, lines, as_json=as_json)


def _hours(hours: float | None) -> str:
    return "never" if hours is None else f"{hours:g} h"


def invite(
    devices: Sequence[str],
    login: Login,
    site: str,
    *,
    host: str | None,
    output: Path,
    certificate: bool,
    as_json: bool,
) -> None:
    """Admit devices, and write an invitation for each."""
    from edge_agent.core.fleet_settings import FleetSettings
    from edge_agent.core.manifest import write_atomic
    from edge_agent.fleet.postgres import admin

    if not output.is_dir():
        raise ConfigError(f"--output: {output} is no folder; make it first")
    ca = "" if login.ca_file is None else _text(login.ca_file)
    made = []
    for name in dict.fromkeys(map(device_of, devices)):
        role = role_of(site, name)
        address = login.address._replace(role=role, host=host or login.address.host)
        try:  # what the device would refuse is refused here
            FleetSettings(enabled=True, store=str(address), ca_file=login.ca_file)
        except ValueError:
            raise ConfigError(
                "devices on other machines need --ca-file, the authority that signed the certificate of"
                f" {address.host}"
            ) from None
        password = "" if certificate else secrets.token_urlsafe(_PASSWORD_BYTES)
        complete(admin.join(login, site, name, role, password or None))
        path = output / file_name(name)
        write_atomic(path, Invitation(site, name, str(address), password, ca).text().encode(), mode=0o600)
        made.append({"device": name, "role": role, "invitation": str(path)})
    lines = [f"{one['device']}: role {one['role']}, invitation {one['invitation']}" for one in made]
    if certificate:
        lines.append(
            "each role is the common name of its certificate: docs/fleet.md#a-certificate-for-each-device"
        )
    lines.append("on each device: sudo edge-agent fleet join --from FILE")
    if (login.address if host is None else login.address._replace(host=host)).is_loopback:
        lines.append(f"devices on other machines cannot reach {host or login.address.host}: give --host")
    print_result(made, lines, as_json=as_json)


def _text(path: Path) -> str:
    from edge_agent.core.files import read_text

    return read_text(path)


def exclude(login: Login, site: str, device: str, *, withdraw: bool, as_json: bool) -> None:
    """Exclude a device by the rights of an administrator."""
    from edge_agent.fleet.postgres import admin

    exemplars = complete(admin.leave(login, site, device_of(device), withdraw=withdraw))
    what = f"its {exemplars} embedding(s) are deleted" if withdraw else "what it shared stays"
    lines = [
        f"{device} is excluded from {site}: its role cannot log in any more; {what}",
        "what it knows of others stays on it: on the device, run edge-agent fleet leave",
    ]
    print_result({"device": device, "site": site, "withdrawn": exemplars}, lines, as_json=as_json)
