"""TensorRT's Python bindings: version, log, and checked calls.

Most of TensorRT's methods report failure by returning None or False, with the reason only in the log. So
their results go through `checked`.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

import structlog

from edge_agent.core.errors import EngineError
from edge_agent.engine.tensorrt import cuda

if TYPE_CHECKING:
    import tensorrt as trt

_log = structlog.get_logger(__name__)

_T = TypeVar("_T")
_KEPT_LINES = 12
"""Log lines in an error message at most."""
_LAST_DLA_OF_10 = (10, 7)
_FIRST_DLA_OF_11 = (11, 4, 1)
"""10.7 is the last 10.x with DLA support, 11.4.1 the first 11.x (NVIDIA, "Working with DLA")."""


def require_bindings() -> None:
    """Import TensorRT's Python module; EngineError where it is not installed or cannot be loaded."""
    try:
        import tensorrt  # noqa: F401
    except ImportError as problem:
        raise EngineError(
            f"TensorRT cannot be used: {problem}. On a Jetson, JetPack brings it (python3-libnvinfer) for "
            "the system's Python only: make the environment with `/usr/bin/python3 -m venv "
            "--system-site-packages` (install.sh does). Elsewhere: pip install tensorrt"
        ) from problem


def version() -> tuple[int, ...]:
    """Return TensorRT's version, e.g. `(10, 3, 0)`; EngineError as in `require_bindings`."""
    require_bindings()
    import tensorrt as trt

    return version_numbers(str(trt.__version__))


def version_numbers(text: str) -> tuple[int, ...]:
    """`"10.3.0.post1"` -> `(10, 3, 0)`."""
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def has_dla(release: tuple[int, ...]) -> bool:
    """Return whether this release supports a Jetson's deep-learning accelerator."""
    return release[:2] <= _LAST_DLA_OF_10 or release >= _FIRST_DLA_OF_11


class Log:
    """The last errors and warnings that TensorRT logged.

    TensorRT has one logger per process: it uses the first one and warns of others, so a builder that is made
    while an engine is open logs to the engine's logger. Hence there is one `logger`, and every `Log` gets all
    lines.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self.logger = _the_logger()
        _logs[:] = [*(known for known in _logs if known() is not None), weakref.ref(self)]

    def add(self, line: str) -> None:
        """Store one line."""
        self._lines.append(line)

    def take(self) -> list[str]:
        """Remove and return the stored lines, oldest first."""
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        return lines


_logs: list[weakref.ref[Log]] = []


def _write(severity: int, message: str) -> None:
    """Store and log a line; `severity`: 0 and 1 errors, 2 warnings, 3 information, 4 details (dropped).

    TensorRT calls it from its own threads. It takes no lock of its own and never raises.
    """
    try:
        if severity <= 2:
            for known in tuple(_logs):
                if (log := known()) is not None:
                    log.add(message.strip())
            _log.warning("tensorrt", severity=severity, message=message.strip())
        elif severity == 3:
            _log.debug("tensorrt", message=message.strip())
    except Exception:  # noqa: BLE001, S110 - an exception must not enter C++, and the log itself failed
        pass


@functools.cache
def _the_logger() -> trt.ILogger:
    """Return the `ILogger` of this process; its class can be defined only once TensorRT is imported."""
    require_bindings()
    import tensorrt as trt

    class Logger(trt.ILogger):  # type: ignore[misc]  # Any where TensorRT is not installed
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # required by pybind11

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            _write(int(severity), msg)

    return Logger()


def checked(result: _T | None, what: str, log: Log) -> _T:
    """Return the result of a call that returns None or False on failure.

    Raises:
        EngineError: "TensorRT could not <what>", with the lines that TensorRT logged.
    """
    if result is None or result is False:
        raise EngineError(f"TensorRT could not {what}: {_reason(log)}")
    return result


def _reason(log: Log) -> str:
    return "; ".join(log.take()) or "it logged no reason"


def make_runtime(log: Log) -> trt.Runtime:
    """Make the object that loads plans; EngineError where TensorRT or a usable GPU is missing."""
    with _starting("runtime", log):
        import tensorrt as trt

        return trt.Runtime(log.logger)


def make_builder(log: Log) -> trt.Builder:
    """Make the object that builds plans; EngineError where TensorRT or a usable GPU is missing."""
    with _starting("builder", log):
        import tensorrt as trt

        return trt.Builder(log.logger)


@contextlib.contextmanager
def _starting(what: str, log: Log) -> Iterator[None]:
    """Check for a GPU first, since some releases crash without one, and translate errors of the block."""
    require_bindings()
    cuda.probe()
    try:
        yield
    except TypeError as problem:  # from pybind11, when the factory returns a null pointer
        raise EngineError(f"TensorRT could not start its {what}: {_reason(log)}") from problem
