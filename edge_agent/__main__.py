"""`python -m edge_agent` and the command `edge-agent`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run a command; exit 0 on success, 1 on an error of the user's or the surroundings, 2 on wrong usage."""
    from edge_agent.cli import app
    from edge_agent.errors import EdgeAgentError

    try:
        app()
    except EdgeAgentError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
