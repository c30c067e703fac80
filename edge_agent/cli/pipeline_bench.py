"""`edge-agent bench --pipeline`: the whole agent in a folder of its own; with a trace and a flame graph."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edge_agent.core.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from edge_agent.core.config import Settings
    from edge_agent.offline.bench.throughput import Plan

PROFILE_RATE = 200
"""Samples a second of the flame graph."""


def measured(
    plan: Plan,
    settings: Settings,
    *,
    precision: str | None,
    batch: int | None,
    broker: str | None,
    trace: Path | None,
    profile: Path | None,
) -> dict[str, Any]:
    """Run it, and write the trace and the flame graph where they are wanted.

    Raises:
        ConfigError: py-spy or a broker is missing.
        EngineError: the run ended before the measurement did, or py-spy failed.
    """
    from rich.console import Console

    from edge_agent.core.manifest import write_atomic
    from edge_agent.engine.precision.calibration import engines_folder
    from edge_agent.offline.bench import throughput
    from edge_agent.offline.bench.stagetimes import timeline_svg, trace_events

    engine = settings.engine.model_copy(
        update={
            "folder": engines_folder(settings.engine, settings.state_dir),
            **({"precision": precision} if precision is not None else {}),
            **({"max_batch": batch} if batch is not None else {}),
        }
    )
    with (
        TemporaryDirectory(prefix="edge-agent-bench-") as scratch,
        _broker(broker, Path(scratch)) as address,
        _flame_graph(profile, plan.seconds) as flames,
        Console(stderr=True).status("measuring the pipeline"),
    ):
        own = settings.model_copy(update={"engine": engine, "state_dir": Path(scratch) / "state"})
        told, spans = throughput.measure(plan, own, broker=address, began=flames.begin)
        flames.finish()
    if trace is not None:
        write_atomic(trace, trace_events(spans).encode())
        write_atomic(trace.with_suffix(".svg"), timeline_svg(spans).encode())
    return told


@contextmanager
def _broker(given: str | None, scratch: Path) -> Iterator[tuple[str, str]]:
    from edge_agent.offline.bench.throughput import open_broker

    if given is not None:
        yield given, "given broker"
        return
    with open_broker(scratch) as address:
        yield address


@dataclass(slots=True)
class _Flames:
    """py-spy beside this process, from `begin` on."""

    file: Path | None
    seconds: float
    binary: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None)

    def begin(self) -> None:
        if self.file is None:
            return
        self.process = subprocess.Popen(  # noqa: S603 - py-spy, as found on PATH
            [
                self.binary, "record", "--pid", str(os.getpid()), "--output", str(self.file.absolute()),
                "--duration", str(max(1, int(self.seconds))), "--rate", str(PROFILE_RATE),
                "--format", "flamegraph",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def finish(self) -> None:
        if self.process is None:
            return
        _, said = self.process.communicate(timeout=60)
        if self.process.returncode:
            raise EngineError(
                f"py-spy cannot record this process: {said.decode(errors='replace').strip()[-300:]}; it needs"
                " the right to trace processes (root, or CAP_SYS_PTRACE in a container)"
            )

    def leave(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)


@contextmanager
def _flame_graph(file: Path | None, seconds: float) -> Iterator[_Flames]:
    binary = shutil.which("py-spy", path=_beside_python()) or shutil.which("py-spy")
    if file is not None and binary is None:
        raise ConfigError(
            "a flame graph needs py-spy: install edge-agent with the extra `profile`, or leave --profile out"
        )
    flames = _Flames(file, seconds, binary or "")
    try:
        yield flames
    finally:
        flames.leave()


def _beside_python() -> str:
    """Where a virtual environment has its commands."""
    import sys

    return str(Path(sys.executable).parent)
