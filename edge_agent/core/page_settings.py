"""Settings of the operator's page."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, model_validator

from edge_agent.core.sections import Section, about

_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")


def _check_host(value: str) -> str:
    name = value.lower()
    if not _HOST.fullmatch(name):
        raise ValueError("must be a host name or an address, without a port")
    return name


def _check_address(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError("must be an IP address of this device, such as 127.0.0.1 or 0.0.0.0") from None


class PageSettings(Section):
    """The operator's page, `edge-agent page`. See `docs/page.md`."""

    address: Annotated[str, AfterValidator(_check_address)] = about(
        "127.0.0.1", "IP address that the page listens on; any but loopback needs cert_file and key_file"
    )
    port: int = about(8750, "its port", ge=1, le=65535)
    hosts: tuple[Annotated[str, AfterValidator(_check_host)], ...] = about(
        (), "further names under which browsers may reach the page, without port"
    )
    cert_file: Path | None = about(None, "certificate chain for TLS, PEM")
    key_file: Path | None = about(None, "its key, PEM, without a pass phrase")
    users_file: Path | None = about(
        None,
        "users and hashes of their passwords, written by `edge-agent page password`; null: the credential"
        " page_users of the service, else page-users.json in the state folder",
    )
    session_hours: float = about(12.0, "a login ends after this time", gt=0, le=720)
    fps: float = about(5.0, "most pictures per second of one camera in the live view", gt=0, le=15)
    picture_width: int = about(960, "width in pixels to which they are scaled down", ge=160, le=3840)

    @property
    def is_local(self) -> bool:
        """Whether only programs of this device can connect."""
        return ipaddress.ip_address(self.address).is_loopback

    @model_validator(mode="after")
    def _needs_tls(self) -> PageSettings:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together")
        if self.cert_file is None and not self.is_local:
            raise ValueError(
                f"address {self.address} can be reached from other machines, so the page needs TLS: set"
                " cert_file and key_file, or use 127.0.0.1 and `ssh -L`"
            )
        return self
