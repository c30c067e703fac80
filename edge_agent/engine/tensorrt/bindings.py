"""What all TensorRT modules share: the bindings, their log, and calls that cannot fail unseen.

Most of TensorRT's methods report failure by returning None or False and say why only in the log, so every
one of them goes through `checked`.
"""

from __future__ import annotations

import functools
import weakref
from collections import deque
from typing import TYPE_CHECKING, TypeVar

import structlog

from edge_agent.core.errors import EngineError
from edge_agent.engine.tensorrt import cuda

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = [
    "Log",
    "checked",
    "has_dla",
    "major",
    "make_builder",
    "make_runtime",
    "require_bindings",
    "version",
]

_log = structlog.get_logger(__name__)

_T = TypeVar("_T")
_KEPT_LINES = 12
"""Lines of the log that an error message carries."""
_LAST_DLA_OF_10 = (10, 7)
_FIRST_DLA_OF_11 = (11, 4, 1)
"""10.7 was the last 10.x that knew the DLA, 11.4.1 is the first 11.x (NVIDIA, "Working with DLA")."""


def require_bindings() -> None:
    """Import TensorRT's Python module, so that whoever comes next may simply import it.

    Raises:
        EngineError: it is not there or cannot be loaded; the message says how to mend it.
    """
    try:
        import tensorrt  # noqa: F401
    except ImportError as problem:
        raise EngineError(
            f"TensorRT cannot be used: {problem}. On a Jetson, JetPack brings it (python3-libnvinfer) for "
            "the system's Python only: make the environment with `/usr/bin/python3 -m venv "
            "--system-site-packages` (install.sh does). Elsewhere: pip install tensorrt"
        ) from problem


def version() -> tuple[int, ...]:
    """Version of TensorRT, e.g. `(10, 3, 0)`.

    Raises:
        EngineError: as in `require_bindings`.
    """
    require_bindings()
    import tensorrt as trt

    parts = str(trt.__version__).split(".")
    return tuple(int(part) for part in parts if part.isdigit())


def major() -> int:
    """First number of the version: 8, 10 or 11. Only the choice of precision depends on it."""
    return version()[0]


def has_dla(release: tuple[int, ...]) -> bool:
    """Whether this release of TensorRT can use a Jetson's deep-learning accelerator."""
    return release[:2] <= _LAST_DLA_OF_10 or release >= _FIRST_DLA_OF_11


class Log:
    """Keeps the last lines that TensorRT logged as errors or warnings; all but the finest are passed on.

    TensorRT has one logger for a whole process: it takes the first and warns of others, so a builder that is
    made while an engine is open logs where the engine does. Hence there is one, and every log hears all.

    Attributes:
        logger: the `ILogger` to hand to TensorRT. It lives as long as the process.

    Raises:
        EngineError: as in `require_bindings`.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self.logger = _the_logger()
        _logs[:] = [*(known for known in _logs if known() is not None), weakref.ref(self)]

    def keep(self, line: str) -> None:
        """Take one line."""
        self._lines.append(line)

    def take(self) -> list[str]:
        """The lines kept since the last call, oldest first."""
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        return lines


_logs: list[weakref.ref[Log]] = []


def _write(severity: int, message: str) -> None:
    """Take one line; `severity` is 0 and 1 for errors, 2 for warnings, 3 for information, 4 for more.

    TensorRT calls it from its own threads. It takes no lock of its own and never raises.
    """
    try:
        if severity <= 2:
            for known in tuple(_logs):
                if (log := known()) is not None:
                    log.keep(message.strip())
            _log.warning("tensorrt", severity=severity, message=message.strip())
        elif severity == 3:
            _log.debug("tensorrt", message=message.strip())
    except Exception:  # noqa: BLE001, S110 - into C++ nothing may escape, and there is nobody to tell
        pass


@functools.cache
def _the_logger() -> trt.ILogger:
    """The `ILogger` of this process; its class can only be made once TensorRT is imported."""
    require_bindings()
    import tensorrt as trt

    class Logger(trt.ILogger):  # type: ignore[misc]  # Any where TensorRT is not installed
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # without it, pybind11 calls into nothing

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            _write(int(severity), msg)

    return Logger()


def checked(result: _T | None, what: str, log: Log) -> _T:
    """The result of a call of TensorRT that gives None or False when it fails.

    Args:
        result: what the call gave.
        what: what was to be done, as in "TensorRT could not <what>".
        log: where TensorRT said why.

    Raises:
        EngineError: the call failed; carries the lines that TensorRT logged.
    """
    if result is None or result is False:
        raise EngineError(f"TensorRT could not {what}: {_reason(log)}")
    return result


def _reason(log: Log) -> str:
    return "; ".join(log.take()) or "it logged no reason"


def make_runtime(log: Log) -> trt.Runtime:
    """What loads plans.

    Raises:
        EngineError: TensorRT or a usable GPU is missing. The GPU is asked for first: some releases crash in
            a runtime that was made without one.
    """
    require_bindings()
    cuda.probe()
    import tensorrt as trt

    try:
        return trt.Runtime(log.logger)
    except TypeError as problem:  # how pybind11 says that the factory gave nothing
        raise EngineError(f"TensorRT could not start its runtime: {_reason(log)}") from problem


def make_builder(log: Log) -> trt.Builder:
    """What builds plans.

    Raises:
        EngineError: as in `make_runtime`.
    """
    require_bindings()
    cuda.probe()
    import tensorrt as trt

    try:
        return trt.Builder(log.logger)
    except TypeError as problem:  # as in `make_runtime`
        raise EngineError(f"TensorRT could not start its builder: {_reason(log)}") from problem
