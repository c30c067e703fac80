"""The result of one check of `edge-agent doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "warning", "missing"]
"""`note`: optional and absent; `warning`: works, but not well; `missing`: the agent cannot run without it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check.

    Attributes:
        name: of the check.
        state: of what was checked.
        found: what was found.
        advice: what to do; empty if nothing has to be done.
    """

    name: str
    state: State
    found: str
    advice: str = ""
