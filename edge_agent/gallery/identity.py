"""What the gallery tells about the people in it, and the rules for their names and ids."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Literal

from edge_agent.core.errors import InputError

__all__ = ["Erased", "GalleryStats", "Identity", "Imported", "Kind", "checked_name", "new_id"]

Kind = Literal["auto", "enrolled"]
"""`auto`: an unknown who was seen well enough; `enrolled`: put in or named by a person."""

_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"  # base32, lower case: safe in topics and file names
_ID_CHARACTERS = 12  # 60 random bits: a clash among 10,000 identities has odds of 4e-11
_ID_FORM = re.compile(r"p-[a-z2-7]{12}")
_LONGEST_NAME = 128


@dataclass(frozen=True, slots=True)
class Identity:
    """One person in the gallery.

    Attributes:
        number: counts identities within this gallery file, from 1; never given twice.
        id: opaque and random, the same wherever the identity is exported to.
        name: what the operator calls the person, unique in the gallery, or None.
        kind: `auto` identities may be evicted for want of room, `enrolled` ones not; each kind has its own
            time to live.
        created: when it was first enrolled, Unix seconds.
        last_seen: when it was last touched, Unix seconds.
        expires: when it will be erased, Unix seconds, or None for never.
        ttl_s: its own time to live in seconds, 0.0 for ever; None: that of its kind.
        exemplars: number of embeddings kept.
        sightings: how often the person was seen: one for the enrolment, one more for each touch that
            says so.
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
    """What `forget` removed from the disk and from memory.

    Attributes:
        number: of the identity that is gone.
        id: its opaque id.
        name: the operator's name for it, if any.
        exemplars: number of embeddings that were erased.
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
    """What `import_` did: identities added, and those skipped since their id was there already."""

    added: int
    skipped: int


@dataclass(frozen=True, slots=True)
class GalleryStats:
    """Size and content of a gallery.

    Attributes:
        path: of the file, or `:memory:`.
        space: id of the embedding space.
        dimension: numbers in an embedding.
        identities: how many, of both kinds.
        enrolled: how many of them are of kind `enrolled`.
        named: how many of them have a name.
        exemplars: embeddings kept in all.
        capacity: how many identities fit.
        max_exemplars: how many embeddings an identity keeps at most.
        ttl_s: seconds after which an `auto` identity that is not seen expires, or None.
        enrolled_ttl_s: the same for `enrolled` ones.
        oldest_seen: earliest `last_seen`, None while the gallery is empty.
        newest_seen: latest `last_seen`, None while the gallery is empty.
        evicted: identities given up for want of room since the gallery was opened.
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
    """A fresh opaque id: `p-` and 12 random base32 characters."""
    return "p-" + "".join(secrets.choice(_ALPHABET) for _ in range(_ID_CHARACTERS))


def checked_name(name: str) -> str:
    """The name without outer blanks, when it can tell a person from numbers and ids.

    Raises:
        InputError: it is empty, too long, has control characters, or reads as a number or an id.
    """
    plain = name.strip()
    if not plain or len(plain) > _LONGEST_NAME or not plain.isprintable():
        raise InputError(f"{name!r} is not a usable name: give 1 to {_LONGEST_NAME} printable characters")
    if plain.isdecimal() or _ID_FORM.fullmatch(plain):
        raise InputError(f"{name!r} is not a usable name: it reads as a number or id; add a letter to it")
    return plain
