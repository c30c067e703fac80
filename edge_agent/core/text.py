"""Outside text in outputs: names, file names, addresses, labels, and the messages of brokers and libraries.

Such text may contain anything: control sequences of a terminal, line ends, marks that reverse the reading
direction, lone surrogates, HTML, templates. `visible` replaces what cannot be seen by escapes, so that a
text is always one line of printable characters; the other functions add the quoting of one format. Text for
a terminal passes `visible` in `cli.output` and `cli.console`, text of logs in `core.logs`.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from typing import Any

LONGEST = 5_000
"""Characters of a text in an output; enough for a path (4,096) and a message about it."""
LONGEST_CELL = 300
"""Characters of a text in a cell of a table, or in a label."""

# Printable by Unicode's categories, and yet blank on a screen: fillers, joiners, variation selectors without
# an emoji form. Two names that differ by them would look alike.
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0d\uffa0\U000e0100-\U000e01ef]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")


def visible(text: str, longest: int = LONGEST) -> str:
    r"""Return a text as one line of printable characters, at most `longest`.

    What is not printable (`str.isprintable`), or blank, becomes an escape as in Python and JSON: `\x1b`,
    `\n`, `\u202e`. All else stays as it is, also a backslash. The middle of a longer text becomes `…`.
    """
    short = shortened(text, longest)
    if is_visible(short):
        return short
    return shortened("".join(one if is_visible(one) else _escaped(one) for one in short), longest)


def is_visible(text: str) -> bool:
    """Whether `visible` would leave a text of any length as it is."""
    return text.isprintable() and (text.isascii() or not _BLANK.search(text))


def html_text(text: str) -> str:
    """Return a text for an element or a quoted attribute of HTML."""
    return html.escape(visible(text))


def jinja_literal(text: str) -> str:
    """Return a text as a string literal of a Jinja template, in ASCII.

    Jinja decodes escapes as Python does: a character beyond U+FFFF needs eight digits, where JSON has a pair.
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("{", "\\x7b").replace("}", "\\x7d")
    return f'"{"".join(one if " " <= one <= "~" else _escaped(one) for one in escaped)}"'


def json_line(payload: bytes) -> str:
    """Return a message as one line of JSON: a JSON text as it came, anything else as a JSON string.

    Characters that cannot be seen become escapes of JSON. In a JSON text, control characters below U+0020
    are white space between its parts, and the others are in strings.
    """
    text = payload.decode(errors="backslashreplace")
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return json.dumps(text)
    text = re.sub("[\\x00-\\x1f]+", " ", text).strip()
    return "".join(one if one == " " or is_visible(one) else json.dumps(one)[1:-1] for one in text)


def encodable(text: str) -> str:
    r"""Return a text without lone surrogates, which UTF-8 does not have; they become `\udcff`."""
    return _SURROGATE.sub(lambda found: _escaped(found[0]), text)


def encodable_json(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return a JSON value with `encodable` texts; an escape of JSON would give readers the surrogate."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, Mapping):
        return {encodable_json(key): encodable_json(entry) for key, entry in value.items()}
    return [encodable_json(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _escaped(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")


def shortened(text: str, longest: int) -> str:
    """Return a text with its middle replaced by `…` where it is longer than `longest` characters."""
    if len(text) <= longest:
        return text
    tail = (longest - 1) // 2
    return f"{text[: longest - 1 - tail]}…{text[len(text) - tail :]}"
