"""`edge-agent rekey`: encrypt gallery and outbox, decrypt them, or change their key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from edge_agent.cli.arguments import ConfigOption, JsonOption, StateOption, load_settings
from edge_agent.cli.output import print_result, warn_of_exposed


def command(
    old_key: Annotated[
        Path | None, Option(help="File with their present key; omit it where they are not encrypted.")
    ] = None,
    state: StateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Encrypt gallery and outbox with the configured key (storage.key), or decrypt them.

    The agent must be stopped. Nothing is lost; what the old files held is overwritten.
    """
    from edge_agent.agent.databases import rekey
    from edge_agent.core.encryption import database_key, parse_key
    from edge_agent.core.files import read_text

    settings = load_settings(config, state=state)
    warn_of_exposed([] if old_key is None else [old_key])
    old = None if old_key is None else parse_key(read_text(old_key))
    done = rekey(settings, old)
    encrypted = database_key(settings.storage) is not None
    target = "with the key of storage.key" if encrypted else "without a key"
    lines = [f"{path}: {'rewritten' if written else 'already'} {target}" for path, written in done.items()]
    if not lines:
        lines.append(f"{settings.state_dir} contains neither gallery nor outbox")
    print_result({"encrypted": encrypted, "written": done}, lines, as_json=as_json, indent=None)
