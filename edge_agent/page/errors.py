"""Requests that are refused."""

from __future__ import annotations


class Refused(Exception):
    """A request is refused: its HTTP status, a code for the page's texts, and a text in English."""

    def __init__(self, status: int, code: str, text: str = "", *, retry_s: int | None = None) -> None:
        super().__init__(text or code)
        self.status = status
        self.code = code
        self.text = text
        self.retry_s = retry_s


def agent_away() -> Refused:
    """Return the refusal of what only a running agent can do."""
    return Refused(503, "agent-away", "the agent does not run, or does not answer")
