"""Measurement of the whole agent in a scratch folder, with a trace and a flame graph."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edge_agent.core.errors import ConfigError, EngineError
from edge_agent.core.manifest import write_atomic
from edge_agent.engine.precision.calibration import engines_folder
from edge_agent.offline.bench import throughput
from edge_agent.offline.bench.environment import open_broker
from edge_agent.offline.bench.stagetimes import timeline_svg, trace_events

if TYPE_CHECKING:
    from edge_agent.core.config import Settings
    from edge_agent.offline.bench.load import Plan

__all__ = ["measure"]

PROFILE_RATE = 200
"""Samples a second of the flame graph."""


def measure(
    plan: Plan, settings: Settings, *, broker: str | None, trace: Path | None, profile: Path | None
) -> dict[str, Any]:
    """Run the agent; write the trace and the flame graph.

    Args:
        plan: cameras, people and length of the run.
        settings: engine, quality, tracker, identify; engines are those of its state folder.
        broker: address of a broker; None to start one.
        trace: JSON file for the trace, with a picture (.svg) next to it; None for none.
        profile: SVG file for the flame graph; None for none.

    Returns:
        The result as JSON values.

    Raises:
        ConfigError: py-spy or a broker is missing.
        EngineError: the run ended before the measurement did, or py-spy failed.
    """
    folder = engines_folder(settings.engine, settings.state_dir)
    engine = settings.engine.model_copy(update={"folder": folder})
    with (
        TemporaryDirectory(prefix="edge-agent-bench-") as scratch,
        _broker(broker, Path(scratch)) as address,
        _flame_graph(profile, plan.seconds) as flames,
    ):
        own = settings.model_copy(update={"engine": engine, "state_dir": Path(scratch) / "state"})
        result, spans = throughput.measure(plan, own, broker=address, began=flames.begin)
        flames.finish()
    if trace is not None:
        write_atomic(trace, trace_events(spans).encode())
        write_atomic(trace.with_suffix(".svg"), timeline_svg(spans).encode())
    return result


@contextmanager
def _broker(given: str | None, scratch: Path) -> Iterator[tuple[str, str]]:
    if given is not None:
        yield given, "given broker"
        return
    with open_broker(scratch) as address:
        yield address


@dataclass(slots=True)
class _FlameGraph:
    """py-spy recording this process, from `begin` on."""

    file: Path | None
    seconds: float
    binary: str = ""
    process: subprocess.Popen[bytes] | None = None

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
        _, errors = self.process.communicate(timeout=60)
        if self.process.returncode:
            raise EngineError(
                f"py-spy cannot record this process: {errors.decode(errors='replace').strip()[-300:]}; it"
                " needs the right to trace processes (root, or CAP_SYS_PTRACE in a container)"
            )

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)


@contextmanager
def _flame_graph(file: Path | None, seconds: float) -> Iterator[_FlameGraph]:
    environment = str(Path(sys.executable).parent)  # a virtual environment has its commands there
    binary = shutil.which("py-spy", path=environment) or shutil.which("py-spy")
    if file is not None and binary is None:
        raise ConfigError(
            "a flame graph needs py-spy: install edge-agent with the extra `profile`, or leave --profile out"
        )
    flames = _FlameGraph(file, seconds, binary or "")
    try:
        yield flames
    finally:
        flames.close()
