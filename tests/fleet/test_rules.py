"""The rules by which changes are merged, in the store in memory."""

from __future__ import annotations

import pytest

from edge_agent.fleet.rules import Retention
from tests.fleet.memory_store import MemorySite
from tests.fleet.store_contract import DIMENSION, TTL_S, NewSite, StoreContract


class _Site(MemorySite):
    async def passes(self, seconds: float) -> None:
        self.now += seconds


class TestMemoryStore(StoreContract):
    order_examples = 150

    @pytest.fixture
    def new_site(self) -> NewSite:
        return lambda: _Site(dimension=DIMENSION, retention=Retention(TTL_S, None))
