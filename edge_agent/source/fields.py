"""Checks of values in JSON from outside."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TypeGuard

__all__ = ["is_number", "unix_time"]

_LATEST = 1e11
"""Unix seconds of the year 5138; times in milliseconds are larger."""


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a finite JSON number within float32; not true, false or NaN."""
    return type(value) in {int, float} and -1e30 < value < 1e30  # type: ignore[operator] # an int or float


def unix_time(value: object) -> float | None:
    """Return Unix seconds from a number or an RFC 3339 text with a zone; None from None.

    Raises:
        ValueError: anything else.
    """
    if value is None:
        return None
    if isinstance(value, str) and len(value) < 64:
        # Python 3.10 parses neither Z nor fractions of other than 3 or 6 digits.
        text = re.sub(r"[zZ]$", "+00:00", value)
        text = re.sub(r"\.(\d{1,6})\d*", lambda match: "." + match[1].ljust(6, "0"), text)
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError(f"time {value!r:.40} has no zone; write 2024-05-01T10:00:00Z or Unix seconds")
        return moment.timestamp()
    if not is_number(value) or abs(value) > _LATEST:
        raise ValueError(f"time {value!r:.40} is neither Unix seconds nor RFC 3339")
    return float(value)
