"""What native libraries write to standard error goes to the log, masked, with what is being read."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

PROGRAM = """
import faulthandler, os, sys
from edge_agent.cli.native_output import logged_native_output
from edge_agent.core.logs import configure
from edge_agent.core.reading import reading
with logged_native_output(("hunter2",)):
    configure(form="json")
{body}
print("after", file=sys.stderr)
os.write(2, b"at the end hunter2\\n")
"""


def said(body: str) -> str:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=lines)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stderr


def logged(body: str) -> list[dict[str, Any]]:
    *lines, after, end = said(body).splitlines()
    assert (after, end) == ("after", "at the end hunter2"), "the stream is as before"
    return [json.loads(line) for line in lines]


def test_lines_are_masked_and_in_order() -> None:
    body = "os.write(2, b'[tcp] rtsp://me:pw1@h/s hunter2 fails\\n')\nos.system('echo child hunter2 >&2')"
    first, second = logged(body)
    assert (first["event"], first["text"]) == ("library_message", "[tcp] rtsp://***@h/s *** fails")
    assert second["text"] == "child ***"


def test_the_file_that_is_read_is_named() -> None:
    body = "import time\nwith reading('/videos/a.avi'): os.write(2, b'broken\\n'); time.sleep(0.3)\n"
    first, second = logged(body + "os.write(2, b'later\\n')")
    assert (first["text"], first["reading"]) == ("broken", ["/videos/a.avi"])
    assert (second["text"], second["reading"]) == ("later", [])


def test_a_line_without_an_end_and_one_that_is_not_text() -> None:
    assert logged("os.write(2, b'\\xff\\xfe hunter2')")[0]["text"] == "\ufffd\ufffd ***"


def test_the_log_is_not_delayed() -> None:
    """The stacks of a crash must arrive although no thread runs any more."""
    text = said("faulthandler.enable()\nprint('log', file=sys.stderr)\nos.abort()")
    assert text.startswith("log\nFatal Python error: Aborted")
    assert "after" not in text


def test_a_flood_is_counted_and_blocks_nothing() -> None:
    body = "import ctypes\nwrite = ctypes.PyDLL(None).write\n"
    body += "for _ in range(2000): write(2, b'x' * 999 + bytes([10]), 1000)"
    found = logged(body)
    assert len(found) < 40
    assert sum(line.get("omitted", 0) for line in found) > 0
