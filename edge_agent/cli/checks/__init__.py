"""Checks of `edge-agent doctor`: functions that return findings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "warning", "missing"]
"""`note`: optional and absent; `warning`: works, but not well; `missing`: the agent cannot run without it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check: what was found, and what to do; `advice` is empty if nothing has to be done."""

    name: str
    state: State
    found: str
    advice: str = ""
