"""The terminal for tables, bars and live views: text is never markup, and contains no control characters."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from edge_agent.core.text import visible


class PlainConsole(Console):
    """A console of rich on which every string, also in a table, is shown as it is (see `visible`)."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - those of rich
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 - those of rich
        """Return the text that rich shows for a string; it calls this for every string."""
        return super().render_str(visible(text), **options | {"markup": False, "emoji": False})
