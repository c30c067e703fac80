"""Agent processes whose wall clock a test moves, and whose slow rounds come often."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import started

SOURCE = Path(__file__).with_name("clock_shim.c")
HURRIED = """
import sys
from edge_agent.agent import telemetry_loop
telemetry_loop.SAVE_INTERVAL_S = 0.3  # expiry, which is judged once a minute
from edge_agent.__main__ import main
sys.argv[0] = "edge-agent"
sys.exit(main())
"""


@cache
def shim_library() -> Path:
    """Compile the shim; skip where that is not possible."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("the wall clock of a process can only be moved with a C compiler on Linux (gcc)")
    library = Path(tempfile.mkdtemp(prefix="clock-shim-")) / "clock_shim.so"
    done = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O2", "-o", library, SOURCE, "-ldl"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"the clock shim cannot be compiled: {done.stderr.strip()[-200:]}")
    return library


@dataclass
class WallClock:
    """The wall clock of the processes that run with `environment`."""

    folder: Path
    _file: Path = field(init=False)

    def __post_init__(self) -> None:
        self._file = self.folder / "clock-shift"
        self.shift(0)

    def shift(self, seconds: float) -> None:
        """Move it by so many seconds from the real time."""
        hidden = self._file.with_suffix(".new")
        hidden.write_text(f"{seconds:.0f}")
        hidden.rename(self._file)

    @property
    def environment(self) -> Mapping[str, str]:
        return {**os.environ, "LD_PRELOAD": str(shim_library()), "CLOCK_SHIM_FILE": str(self._file)}

    def running(self, *arguments: object, log: Path) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Run an `edge-agent` command; end it with the block."""
        words = [sys.executable, "-c", HURRIED, *arguments]
        return started(words, log=log, environment=self.environment)

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run an `edge-agent` command to its end."""
        words = [sys.executable, "-m", "edge_agent", *map(str, arguments)]
        return subprocess.run(
            words, capture_output=True, text=True, timeout=100, check=False, env=self.environment
        )
