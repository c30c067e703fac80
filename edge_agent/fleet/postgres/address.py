"""Address of a store: `postgresql://ROLE@HOST:PORT/DATABASE`, without a password."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from edge_agent.core.errors import ConfigError

_FORM = "fleet.store must be postgresql://ROLE@HOST:PORT/DATABASE"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a store is, and the role that logs in."""

    role: str
    host: str
    port: int
    database: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address. ConfigError, which does not repeat it: a password may stand in it."""
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port or 5432
        except ValueError:
            raise ConfigError(f"{_FORM}; host or port cannot be read") from None
        if parts.scheme not in ("postgresql", "postgres"):
            raise ConfigError(_FORM)
        if parts.password is not None:
            raise ConfigError(f"{_FORM}; write the password to the credential file fleet__password")
        if parts.query or parts.fragment:
            raise ConfigError(f"{_FORM}, without parameters; certificates are settings")
        role, database = unquote(parts.username or ""), unquote(parts.path.removeprefix("/"))
        if not role or not host or not database or "/" in database:
            raise ConfigError(f"{_FORM}; role, host or database is missing")
        return cls(role, host, port, database)

    @property
    def where(self) -> str:
        """`DATABASE at HOST:PORT`, for messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.database} at {host}:{self.port}"

    @property
    def on_this_machine(self) -> bool:
        """Whether the connection does not leave the machine."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")
