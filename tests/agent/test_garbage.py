"""Collections leave out what was there before the run."""

from __future__ import annotations

import gc
import weakref

import pytest

from edge_agent.agent.garbage import short_collections


class Node:
    """Part of a cycle, which only a collection frees."""

    def __init__(self) -> None:
        self.itself = self


def test_only_what_is_new_is_looked_at() -> None:
    before = Node()
    with short_collections():
        new = Node()
        seen = {id(one) for one in gc.get_objects()}
        assert id(new) in seen
        assert id(before) not in seen
    assert id(before) in {id(one) for one in gc.get_objects()}


def test_cycles_are_freed_before_during_and_after() -> None:
    gone = weakref.ref(Node())
    with short_collections():
        assert gone() is None
        during = weakref.ref(Node())
        gc.collect()
        assert during() is None


def test_an_error_ends_it_too() -> None:
    def fails() -> None:
        with short_collections():
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fails()
    assert gc.get_freeze_count() == 0
