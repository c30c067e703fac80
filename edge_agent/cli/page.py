"""`edge-agent page`: the operator's page, its users, and links that log in once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from edge_agent.cli.arguments import ConfigOption, StateOption, load_settings
from edge_agent.cli.output import say

if TYPE_CHECKING:
    from edge_agent.core.config import Settings
    from edge_agent.core.page_settings import PageSettings
    from edge_agent.page.users import Role

app = typer.Typer(invoke_without_command=True)

UsersOption = Annotated[
    Path | None,
    Option("--users", metavar="FILE", help="File of the users; page.users_file, or that of the service."),
]
SERVICE_CREDENTIALS = Path("/etc/edge-agent/credentials")


@app.callback()
def serve(
    context: typer.Context,
    port: Annotated[int | None, Option(min=1, max=65535, help="Port; page.port by default.")] = None,
    state: StateOption = None,
    config: ConfigOption = None,
) -> None:
    """Serve the operator's page; set passwords and make links for it.

    It runs until it is stopped. On a terminal it prints a link that logs in once. The page is at
    http://127.0.0.1:8750 unless the settings name another address. From another machine:
    ssh -L 8750:127.0.0.1:8750 DEVICE.
    """
    if context.invoked_subcommand is not None:
        if port is not None or state is not None or config is not None:
            raise typer.BadParameter(f"options belong after `{context.invoked_subcommand}`")
        return
    from edge_agent.cli.page_server import run

    settings = _settings(config, state)
    run(settings, settings.page if port is None else _at_port(settings, port), config)


@app.command()
def password(
    user: Annotated[str, Argument(metavar="USER", help="Login name.")],
    role: Annotated[
        str, Option(help="operator may change people; viewer may only look.", metavar="ROLE")
    ] = "operator",
    remove: Annotated[bool, Option("--remove", help="Remove the user.")] = False,
    users: UsersOption = None,
    state: StateOption = None,
    config: ConfigOption = None,
) -> None:
    """Set the password of a user of the page. It is asked for, or read from standard input (one line)."""
    from edge_agent.core.errors import InputError
    from edge_agent.page.users import ROLES, check_name, hashed, read_users, write_users

    if role not in ROLES:
        raise typer.BadParameter(f"must be {' or '.join(ROLES)}", param_hint="--role")
    check_name(user)
    file = _users_file(_settings(config, state), users, chosen=state is not None)
    known = read_users(file)
    if remove:
        if known.pop(user, None) is None:
            raise InputError(f"{file} has no user {user}")
    else:
        known[user] = hashed(user, _role(role), _ask())
    write_users(file, known)
    say(f"{user} is removed from {file}" if remove else f"{user} may log in as {role}; stored in {file}")
    if file.parent == SERVICE_CREDENTIALS:
        say("apply it with: systemctl try-restart edge-agent-page")


@app.command()
def link(
    role: Annotated[str, Option(help="As of password.", metavar="ROLE")] = "operator",
    state: StateOption = None,
    config: ConfigOption = None,
) -> None:
    """Print a link to the page that logs in once, within ten minutes."""
    from edge_agent.page.users import ROLES, link_address, make_link

    if role not in ROLES:
        raise typer.BadParameter(f"must be {' or '.join(ROLES)}", param_hint="--role")
    settings = _settings(config, state)
    say(link_address(settings.page, make_link(settings.state_dir, _role(role))))


def _role(name: str) -> Role:
    from edge_agent.page.users import ROLES

    return next(role for role in ROLES if role == name)


def _settings(config: Path | None, state: Path | None) -> Settings:
    return load_settings(config, state=state)


def _at_port(settings: Settings, port: int) -> PageSettings:
    return settings.page.model_copy(update={"port": port})


def _users_file(settings: Settings, given: Path | None, *, chosen: bool) -> Path:
    """Return the file of users to change: the given one, that of the service for root, else the state's."""
    import os

    from edge_agent.core.loading import state_folder
    from edge_agent.page.users import CREDENTIAL, USERS_FILE

    if given is not None or settings.page.users_file is not None:
        return given or settings.page.users_file  # type: ignore[return-value]
    if os.geteuid() == 0 and not chosen and SERVICE_CREDENTIALS.is_dir():
        return SERVICE_CREDENTIALS / CREDENTIAL
    return state_folder(settings.state_dir) / USERS_FILE


def _ask() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline(1000).rstrip("\r\n")
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))
