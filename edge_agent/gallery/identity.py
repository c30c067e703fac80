"""What the gallery returns about identities, and the rules for their names and ids."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Literal

from edge_agent.core.errors import InputError

__all__ = ["Erased", "GalleryStats", "Identity", "Imported", "Kind", "checked_name", "new_id"]

Kind = Literal["auto", "enrolled"]
"""`auto`: an unknown person who was seen well enough; `enrolled`: entered or named by an operator."""

_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"  # base32, lower case: safe in topics and file names
_ID_CHARACTERS = 12  # 60 random bits: a collision among 10,000 identities has a probability of 4e-11
_ID_FORM = re.compile(r"p-[a-z2-7]{12}")
_LONGEST_NAME = 128


@dataclass(frozen=True, slots=True)
class Identity:
    """One person in the gallery. Times are Unix seconds.

    Attributes:
        number: counts identities within this gallery file, from 1; never reused.
        id: opaque and random, the same wherever the identity is exported to.
        name: what the operator calls the person, unique in the gallery, or None.
        kind: `auto` identities may be evicted from a full gallery; each kind has its own time to live.
        created: when it was first enrolled.
        last_seen: when it was last touched.
        expires: when it will be erased, or None for never.
        ttl_s: its own time to live in seconds, 0.0 for ever; None: that of its kind.
        exemplars: number of embeddings.
        sightings: how often the person was seen: one for the enrolment, one for each touch that counts.
    """

    number: int
    id: str
    name: str | None
    kind: Kind
    created: float
    last_seen: float
    expires: float | None
    ttl_s: float | None
    exemplars: int
    sightings: int


@dataclass(frozen=True, slots=True)
class Erased:
    """An identity that was removed from the disk and from memory.

    Attributes:
        exemplars: number of erased embeddings.
        former_ids: ids of identities that had been merged into it, erased as well.
        bytes: size of the erased embeddings.
    """

    number: int
    id: str
    name: str | None
    exemplars: int
    former_ids: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Imported:
    """Number of identities that were added, and skipped because their id was in the gallery already."""

    added: int
    skipped: int


@dataclass(frozen=True, slots=True)
class GalleryStats:
    """Size and content of a gallery.

    Attributes:
        path: of the file, or `:memory:`.
        space, dimension: of the embeddings.
        identities: of both kinds; `enrolled` and `named` of them have that kind, or a name.
        exemplars: embeddings of all identities.
        capacity, max_exemplars, ttl_s, enrolled_ttl_s: see `edge_agent.gallery.rows.Policy`.
        oldest_seen, newest_seen: earliest and latest `last_seen`, None while the gallery is empty.
        evicted: identities erased for lack of space since the gallery was opened.
        file_bytes: size on disk with its write-ahead log, 0 in memory.
        index_bytes: size of the search matrices in memory.
    """

    path: str
    space: str
    dimension: int
    identities: int
    enrolled: int
    named: int
    exemplars: int
    capacity: int
    max_exemplars: int
    ttl_s: float | None
    enrolled_ttl_s: float | None
    oldest_seen: float | None
    newest_seen: float | None
    evicted: int
    file_bytes: int
    index_bytes: int


def new_id() -> str:
    """Return a new opaque id: `p-` and 12 random base32 characters."""
    return "p-" + "".join(secrets.choice(_ALPHABET) for _ in range(_ID_CHARACTERS))


def checked_name(name: str) -> str:
    """Return the name without surrounding blanks.

    Raises:
        InputError: it is empty, too long, has control characters, or reads as a number or an id.
    """
    plain = name.strip()
    if not plain or len(plain) > _LONGEST_NAME or not plain.isprintable():
        raise InputError(f"{name!r} is not a usable name: give 1 to {_LONGEST_NAME} printable characters")
    if plain.isdecimal() or _ID_FORM.fullmatch(plain):
        raise InputError(f"{name!r} is not a usable name: it reads as a number or id; add a letter to it")
    return plain
