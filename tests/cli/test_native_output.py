"""What native libraries write to standard error passes through the masking of addresses."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import faulthandler, os, sys
from edge_agent.cli.native_output import masked_native_output
with masked_native_output({secrets!r}):
{body}
print("after", file=sys.stderr)
os.write(2, b"at the end hunter2\\n")
"""


def said(body: str, *, secrets: tuple[str, ...] = ("hunter2",)) -> str:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    program = PROGRAM.format(secrets=secrets, body=lines)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    return done.stderr


def test_lines_are_masked_and_in_order() -> None:
    body = "os.write(2, b'[tcp] rtsp://me:pw1@h/s hunter2 fails\\n')\nos.system('echo child hunter2 >&2')"
    text = said(body)
    assert text.startswith("[tcp] rtsp://***@h/s *** fails\nchild ***\n")
    assert text.endswith("after\nat the end hunter2\n"), "the stream is as before"


def test_a_line_without_an_end_and_one_that_is_not_text() -> None:
    assert said("os.write(2, b'\\xff\\xfe hunter2')").startswith("\ufffd\ufffd ***")


def test_the_log_is_not_delayed() -> None:
    """The stacks of a crash must arrive although no thread runs any more."""
    text = said("faulthandler.enable()\nprint('log', file=sys.stderr)\nos.abort()")
    assert text.startswith("log\nFatal Python error: Aborted")
    assert "after" not in text


def test_a_library_that_holds_the_interpreter_is_not_blocked() -> None:
    body = "import ctypes\nwrite = ctypes.PyDLL(None).write\n"
    body += "for _ in range(2000): write(2, b'x' * 999 + bytes([10]), 1000)"
    assert "after" in said(body)


def test_without_secrets_nothing_changes() -> None:
    assert said("os.write(2, b'hunter2\\n')", secrets=()) == "hunter2\nafter\nat the end hunter2\n"
