"""The rules for names of people and for ids of identities, for commands, messages and archives alike."""

from __future__ import annotations

import re
import secrets
import unicodedata

from edge_agent.core.errors import InputError
from edge_agent.core.text import is_visible, visible

LONGEST_NAME = 128
"""Characters."""

_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"  # base32, lower case: safe in topics and file names
_ID_CHARACTERS = 12  # 60 random bits: a collision among 10,000 identities has a probability of 4e-11
_ID_FORM = re.compile(r"p-[a-z2-7]{12}")
_SHOWN = 60


def checked_name(name: str) -> str:
    """Return the name without surrounding blanks, in Unicode's composed form (NFC).

    Else two people could have names that look alike: an accent can be a character of its own.

    InputError when it is empty, too long, has characters that cannot be seen, or reads as a number or an id.
    """
    plain = composed(name).strip()
    shown = f"'{visible(plain, _SHOWN)}'"
    if not plain or len(plain) > LONGEST_NAME or not is_visible(plain):
        raise InputError(f"{shown} is not a usable name: give 1 to {LONGEST_NAME} printable characters")
    if plain.isdecimal() or is_id(plain):
        raise InputError(f"{shown} is not a usable name: it reads as a number or id; add a letter to it")
    return plain


def person_title(number: int, name: str | None) -> str:
    """Return how a person is shown to people: by name and number, or by number alone."""
    return f"person {number}" if name is None else f"{name} ({number})"


def composed(text: str) -> str:
    """Return a text in the form in which names are stored and compared."""
    return unicodedata.normalize("NFC", text)


def new_id() -> str:
    """Return a new opaque id: `p-` and 12 random base32 characters."""
    return "p-" + "".join(secrets.choice(_ALPHABET) for _ in range(_ID_CHARACTERS))


def is_id(text: str) -> bool:
    """Whether a text has the form of the ids that `new_id` makes."""
    return _ID_FORM.fullmatch(text) is not None
