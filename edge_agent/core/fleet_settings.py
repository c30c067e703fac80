"""Settings of the fleet, and the form of its store's address."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, SecretStr, field_validator, model_validator

from edge_agent.core.host import is_loopback
from edge_agent.core.sections import Section, about

STORE_FORM = "postgresql://ROLE@HOST:PORT/DATABASE"
"""How the address of a store is written; the port may be left out."""
STORE_PORT = 5432

_STORE = re.compile(
    r"postgres(?:ql)?://(?P<role>[A-Za-z0-9_][\w.-]{0,62})@(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})"
    r"(?::(?P<port>\d{1,5}))?/(?P<database>[\w.-]{1,63})",
    re.ASCII | re.IGNORECASE,
)
_PASSWORD = re.compile(r"[^/]*://[^@]*:[^@]*@", re.DOTALL)


class StoreAddress(NamedTuple):
    """Where the store of a fleet is, and the role of the device there; there is no password in it."""

    role: str
    host: str
    port: int
    database: str

    def __str__(self) -> str:
        return f"postgresql://{self.role}@{self.authority}/{self.database}"

    @property
    def authority(self) -> str:
        """`HOST:PORT`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether the store is on this machine."""
        return is_loopback(self.host)


def parse_store(text: str) -> StoreAddress:
    """Read `STORE_FORM`; ValueError, which does not repeat the text, since it may hold a password."""
    if _PASSWORD.match(text):
        raise ValueError(
            f"the address must not hold a password, which others would see: write {STORE_FORM}, and put the"
            " password into the credential file fleet__password"
        )
    if "?" in text:
        raise ValueError(
            f"write {STORE_FORM}, without parameters: fleet.ca_file has the connection encrypted, and the"
            " server's certificate checked"
        )
    found = _STORE.fullmatch(text)
    port = STORE_PORT if found is None or found["port"] is None else int(found["port"])
    if found is None or not 0 < port < 1 << 16:
        raise ValueError(f"not the address of a store: write {STORE_FORM}")
    return StoreAddress(found["role"], found["host"].strip("[]"), port, found["database"])


_PLACE = re.compile(r"[^/\s]+/[^/\s]+")
MOST_GIVEN = 1000
"""Entries of `fleet.travel`."""


class TravelSettings(Section):
    """Walking times between two cameras of different devices, both ways.

    A table `[[fleet.travel]]` for each pair.
    """

    between: tuple[str, str] = Field(description="the two cameras, each DEVICE/CAMERA")
    shortest_s: float = Field(description="nobody comes earlier", ge=0, le=86_400)
    longest_s: float = Field(description="most come earlier", gt=0, le=86_400)

    @model_validator(mode="after")
    def _complete(self) -> TravelSettings:
        for place in self.between:
            if _PLACE.fullmatch(place) is None:
                raise ValueError(f"{place!r} is no camera of a device: write DEVICE/CAMERA")
        if self.between[0].split("/")[0] == self.between[1].split("/")[0]:
            raise ValueError(f"{' and '.join(self.between)} are of one device, which knows its people itself")
        if self.shortest_s > self.longest_s:
            raise ValueError("shortest_s is greater than longest_s")
        return self


class FleetSettings(Section):
    """Identities shared with other devices of the site. See `docs/fleet.md`."""

    enabled: bool = about(
        False, "share embeddings and names with the devices of this site; nothing leaves the device otherwise"
    )
    store: str | None = about(None, f"{STORE_FORM}, without a password", repr=False)
    password: SecretStr | None = about(None, "prefer the credential file fleet__password")
    ca_file: Path | None = about(None, "CA certificates, PEM; a store on another machine needs it")
    cert_file: Path | None = about(None, "client certificate, PEM")
    key_file: Path | None = about(None, "key of the client certificate, PEM")
    ask_ms: int = about(
        300, "longest wait for the store before a stranger is enrolled; 0: it is not asked", ge=0, le=5000
    )
    sync_s: float = about(2.0, "interval at which changes are exchanged", ge=0.1, le=3600)
    travel: tuple[TravelSettings, ...] = about(
        (), "walking times between cameras of two devices", max_length=MOST_GIVEN
    )
    learn_travel: bool = about(
        False, "learn walking times from strangers whom another device knew, beside those of `travel`"
    )

    @field_validator("store")
    @classmethod
    def _check_store(cls, value: str | None) -> str | None:
        return None if value is None else str(parse_store(value))

    @model_validator(mode="after")
    def _complete(self) -> FleetSettings:
        if self.enabled and self.store is None:
            raise ValueError(f"enabled needs store: {STORE_FORM}")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together")
        if self.cert_file is not None and self.ca_file is None:
            raise ValueError("cert_file needs ca_file: a client certificate needs TLS")
        address = self.address
        if address is not None and not address.is_loopback and self.ca_file is None:
            raise ValueError(
                f"{address.host} is another machine: set ca_file, the certificate of the authority that"
                " signed the server's, since people are sent encrypted only (docs/fleet.md)"
            )
        return self

    @property
    def address(self) -> StoreAddress | None:
        """`store`, divided."""
        return None if self.store is None else parse_store(self.store)

    def destination(self, site: str) -> str:
        """Return where embeddings and names go: `SITE@HOST:PORT`, or `off`."""
        return f"{site}@{self.address.authority}" if self.enabled and self.address is not None else "off"
