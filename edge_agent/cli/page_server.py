"""What `edge-agent page` and `edge-agent demo --page` start."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.cli.output import say
from edge_agent.core.errors import ConfigError

STOP_S = 10.0
"""Longest wait for the end of a page beside a demo."""

if TYPE_CHECKING:
    from edge_agent.core.config import Settings
    from edge_agent.core.page_settings import PageSettings


def run(settings: Settings, page: PageSettings, config: Path | None) -> None:
    """Serve the page of a state folder until SIGINT or SIGTERM.

    ConfigError: a package, the certificate, the port, or a user is missing.
    """
    require_page()
    import asyncio

    from edge_agent.core.loading import config_file, state_folder
    from edge_agent.core.logs import configure
    from edge_agent.core.setting_secrets import secrets_of
    from edge_agent.health.systemd import Notifier
    from edge_agent.page.app import Page, make_app
    from edge_agent.page.link import AgentLink
    from edge_agent.page.server import check_tls, listen, serve
    from edge_agent.page.users import Users

    configure(settings.log_level, form=settings.log_format, secrets=secrets_of(settings))
    state = state_folder(settings.state_dir)
    users = Users(users_file(settings))
    check_tls(page)
    if not users.all() and not page.is_local:
        raise ConfigError(
            f"page.address {page.address} needs a login: set a password with `edge-agent page password NAME`"
        )
    listening = listen(page)
    notifier = Notifier.from_environment()

    def ready() -> None:
        notifier.ready()
        if sys.stdout.isatty():
            _welcome(page, state)

    def make() -> object:
        is_service = "INVOCATION_ID" in os.environ
        return make_app(
            Page(page, AgentLink(state), users, config_file(config), settings.storage, is_service)
        )

    async def main() -> None:
        await serve(make, page, listening, ready)  # type: ignore[arg-type]

    asyncio.run(main())


@contextmanager
def page_beside(state: Path, show: Callable[[str], None]) -> Iterator[None]:
    """Serve the page of a state folder by another process; `show` is called with a link that logs in once."""
    require_page()
    import socket
    import subprocess

    from edge_agent.core.page_settings import PageSettings
    from edge_agent.page.users import link_address, make_link

    with socket.socket() as probe:
        page = PageSettings()
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((page.address, page.port))
        except OSError:
            probe.bind((page.address, 0))
        page = PageSettings(port=probe.getsockname()[1])
    words = [sys.executable, "-m", "edge_agent", "page", "--config", os.devnull]
    words += ["--state", str(state), "--port", str(page.port)]
    quiet = os.environ | {"EDGE_AGENT__LOG_LEVEL": "warning"}
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=quiet)  # noqa: S603 - itself
    try:
        show(link_address(page, make_link(state)))
        yield
    finally:
        process.terminate()
        process.wait(STOP_S)


def _welcome(page: PageSettings, state: Path) -> None:
    from edge_agent.page.users import link_address, make_link

    say(
        "the page runs; Ctrl-C stops it. This link logs in once, within ten minutes:",
        "",
        f"  {link_address(page, make_link(state))}",
        "",
    )


def users_file(settings: Settings) -> Path:
    """Return the file of users that the page reads."""
    from edge_agent.page.users import CREDENTIAL, USERS_FILE

    if settings.page.users_file is not None:
        return settings.page.users_file
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if credentials and (found := Path(credentials) / CREDENTIAL).is_file() and found.stat().st_size > 1:
        return found
    return settings.state_dir / USERS_FILE


def require_page() -> None:
    """Raise ConfigError where the packages of the page are not installed."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        from edge_agent.core.distribution import install_command

        raise ConfigError(f"the page needs further packages: {install_command('page')}") from error
