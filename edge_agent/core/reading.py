"""What the threads of this process read at present, for messages of libraries that name no file."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_names: dict[int, str] = {}


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Note that this thread reads `name`, a file or a source, inside the block."""
    thread = threading.get_ident()
    _names[thread] = name
    try:
        yield
    finally:
        _names.pop(thread, None)


def being_read() -> list[str]:
    """Return what is being read, sorted; a message of a library is about one of them."""
    return sorted(set(_names.copy().values()))
