"""What the commands of `edge-agent fleet` share: logins, the gallery, and calls with an end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer import Argument, Option

from edge_agent.core.errors import ConfigError, InputError, StorageError

if TYPE_CHECKING:
    from edge_agent.core.config import Settings
    from edge_agent.fleet.postgres.connection import Login
    from edge_agent.fleet.postgres.store import PostgresStore
    from edge_agent.fleet.records import Welcome
    from edge_agent.gallery import Gallery
    from edge_agent.gallery.sync import Space

T = TypeVar("T")

StoreOption = Annotated[
    str | None,
    Option(
        "--store",
        metavar="ADDRESS",
        help="Store and role of the administrator: postgresql://ADMIN@HOST:PORT/DATABASE. The password is"
        " asked for, or read from standard input (one line, empty for none).",
    ),
]
PersonId = Annotated[str, Argument(metavar="ID", help="Id of a person, p-...")]
SiteOption = Annotated[str | None, Option("--site", help="Name of the site; mqtt.site by default.")]
CaOption = Annotated[
    Path | None,
    Option(
        "--ca-file", metavar="PEM", help="Authority of the server's certificate; fleet.ca_file by default."
    ),
]
CertOption = Annotated[
    Path | None, Option("--cert-file", metavar="PEM", help="Certificate of the administrator.")
]
KeyOption = Annotated[
    Path | None,
    Option("--key-file", metavar="PEM", help="Key of that certificate; no password is asked for."),
]
AGENT_S = 5.0
"""Longest wait for an answer of the running agent."""


def admin_login(
    settings: Settings, store: str | None, ca: Path | None, cert: Path | None, key: Path | None
) -> Login:
    """Return the login of an administrator; ConfigError: the address is missing or wrong."""
    from edge_agent.core.fleet_settings import parse_store
    from edge_agent.fleet.postgres.connection import Login

    require_client()
    if store is None:
        raise typer.BadParameter("give the administrator's --store postgresql://ADMIN@HOST:PORT/DATABASE")
    if (cert is None) != (key is None):
        raise typer.BadParameter("--cert-file and --key-file belong together")
    try:
        address = parse_store(store)
    except ValueError as problem:
        # The advice is for a device; an administrator is asked for the password.
        advice = str(problem).partition(", and put")[0]
        raise ConfigError(f"--store: {advice}") from None
    ca = ca or settings.fleet.ca_file
    password = None if cert is not None else _ask(f"Password of {address.role} at {address.authority}")
    return Login(address, password, ca, cert, key)


def _ask(question: str) -> str | None:
    if not sys.stdin.isatty():
        return sys.stdin.readline(1000).rstrip("\r\n") or None
    return str(typer.prompt(question, hide_input=True, default="", show_default=False)) or None


def require_client() -> None:
    """ConfigError: the client library of PostgreSQL is not installed."""
    from importlib.util import find_spec

    if find_spec("asyncpg") is None:
        from edge_agent.core.distribution import install_command

        raise ConfigError(f"the fleet needs asyncpg: {install_command('fleet')}")


def require_member(settings: Settings) -> Login:
    """Return the login of this device; ConfigError: it takes part in no fleet."""
    from edge_agent.fleet.postgres.connection import Login

    fleet = settings.fleet
    if not fleet.enabled or fleet.address is None:
        raise ConfigError(
            "fleet.enabled is false: this device shares nothing; it takes part by"
            " edge-agent fleet join --from FILE"
        )
    require_client()
    password = None if fleet.password is None else fleet.password.get_secret_value()
    return Login(fleet.address, password, fleet.ca_file, fleet.cert_file, fleet.key_file)


def site_of(settings: Settings, site: str | None) -> str:
    """Return the name of the site; ConfigError: it has not the form of one."""
    from pydantic import TypeAdapter, ValidationError

    from edge_agent.core.setting_types import Id

    return _checked(TypeAdapter(Id), site, "--site", ValidationError) if site else settings.mqtt.site


def device_of(name: str) -> str:
    """Return the name of a device; ConfigError: it has not the form of one."""
    from pydantic import TypeAdapter, ValidationError

    from edge_agent.core.setting_types import Id

    return _checked(TypeAdapter(Id), name, f"device {name!r}", ValidationError)


def _checked(form: Any, text: str, what: str, wrong: type[Exception]) -> str:  # noqa: ANN401  a TypeAdapter
    try:
        return str(form.validate_python(text))
    except wrong:
        raise ConfigError(f"{what}: must be 1 to 64 characters of a-z, 0-9, _ and -") from None


def space_of(settings: Settings) -> Space:
    """Return the embedding space of this device: that of its gallery, else that of its network."""
    from edge_agent.gallery.gallery import GALLERY_FILE
    from edge_agent.gallery.sync import Space

    if (settings.state_dir / GALLERY_FILE).is_file():
        from edge_agent.cli.gallery_access import open_existing

        try:
            gallery = open_existing(settings)
        except StorageError:  # never completed
            pass
        else:
            return Space(gallery.space, gallery.dimension)
    from edge_agent.cli.checks import configuration

    info, findings = configuration.model(settings)
    if info is None:
        raise ConfigError(findings[0].found)
    return Space(info.space, info.dimension)


def complete(work: Awaitable[T]) -> T:
    """Run a coroutine to its end; every call of the store has a deadline of its own."""

    async def run() -> T:
        return await work

    return asyncio.run(run())


async def visit(
    settings: Settings,
    login: Login,
    work: Callable[[PostgresStore, Welcome], Awaitable[T]],
    *,
    space: Space,
    gallery: Gallery | None = None,
) -> T:
    """Greet the store as this device, and do some work. The exchange of a running agent goes on beside it."""
    from edge_agent.fleet.postgres.store import PostgresStore

    mark, receipts = 0, list[str]()
    if gallery is not None:
        with gallery.file.reading() as rows:
            mark, receipts = rows.site.mark, rows.site.receipts
    store = PostgresStore(login, space, settings.mqtt.device)
    try:
        return await work(store, await store.hello(mark, receipts))
    finally:
        await store.close()


def ask_agent(settings: Settings, op: str) -> dict[str, Any] | None:
    """Ask the running agent to do something; None: none runs. InputError: it does not answer, or refuses."""
    import socket

    from edge_agent.core.local_socket import PAGE_SOCKET, BadMessage, pack, receive, short_name

    path = settings.state_dir / PAGE_SOCKET
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as client:
            client.settimeout(AGENT_S)
            with short_name(path) as name:
                client.connect(name)
            client.sendall(pack({"op": op}))
            found = receive(client)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except (OSError, BadMessage) as problem:
        raise InputError(f"the agent on {path.parent} does not answer: {problem}") from None
    values = {} if found is None else found[0]
    if values.get("ok") is not True:
        raise InputError(f"the agent on {path.parent}: {values.get('error') or 'no answer'}")
    return values


def agent_status(settings: Settings) -> dict[str, Any] | None:
    """Return the status of the running agent; None: none runs."""
    from edge_agent.health.inquiry import SOCKET_NAME, read_status

    path = settings.state_dir / SOCKET_NAME
    if not path.exists():
        return None
    try:
        return read_status(path)
    except InputError as problem:
        if "no agent runs" in str(problem):
            return None
        raise
