"""`python -m edge_agent` and the command `edge-agent`."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback

__all__ = ["main"]

_OUTPUT_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})
"""Of standard output; those of files have a name."""


def main() -> None:
    """Run a command; exit 0 on success, 1 on an `EdgeAgentError` or an unusable file, 2 on wrong usage."""
    from edge_agent.cli.logins import hide_logins, mask_arguments

    hide_logins()
    from edge_agent.cli import app
    from edge_agent.core.errors import EdgeAgentError
    from edge_agent.core.files import shown
    from edge_agent.core.text import visible

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8

    try:
        app()
    except EdgeAgentError as error:
        for line in error.args:
            sys.stderr.write(f"error: {visible(mask_arguments(str(line)))}\n")
        _leave(1)
    except OSError as error:  # of the machine, not of the program
        if error.filename is not None:
            where = mask_arguments(shown(os.fsdecode(error.filename)))
            sys.stderr.write(f"error: cannot use {where}: {error.strerror}\n")
        elif error.errno in _OUTPUT_ERRORS:
            sys.stderr.write(f"error: cannot write the output: {error.strerror}\n")
        else:
            _report_bug()
        _leave(1)
    except KeyboardInterrupt:
        _leave(130)
    except Exception:  # noqa: BLE001 - a bug; its text may be from outside
        _report_bug()
        _leave(1)
    except SystemExit as end:
        _leave(end.code if isinstance(end.code, int) else int(end.code is not None))


def _report_bug() -> None:
    from edge_agent.core.text import visible

    for line in traceback.format_exc().rstrip("\n").split("\n"):
        sys.stderr.write(f"{visible(line)}\n")


def _leave(code: int) -> None:
    """End the process; threads that hang in a video driver must not block its exit."""
    attempt = sys.modules.get("edge_agent.source.attempt")
    if attempt is not None and attempt.stuck_threads():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
