"""The invitation of a device to a fleet: a file that an administrator makes and the device takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_agent.core.errors import InputError

_TEXT = """\
# Invitation of {device} to the fleet of {site}. On the device:
#   sudo edge-agent fleet join --from {name}
# {advice}
"""
_ADVICE = {
    True: "It contains a password: delete it once it is used.",
    False: "The device needs its certificate and key as well: docs/fleet.md.",
}
"""By whether there is a password."""
_LONGEST_ROLE = 63


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a device needs; `password` is "" where it logs in by a certificate, `ca` where it needs none."""

    site: str
    device: str
    store: str
    password: str = ""
    ca: str = ""

    def text(self) -> str:
        """Return the file, TOML."""
        head = _TEXT.format(
            device=self.device,
            site=self.site,
            name=file_name(self.device),
            advice=_ADVICE[bool(self.password)],
        )
        # A JSON string is a TOML string.
        return head + "".join(
            f"{key} = {json.dumps(value)}\n" for key, value in asdict(self).items() if value
        )


def file_name(device: str) -> str:
    """Return the name of the file of an invitation."""
    return f"{device}.fleet.toml"


def role_of(site: str, device: str) -> str:
    """Return the name of a device's role, which a client certificate has as its common name.

    PostgreSQL cuts names after 63 bytes; a longer one ends with a digest instead.
    """
    name = f"{site}.{device}"
    if len(name) <= _LONGEST_ROLE:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name[: _LONGEST_ROLE - 13]}-{digest}"


def read_invitation(path: Path) -> Invitation:
    """Read the file of an invitation; InputError, which repeats nothing of it: it is none."""
    import sys

    from edge_agent.core.files import read_text

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    wrong = InputError(f"{path}: not an invitation: `edge-agent fleet join DEVICE --store ...` makes one")
    try:
        values: Mapping[str, Any] = tomllib.loads(read_text(path))
    except (ValueError, RecursionError):
        raise wrong from None
    try:
        found = Invitation(**values)
    except TypeError:
        raise wrong from None
    if not all(isinstance(value, str) for value in asdict(found).values()) or not found.device:
        raise wrong
    return found
