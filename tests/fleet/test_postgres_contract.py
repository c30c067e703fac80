"""What every store does, on a real PostgreSQL."""

from __future__ import annotations

import itertools

import pytest

from tests.fleet.postgres_site import Site
from tests.fleet.server_database import Database
from tests.fleet.store_contract import TTL_S, NewSite, StoreContract

_numbers = itertools.count()


class TestPostgresStore(StoreContract):
    order_examples = 2

    @pytest.fixture
    def new_site(self, shared_database: Database) -> NewSite:
        """All sites are in one database: they must not see each other."""

        def make() -> Site:
            site = Site(shared_database, f"site-{next(_numbers)}")
            site.init(ttl_s=TTL_S)
            return site

        return make
