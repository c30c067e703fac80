"""What `edge-agent fleet` changes on a device: it takes an invitation, leaves, exchanges without an agent."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.cli.fleet_access import complete, require_client, require_member, space_of, visit
from edge_agent.cli.fleet_invitation import read_invitation
from edge_agent.cli.output import confirm, print_result
from edge_agent.cli.page import SERVICE_CREDENTIALS
from edge_agent.core.errors import ConfigError, StorageError
from edge_agent.fleet.store import StoreRefused
from edge_agent.gallery.gallery import GALLERY_FILE
from edge_agent.gallery.sync import Space, owner_lock

if TYPE_CHECKING:
    from edge_agent.cli.fleet_invitation import Invitation
    from edge_agent.core.config import Settings
    from edge_agent.fleet.postgres.connection import Login
    from edge_agent.fleet.postgres.store import PostgresStore
    from edge_agent.fleet.records import Welcome
    from edge_agent.gallery import Gallery

CREDENTIAL = "fleet__password"
CA_FILE = "fleet-ca.pem"
"""Beside the settings file."""


def accept(path: Path, settings: Settings, config: Path | None, *, as_json: bool) -> None:
    """Take an invitation: store its secrets, write the settings, and try the login."""
    from edge_agent.cli.settings_file import name_in_settings
    from edge_agent.core.fleet_settings import parse_store
    from edge_agent.core.loading import config_file, load
    from edge_agent.core.manifest import write_atomic

    require_client()
    invitation = read_invitation(path)
    try:
        address = parse_store(invitation.store)
    except ValueError as problem:
        raise ConfigError(f"{path}: store: {problem}") from None
    file = config_file(config)
    if file is None or not file.is_file():
        raise ConfigError(
            "there is no settings file to write to: make /etc/edge-agent/config.toml, or give --config"
        )
    _check_names(invitation, settings, file)
    secret = _credential(file)
    values: dict[str, str | bool | None] = {"enabled": True, "store": str(address)}
    values |= {"password": None if secret is not None else invitation.password or None}
    if invitation.ca:
        authority = file.absolute().parent / CA_FILE
        write_atomic(authority, invitation.ca.encode(), mode=0o644)
        authority.chmod(0o644)  # public, and read by the user of the service
        values["ca_file"] = str(authority)
    if secret is not None and invitation.password:
        write_atomic(secret, f"{invitation.password}\n".encode(), mode=0o600)
    name_in_settings(file, "fleet", values)
    lines = [f"{file}: section [fleet] is written: {address} for {invitation.device} of {invitation.site}"]
    if secret is not None and invitation.password:
        lines.append(f"the password is stored in {secret}")
    if not invitation.password:
        lines.append(
            "now set fleet.cert_file and fleet.key_file: docs/fleet.md#a-certificate-for-each-device"
        )
        print_result(
            {"device": invitation.device, "store": str(address), "people": None}, lines, as_json=as_json
        )
        return
    after = load(file, {"state_dir": settings.state_dir, "fleet": {"password": invitation.password}})
    people = complete(visit(after, require_member(after), work=_people, space=space_of(after)))
    lines.append(f"the store takes this device; the site has {people} people")
    lines.append(f"start or restart the agent to take part; then delete {path}, which has the password")
    print_result(
        {"device": invitation.device, "store": str(address), "people": people}, lines, as_json=as_json
    )


async def _people(_store: PostgresStore, welcome: Welcome) -> int:
    return welcome.people


def _check_names(invitation: Invitation, settings: Settings, file: Path) -> None:
    own = settings.mqtt.site, settings.mqtt.device
    if own != (invitation.site, invitation.device):
        raise ConfigError(
            f"the invitation is for {invitation.device} of {invitation.site}, and this device is {own[1]} of"
            f" {own[0]}: take the one of this device, or write in [mqtt] of {file}: site ="
            f' "{invitation.site}", device = "{invitation.device}"'
        )


def _credential(file: Path) -> Path | None:
    """Return the file for the password of the service; None: it goes into the settings."""
    from edge_agent.core.loading import DEFAULT_CONFIG

    if os.geteuid() == 0 and file == DEFAULT_CONFIG and SERVICE_CREDENTIALS.is_dir():
        return SERVICE_CREDENTIALS / CREDENTIAL
    return None


def leave_here(
    settings: Settings, config: Path | None, *, withdraw: bool, keep: bool, yes: bool, as_json: bool
) -> None:
    """Leave with this device: at the store first, then in the gallery, then in the settings."""
    from edge_agent.agent.databases import erasure_at_rest
    from edge_agent.cli.gallery_access import BY, open_existing
    from edge_agent.fleet import leaving
    from edge_agent.gallery import audit

    login = require_member(settings)
    site, device = settings.mqtt.site, settings.mqtt.device
    shared = "the embeddings that it shared are deleted there" if withdraw else "what it shared stays there"
    others = "people of other devices stay here" if keep else "people whom only others know are erased here"
    with open_existing(settings) as gallery:
        confirm(f"Leave {site} with {device}? {shared}; {others}.", yes)
        with _alone(settings):
            refused = complete(_leave_store(settings, login, gallery, withdraw=withdraw))
            people = leaving.leave(gallery, keep=keep)
            erasure_at_rest(settings, gallery).run()
    audit.record(settings.state_dir, "fleet-leave", BY, people=people)
    lines = [f"{device} has left {site}; {shared}"]
    if refused:
        lines = [f"{device} has left {site}, here only: the store refuses it ({refused})"]
    if not keep:
        lines.append(f"{people} person(s) whom only other devices knew are erased here")
    lines.append(_switched_off(config))
    result = {"device": device, "site": site, "erased": people, "refused": refused or None}
    print_result(result, lines, as_json=as_json)


async def _leave_store(settings: Settings, login: Login, gallery: Gallery, *, withdraw: bool) -> str:
    """Leave at the store; return why it refuses this device, as one that was excluded before."""
    try:
        space = Space(gallery.space, gallery.dimension)
        await visit(
            settings,
            login,
            space=space,
            work=lambda store, _: store.leave(withdraw=withdraw),
            gallery=gallery,
        )
    except StoreRefused as problem:
        return str(problem)
    return ""


def _switched_off(config: Path | None) -> str:
    from edge_agent.cli.settings_file import name_in_settings
    from edge_agent.core.loading import config_file, load

    file = config_file(config)
    if file is not None and file.is_file():
        name_in_settings(file, "fleet", {"enabled": False})
        if not load(file).fleet.enabled:
            return f"{file}: fleet.enabled = false"
    return "now set fleet.enabled = false where it is set"


def exchange_alone(settings: Settings, login: Login) -> dict[str, Any]:
    """Exchange everything once, while no agent runs."""
    from edge_agent.agent.databases import erasure_at_rest
    from edge_agent.cli.gallery_access import open_existing
    from edge_agent.fleet.postgres.store import PostgresStore
    from edge_agent.fleet.sync import Sync

    async def exchange(gallery: Gallery) -> int:
        store = PostgresStore(login, Space(gallery.space, gallery.dimension), settings.mqtt.device)
        try:
            erase = erasure_at_rest(settings, gallery).run
            one = Sync(gallery, store, settings.mqtt.device, erase=erase)
            await one.connect()
            await one.step()
            await one.step()  # what this device sent is a change of the site, too
        finally:
            await store.close()
        return one.mark

    with open_existing(settings) as gallery, _alone(settings):
        mark = complete(exchange(gallery))
    return {"mark": mark, "by": "command"}


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Keep an agent from starting; StorageError: one runs."""
    lock = owner_lock(settings.state_dir / GALLERY_FILE)
    if not lock.acquire():
        raise StorageError(f"an agent runs on {settings.state_dir} (process {lock.holder()}); stop it first")
    try:
        yield
    finally:
        lock.release()
