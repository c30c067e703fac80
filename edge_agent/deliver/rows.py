"""One event of the outbox, with its number and its message."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from edge_agent.deliver.open_tracks import TrackChange

_TRACEPARENT = b'"traceparent":"'
"""Precedes all text from outside, which could contain it too; see `events.envelope`."""
_TRACEPARENT_LENGTH = 55

Size: TypeAlias = tuple[int, int, float]
"""Of a row: `(seq, bytes, created)`."""


@dataclass(frozen=True, slots=True)
class Row:
    """One event in the outbox; `body` is the message without number, `created` an instant of the clock."""

    seq: int
    topic: str
    body: bytes
    created: float
    track: TrackChange | None = None
    """The track that it opens, changes or ends; only until it is stored."""

    @property
    def message(self) -> bytes:
        """The message as it is sent, with its number."""
        return numbered(self.body, self.seq)

    @property
    def traceparent(self) -> str:
        """W3C Trace Context of the message; "" where it has none."""
        at = self.body.find(_TRACEPARENT)
        if at < 0:
            return ""
        begin = at + len(_TRACEPARENT)
        return self.body[begin : begin + _TRACEPARENT_LENGTH].decode("ascii", "replace")


def numbered(body: bytes, seq: int) -> bytes:
    """Add the number to a message, a JSON object without `seq`."""
    return b'%b,"seq":%d}' % (body[:-1], seq)


def naming(word: str) -> Callable[[bytes], bool]:
    """Return what tells whether a message contains an opaque id, and not only as a part of another word."""
    text = word.encode()
    whole = re.compile(rb"(?<![\w-])" + re.escape(text) + rb"(?![\w-])")
    return lambda message: text in message and whole.search(message) is not None
