"""Runs an unknown network in a process of its own, with limits of memory and time.

What a file leads to when it is loaded and run cannot be seen in it: a shape may be computed. The first run of
a network is therefore not in the agent. Its result shows what the network gives; later runs are in-process.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.arrays import MOST_NUMBERS
from edge_agent.core.errors import ModelError

MOST_MEMORY = 2 << 30
"""Bytes that a first run may take beside four copies of the file."""
MOST_SECONDS = 120.0
"""Time of a first run: ten times that of a ResNet50 on one slow core."""
_THREADS = 4
"""Computing threads; each takes memory of its own."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a network gives for a batch: the shape, and rows as float32 unless they have too many numbers."""

    shape: tuple[int, ...]
    rows: NDArray[np.float32] | None


def run_apart(
    model: bytes, batches: Sequence[NDArray[Any]], what: str, *, seconds: float = MOST_SECONDS
) -> list[Result]:
    """Run a network on each batch in another process; `what` names it in messages.

    Raises:
        ModelError: it cannot be loaded, fails, ends the process, or exceeds a limit.
    """
    task = {"what": what, "model": len(model), "batches": [[str(b.dtype), list(b.shape)] for b in batches]}
    content = [json.dumps(task).encode() + b"\n", model, *(batch.tobytes() for batch in batches)]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "edge_agent.engine.apart"],
            input=b"".join(content),
            capture_output=True,
            check=False,
            timeout=seconds,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired as problem:
        raise ModelError(
            f"{what} does not finish {sum(map(len, batches))} pictures within {seconds:.0f} s: it is not "
            "a network that this device can run"
        ) from problem
    with contextlib.suppress(ValueError, KeyError, TypeError):
        answer = io.BytesIO(done.stdout)
        found = json.loads(answer.readline())
        if "error" in found:
            raise ModelError(found["error"])
        return [_result(answer, shape, complete) for shape, complete in found["results"]]
    raise ModelError(
        f"{what} ends the process that loads it ({_ending(done.returncode)}): it is damaged, or needs more "
        f"than {MOST_MEMORY >> 30} GiB of memory; export it again"
    )


def _result(answer: BinaryIO, shape: list[int], complete: bool) -> Result:
    if not complete:
        return Result(tuple(shape), None)
    size = 4 * int(np.prod(shape))
    return Result(tuple(shape), np.frombuffer(answer.read(size), np.float32).reshape(shape))


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _limit(model_bytes: int) -> None:
    """Limit this process, and let it be the first to end where memory is short.

    The limit is of writable memory: libraries and arenas of a machine with many cores reserve more.
    """
    memory = MOST_MEMORY + 4 * model_bytes
    for kind, most in ((resource.RLIMIT_DATA, memory), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):  # a lower limit is in force
            resource.setrlimit(kind, (most, most))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _serve(given: BinaryIO, answers: BinaryIO) -> None:
    task = json.loads(given.readline())
    _limit(task["model"])
    model = given.read(task["model"])
    results: list[list[Any]] = []
    rows: list[bytes] = []
    try:
        from edge_agent.engine.onnxruntime import open_session, run_session

        session = open_session(model, _THREADS, task["what"])
        for kind, shape in task["batches"]:
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            found = run_session(session, np.frombuffer(given.read(size), kind).reshape(shape), task["what"])
            complete = found.size <= MOST_NUMBERS * shape[0]
            results.append([found.shape, complete])
            if complete:
                rows.append(np.asarray(found, np.float32).tobytes())
        head: dict[str, Any] = {"results": results}
    except ModelError as problem:
        head, rows = {"error": str(problem)}, []
    except MemoryError:
        head, rows = {"error": f"{task['what']} needs more than {MOST_MEMORY >> 30} GiB of memory"}, []
    answers.write(json.dumps(head).encode() + b"\n" + b"".join(rows))


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
