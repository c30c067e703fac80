"""Versions of the tables. `schema.sql` makes the present one; `MIGRATIONS` bring older stores to it."""

from __future__ import annotations

from importlib import resources

from edge_agent.fleet.store import StoreRefused

SCHEMA_VERSION = 1
MIGRATIONS: dict[int, str] = {}
"""SQL that brings a store from a version to the next one, by the version before."""


def schema_statements(vector_schema: str) -> str:
    """Return the SQL for a new store; `vector_schema`, quoted, is where the extension is."""
    text = resources.files("edge_agent.fleet.postgres").joinpath("schema.sql").read_text("utf-8")
    return text.replace(":vector_schema", vector_schema)


def check_schema(version: int | None, where: str) -> None:
    """StoreRefused: the tables are older or newer than those of this program."""
    if version is None or version < SCHEMA_VERSION:
        raise StoreRefused(
            f"fleet store {where}: its tables are of version {version or 0}, this program needs"
            f" {SCHEMA_VERSION}: run `edge-agent fleet init` of this version as administrator"
        )
    if version > SCHEMA_VERSION:
        raise StoreRefused(
            f"fleet store {where}: its tables are of version {version}, this program knows {SCHEMA_VERSION}:"
            " update edge-agent on this device"
        )
