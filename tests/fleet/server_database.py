"""A database of a server."""

from __future__ import annotations

from dataclasses import dataclass

from tests.fleet.postgres_server import PASSWORD, PostgresServer


@dataclass(frozen=True)
class Database:
    """A database of the running server; its administrator logs in with `password`."""

    server: PostgresServer
    name: str
    password: str = PASSWORD

    @property
    def address(self) -> str:
        """Address for the administrator, without a password."""
        return self.server.address(self.name)

    def as_role(self, role: str) -> str:
        return self.server.address(self.name, role)

    def sql(self, text: str) -> str:
        """Return what the administrator's psql prints for some SQL, unaligned."""
        return self.server.run("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", text, self.address).stdout
