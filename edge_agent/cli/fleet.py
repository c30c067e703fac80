"""`edge-agent fleet`: take part in a fleet, see how it goes, and erase people at the whole site."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from edge_agent.cli.arguments import ConfigOption, JsonOption, StateOption, YesOption, load_settings
from edge_agent.cli.fleet_access import (
    CaOption,
    CertOption,
    KeyOption,
    PersonId,
    SiteOption,
    StoreOption,
    admin_login,
    agent_status,
    ask_agent,
    complete,
    require_member,
    site_of,
    space_of,
    visit,
)
from edge_agent.cli.fleet_admin import exclude, init, invite
from edge_agent.cli.output import confirm, print_result, say

if TYPE_CHECKING:
    from edge_agent.core.config import Settings

app = typer.Typer(
    no_args_is_help=True,
    help="Share people with the other devices of the site: make the store, join, leave, look, erase.",
)
app.command()(init)

SYNC_S = 60.0
"""Longest wait of `sync` for the agent's exchange."""
_POLL_S = 0.2


@app.command()
def join(
    devices: Annotated[
        list[str] | None,
        Argument(metavar="[DEVICE]...", help="Administrator: devices to admit, by mqtt.device."),
    ] = None,
    invitation: Annotated[
        Path | None, Option("--from", metavar="FILE", help="Device: take this invitation.")
    ] = None,
    store: StoreOption = None,
    site: SiteOption = None,
    host: Annotated[
        str | None,
        Option(metavar="HOST", help="Host name of the server for devices; that of --store by default."),
    ] = None,
    output: Annotated[Path, Option("--output", metavar="FOLDER", help="Where invitations go.")] = Path(),
    certificate: Annotated[
        bool, Option("--certificate", help="The devices log in by certificates; they get no password.")
    ] = False,
    ca_file: CaOption = None,
    cert_file: CertOption = None,
    key_file: KeyOption = None,
    state: StateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Administrator: admit devices, and write an invitation for each. Device, with --from: take one.

    Admitting a device again gives it a new password. Taking an invitation stores the password and the
    authority's certificate, writes section [fleet] of the settings, and tries the login.
    """
    if (invitation is None) == (not devices):
        raise typer.BadParameter("give DEVICE... as administrator, or on the device --from FILE")
    settings = load_settings(config, state=state)
    if invitation is not None:
        from edge_agent.cli.fleet_joining import accept

        accept(invitation, settings, config, as_json=as_json)
        return
    login = admin_login(settings, store, ca_file, cert_file, key_file)
    invite(
        devices or (), login, site_of(settings, site),
        host=host, output=output, certificate=certificate, as_json=as_json,
    )  # fmt: skip


@app.command()
def leave(
    device: Annotated[
        str | None,
        Argument(metavar="[DEVICE]", help="Administrator: exclude this device, e.g. a stolen one."),
    ] = None,
    withdraw: Annotated[
        bool,
        Option("--withdraw", help="Also delete the embeddings that it shared; without, the site keeps them."),
    ] = False,
    keep: Annotated[
        bool,
        Option(
            "--keep", help="Keep people that others shared in this gallery; without, they are erased here."
        ),
    ] = False,
    store: StoreOption = None,
    site: SiteOption = None,
    ca_file: CaOption = None,
    cert_file: CertOption = None,
    key_file: KeyOption = None,
    state: StateOption = None,
    config: ConfigOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Leave the fleet with this device, whose agent must not run; or exclude DEVICE as administrator.

    Names, and whom this device knew first, stay at the site until their time to live. To come back, a device
    has to be admitted again by `fleet join`.
    """
    settings = load_settings(config, state=state)
    if device is not None:
        if keep:
            raise typer.BadParameter("--keep is about this device, and needs no DEVICE")
        login = admin_login(settings, store, ca_file, cert_file, key_file)
        name = site_of(settings, site)
        confirm(f"Exclude {device} from {name}?", yes)
        exclude(login, name, device, withdraw=withdraw, as_json=as_json)
        return
    if store is not None:
        raise typer.BadParameter("with --store, give the DEVICE to exclude")
    from edge_agent.cli.fleet_joining import leave_here

    leave_here(settings, config, withdraw=withdraw, keep=keep, yes=yes, as_json=as_json)


@app.command()
def status(state: StateOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the site, its devices and how far each is, and how this device exchanges changes.

    Exit 1 where the store is not reached, or does not take this device.
    """
    from edge_agent.cli.fleet_report import site_lines, site_values
    from edge_agent.cli.status import fleet_text
    from edge_agent.core.errors import EdgeAgentError

    settings = load_settings(config, state=state)
    if not settings.fleet.enabled:
        off = "off: this device shares nothing (fleet.enabled = false)"
        print_result({"fleet": "off"}, off, as_json=as_json)
        return
    login = require_member(settings)
    running = (agent_status(settings) or {}).get("fleet")
    problem, site = "", None
    try:
        site = complete(visit(settings, login, work=lambda store, _: store.state(), space=space_of(settings)))
    except EdgeAgentError as error:
        problem = str(error)
    values: dict[str, Any] = {
        "fleet": settings.fleet.destination(settings.mqtt.site),
        "device": settings.mqtt.device,
        "agent": running,
        "site": None if site is None else site_values(site),
        "problem": problem or None,
    }
    agent = "this device: no agent runs" if running is None else f"this device: {fleet_text(running)}"
    lines = [] if site is None else site_lines(site, settings.mqtt.device)
    if as_json or not problem:
        print_result(values, [*lines, agent], as_json=as_json)
    else:
        say(agent)
        say(problem, err=True)
    if problem:
        raise typer.Exit(1)


@app.command()
def sync(state: StateOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Exchange all changes with the site now: by the running agent, or without one by itself."""
    settings = load_settings(config, state=state)
    login = require_member(settings)
    began, before = time.time(), (agent_status(settings) or {}).get("fleet")
    if ask_agent(settings, "fleet-sync") is not None:
        values = _agent_exchanged(settings, began, before)
    else:
        from edge_agent.cli.fleet_joining import exchange_alone

        values = exchange_alone(settings, login)
    text = f"everything is exchanged: version {values['mark']} of {settings.mqtt.site} is applied here"
    print_result(values, text, as_json=as_json)


def _agent_exchanged(settings: Settings, began: float, before: dict[str, Any] | None) -> dict[str, Any]:
    """Wait until the running agent has exchanged everything; StoreDown: it tried and cannot.

    `before` is its state before it was asked to: the time until its next attempt only grows when one failed.
    """
    from edge_agent.fleet.store import StoreDown

    deadline, retry_s = time.monotonic() + SYNC_S, (before or {}).get("retry_s") or 0.0
    while True:
        found = (agent_status(settings) or {}).get("fleet")
        if found is None:
            raise StoreDown("the agent stopped meanwhile; its changes are kept: repeat the command")
        if (found["exchanged"] or 0.0) >= began and not found["pending"]:
            return {"mark": found["mark"], "by": "agent"}
        left_s = found["retry_s"] or 0.0
        if left_s > retry_s + _POLL_S and found["link"] in ("waiting", "refused"):
            raise StoreDown(f"{found['problem']}; {found['pending']} change(s) are kept and sent later")
        if time.monotonic() > deadline:
            raise StoreDown(f"not done within {SYNC_S:.0f} s; the agent goes on: edge-agent fleet status")
        retry_s = left_s
        time.sleep(_POLL_S)


@app.command()
def erased(
    person: PersonId,
    state: StateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show whether a person is erased at the site, and which devices have confirmed; exit 1 unless all."""
    from edge_agent.cli.fleet_report import confirmations

    settings = load_settings(config, state=state)
    login = require_member(settings)
    _check_id(person)
    version, devices = complete(
        visit(settings, login, work=lambda store, _: store.erased(person), space=space_of(settings))
    )
    if version is None:
        text = f"{person} is not erased; to erase it at the whole site: edge-agent fleet forget {person}"
        print_result({"id": person, "erased": None, "devices": []}, text, as_json=as_json)
        raise typer.Exit(1)
    found = confirmations(version, devices)
    complete_everywhere = all(one["confirmed"] for one in found["devices"] if not one["left"])
    print_result({"id": person, **found}, lambda: _erased_lines(person, found), as_json=as_json)
    if not complete_everywhere:
        raise typer.Exit(1)


def _erased_lines(person: str, found: dict[str, Any]) -> list[str]:
    from edge_agent.cli.fleet_report import confirmation_lines

    return confirmation_lines(person, found)


@app.command()
def forget(
    person: PersonId,
    state: StateOption = None,
    config: ConfigOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Erase a person at the whole site, also one that this device does not have. This cannot be undone.

    Every device erases the person at its next exchange; `fleet erased ID` shows which have.
    """
    from edge_agent.core.errors import InputError
    from edge_agent.fleet.records import Push
    from edge_agent.gallery import audit

    settings = load_settings(config, state=state)
    login = require_member(settings)
    _check_id(person)
    space = space_of(settings)
    unknown = ""
    try:
        version, _ = complete(visit(settings, login, work=lambda store, _: store.erased(person), space=space))
    except InputError as problem:
        version, unknown = None, str(problem)
    if version is not None:
        text = (
            f"{person} was erased before: edge-agent fleet erased {person} shows which devices have confirmed"
        )
        print_result({"id": person, "version": version}, text, as_json=as_json)
        return
    why = f"{unknown}; a device that is away may bring it. " if unknown else ""
    confirm(f"{why}Erase {person} at all devices of {settings.mqtt.site}?", yes)
    push = Push(forgotten=((person, "request"),))
    result = complete(
        visit(
            settings,
            login,
            work=lambda store, welcome: store.push(push, welcome.version),
            space=space,
        )
    )
    audit.record(settings.state_dir, "fleet-forget", "command line", people=1)
    text = (
        f"{person} is erased at the site; devices follow at their next exchange:"
        f" edge-agent fleet erased {person} shows which have"
    )
    print_result({"id": person, "version": result.version}, text, as_json=as_json)


def _check_id(text: str) -> None:
    from edge_agent.core.errors import InputError
    from edge_agent.core.names import is_id

    if not is_id(text):
        raise InputError(
            f"{text!r} is no id of a person: give p- and 12 characters, as `edge-agent gallery list` shows"
        )
