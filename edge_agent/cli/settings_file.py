"""Changes of a settings file by commands: the keys of one section, and nothing else."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path


def name_in_settings(config: Path, section: str, values: Mapping[str, str | bool | None]) -> None:
    """Set keys of a section of a TOML file; those with None are removed.

    The rest of the file stays as it is, with its comments. The file is replaced only by a valid one.
    """
    from tempfile import TemporaryDirectory

    from edge_agent.core.errors import ConfigError
    from edge_agent.core.files import read_text
    from edge_agent.core.loading import load
    from edge_agent.core.manifest import atomic_file
    from edge_agent.core.redaction import MASK
    from edge_agent.core.setting_secrets import SECRET_KEYS

    before = load(config)
    text = _with_values(read_text(config), section, values)
    with TemporaryDirectory() as folder:
        candidate = Path(folder) / config.name
        candidate.write_text(text)
        after = load(candidate)
    wanted = {key: value for key, value in values.items() if value is not None}
    found = getattr(after, section)
    if (
        any(_plain(getattr(found, key)) != str(value) for key, value in wanted.items())
        or after.sources != before.sources
    ):
        texts = {
            key: MASK if (section, key) in SECRET_KEYS else json.dumps(value) for key, value in wanted.items()
        }
        lines = "; ".join(f"{key} = {text}" for key, text in texts.items())
        raise ConfigError(f"{config}: could not be changed; in [{section}], write: {lines}")
    owner = config.stat()
    with atomic_file(config, mode=0o600) as file:
        os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        os.fchmod(file.fileno(), owner.st_mode & 0o777)
        file.write(text.encode())


def _plain(value: object) -> str:
    from pydantic import SecretStr

    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _with_values(text: str, section: str, values: Mapping[str, str | bool | None]) -> str:
    lines = text.splitlines()
    header = re.compile(rf"\s*\[{section}\]\s*(#.*)?")
    start = next((at for at, line in enumerate(lines) if header.fullmatch(line)), None)
    if start is None:
        lines += ["", f"[{section}]"]
        start = len(lines) - 1
    end = next((at for at in range(start + 1, len(lines)) if lines[at].lstrip().startswith("[")), len(lines))
    keys = "|".join(values)
    body = [line for line in lines[start + 1 : end] if not re.match(rf"\s*({keys})\s*=", line)]
    named = [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]
    return "\n".join([*lines[: start + 1], *named, *body, *lines[end:]]) + "\n"
