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
from types import TracebackType
from typing import Any

import structlog

from edge_agent.health.telemetry.reading import Reading, celsius, total_power_w, zone_name

__all__ = ["JtopReader", "reading_of"]

_log = structlog.get_logger(__name__)

_FIRST_WAIT_S = 5.0  # a restart of the service takes seconds
_LONGEST_WAIT_S = 300.0  # where the service was never installed


def _connect(interval_s: float) -> AbstractContextManager[Any]:
    from jtop import jtop

    client: AbstractContextManager[Any] = jtop(interval=interval_s)
    return client


class JtopReader:
    """Reads from the jtop service; lifetime is a `with`.

    Args:
        interval_s: interval of readings.
        connect: returns a client, a context manager with `ok()` and jtop's attributes.
        first_wait_s: back-off after the first failure; it doubles with each further one up to five minutes.
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
    rails = {name: _scaled(_of(entry, "power"), 1e-3) for name, entry in _entries(client, "power", "rail")}
    gpu = next((entry for _, entry in _entries(client, "gpu")), {})
    fan = next((entry for _, entry in _entries(client, "fan")), {})
    ram = _of(_mapping(client, "memory"), "RAM")
    swap = _of(_mapping(client, "memory"), "SWAP")
    return Reading(
        temperatures_c={
            zone_name(name): celsius(_number(_of(entry, "temp"))) if _of(entry, "online", True) else None
            for name, entry in _entries(client, "temperature")
        },
        power_w=rails,
        power_total_w=total_power_w(rails | _input_rail(_of(_mapping(client, "power"), "tot"))),
        power_mode=_word(client, "nvpmodel"),
        clocks_locked=_truth(client, "jetson_clocks"),
        fan_percent=_first_number(_of(fan, "speed")),
        fan_rpm=_first_number(_of(fan, "rpm")),
        gpu_percent=_number(_of(_of(gpu, "status"), "load")),
        gpu_mhz=_scaled(_of(_of(gpu, "freq"), "cur"), 1e-3),
        gpu_max_mhz=_scaled(_of(_of(gpu, "freq"), "max"), 1e-3),
        engines_mhz=_engines(client),
        memory_used_bytes=_bytes(_of(ram, "used")),
        memory_total_bytes=_bytes(_of(ram, "tot")),
        swap_used_bytes=_bytes(_of(swap, "used")),
    )


def _engines(client: object) -> dict[str, float | None]:
    """Clocks of the units in MHz; None for a unit that is off."""
    return {
        name: _scaled(_of(unit, "cur"), 1e-3) if _of(unit, "online") else None
        for _, group in _entries(client, "engine")
        for name, unit in group.items()
        if isinstance(unit, Mapping)
    }


def _input_rail(total: object) -> dict[str, float | None]:
    """The rail that measures the whole module: jtop lists it apart from the other rails."""
    name = _of(total, "name")
    return {name: _scaled(_of(total, "power"), 1e-3)} if isinstance(name, str) else {}


def _mapping(client: object, attribute: str) -> Mapping[str, Any]:
    found = getattr(client, attribute, None)
    return found if isinstance(found, Mapping) else {}


def _entries(client: object, *path: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Names and contents of the mappings below an attribute and keys."""
    found: object = _mapping(client, path[0])
    for key in path[1:]:
        found = _of(found, key)
    if not isinstance(found, Mapping):
        return []
    return [(str(name), entry) for name, entry in found.items() if isinstance(entry, Mapping)]


def _of(entries: object, key: str, otherwise: object = None) -> object:
    return entries.get(key, otherwise) if isinstance(entries, Mapping) else otherwise


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _scaled(value: object, factor: float) -> float | None:
    number = _number(value)
    return None if number is None else round(number * factor, 3)


def _bytes(kilobytes: object) -> int | None:
    number = _number(kilobytes)
    return None if number is None else int(number) * 1024


def _first_number(values: object) -> float | None:
    return _number(values[0]) if isinstance(values, (list, tuple)) and values else _number(values)


def _word(client: object, attribute: str) -> str | None:
    found = getattr(client, attribute, None)
    return None if found is None else str(found)


def _truth(client: object, attribute: str) -> bool | None:
    found = getattr(client, attribute, None)
    return None if found is None else bool(found)
