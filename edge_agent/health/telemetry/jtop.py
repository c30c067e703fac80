"""Telemetry from jetson-stats (`jtop`), where it is installed and its service runs.

jetson-stats is licensed under the AGPL: it is an optional extra, and imported only here. Its calls may block
(to connect, and up to three intervals for data), and its client cannot be used after an error. So a separate
thread uses it, creates a new client after each error with increasing back-off, and `read` never blocks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import structlog

from edge_agent.health.telemetry.reading import Reading, celsius, total_power_w, zone_name

_log = structlog.get_logger(__name__)

_FIRST_WAIT_S = 5.0  # a restart of the service takes seconds
_LONGEST_WAIT_S = 300.0  # where the service was never installed


def _connect(interval_s: float) -> AbstractContextManager[Any]:
    from jtop import jtop

    client: AbstractContextManager[Any] = jtop(interval=interval_s)
    return client


class JtopReader:
    """Reads from the jtop service; lifetime is a `with`.

    `connect` returns a client, a context manager with `ok()` and jtop's attributes. The back-off doubles with
    each further failure, from `first_wait_s` up to five minutes.
    """

    def __init__(
        self,
        interval_s: float = 2.0,
        *,
        connect: Callable[[float], AbstractContextManager[Any]] = _connect,
        first_wait_s: float = _FIRST_WAIT_S,
    ) -> None:
        self._interval_s = interval_s
        self._connect = connect
        self._first_wait_s = first_wait_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._latest: tuple[float, Reading] | None = None

    def __enter__(self) -> JtopReader:
        self._stop.clear()
        self._thread = threading.Thread(target=self._follow, name="jtop", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the thread; a thread that hangs in jtop is abandoned, since it is a daemon."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(1.0)

    def read(self) -> Reading:
        """Return the latest reading; without one from the last three intervals, an empty one."""
        latest = self._latest
        if latest is None or time.monotonic() - latest[0] > 3 * self._interval_s:
            return Reading()
        return latest[1]

    def _follow(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                for reading in self._readings():
                    self._latest = (time.monotonic(), reading)
                    if failures:
                        _log.info("jtop_answers", failures=failures)
                    failures = 0
                problem = "no data"
            except ImportError:
                _log.debug("jtop_not_installed")
                return
            except Exception as error:  # noqa: BLE001 - jtop raises plain Exceptions of many kinds
                problem = str(error).splitlines()[0] if str(error) else type(error).__name__
            if self._stop.is_set():
                return
            failures += 1
            (_log.info if failures == 1 else _log.debug)("jtop_does_not_answer", problem=problem)
            self._stop.wait(min(self._first_wait_s * 2 ** (failures - 1), _LONGEST_WAIT_S))

    def _readings(self) -> Iterator[Reading]:
        """Readings of one connection, until it fails or the reader stops."""
        with self._connect(self._interval_s) as client:
            while client.ok() and not self._stop.is_set():
                yield reading_of(client)


def reading_of(client: Any) -> Reading:  # noqa: ANN401 - jtop has no types
    """Convert the values of a jtop client; missing values and unexpected types are None."""
    power, memory, mode, locked = (
        getattr(client, name, None) for name in ("power", "memory", "nvpmodel", "jetson_clocks")
    )
    rails = {name: _scaled(entry.get("power")) for name, entry in _entries(_get(power, "rail"))}
    total = _get(power, "tot", "name")  # the rail that measures the whole module is not among the others
    whole = {total: _scaled(_get(power, "tot", "power"))} if isinstance(total, str) else {}
    gpu = next((entry for _, entry in _entries(getattr(client, "gpu", None))), {})
    fan = next((entry for _, entry in _entries(getattr(client, "fan", None))), {})
    return Reading(
        temperatures_c={
            zone_name(name): celsius(_number(entry.get("temp"))) if entry.get("online", True) else None
            for name, entry in _entries(getattr(client, "temperature", None))
        },
        power_w=rails,
        power_total_w=total_power_w(rails | whole),
        power_mode=None if mode is None else str(mode),
        clocks_locked=None if locked is None else bool(locked),
        fan_percent=_first_number(fan.get("speed")),
        fan_rpm=_first_number(fan.get("rpm")),
        gpu_percent=_number(_get(gpu, "status", "load")),
        gpu_mhz=_scaled(_get(gpu, "freq", "cur")),
        gpu_max_mhz=_scaled(_get(gpu, "freq", "max")),
        engines_mhz={
            name: _scaled(unit.get("cur")) if unit.get("online") else None
            for _, group in _entries(getattr(client, "engine", None))
            for name, unit in _entries(group)
        },
        memory_used_bytes=_bytes(_get(memory, "RAM", "used")),
        memory_total_bytes=_bytes(_get(memory, "RAM", "tot")),
        swap_used_bytes=_bytes(_get(memory, "SWAP", "used")),
    )


def _get(found: object, *path: str) -> object:
    """The value below these keys; None where one is missing."""
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _entries(found: object) -> list[tuple[str, Mapping[str, Any]]]:
    """Names and contents of the mappings in a mapping."""
    entries = found.items() if isinstance(found, Mapping) else ()
    return [(str(name), entry) for name, entry in entries if isinstance(entry, Mapping)]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _scaled(thousandths: object) -> float | None:
    number = _number(thousandths)
    return None if number is None else round(number * 1e-3, 3)


def _bytes(kilobytes: object) -> int | None:
    number = _number(kilobytes)
    return None if number is None else int(number) * 1024


def _first_number(values: object) -> float | None:
    return _number(values[0]) if isinstance(values, (list, tuple)) and values else _number(values)
