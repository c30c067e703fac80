"""The environment of a benchmark: the machine, a filled gallery and a broker."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_agent import __version__
from edge_agent.core.errors import DeliveryError
from edge_agent.health.telemetry.reading import Reading

if TYPE_CHECKING:
    from edge_agent.core.config import Settings
    from edge_agent.core.structures import EngineInfo


def fill_gallery(settings: Settings, info: EngineInfo, identities: int, exemplars: int) -> None:
    """Fill the gallery of the state folder, by its own import, with random embeddings far from each other."""
    from edge_agent.core.names import new_id
    from edge_agent.gallery.archive import Archive, ArchivedIdentity, Exemplar, import_archive, write_archive
    from edge_agent.gallery.gallery import open_gallery

    if not identities:
        return
    random, now = np.random.default_rng(5), time.time()
    source = Exemplar(quality=0.9, origin="bench", camera="bench", time=now)
    known = {"name": None, "kind": "auto", "created": now, "last_seen": now, "sightings": 1, "former_ids": ()}
    people = tuple(
        ArchivedIdentity.model_validate({**known, "id": new_id(), "exemplars": (source,) * exemplars})
        for _ in range(identities)
    )
    vectors = np.empty((identities, exemplars, info.dimension), np.float32)
    for rows in vectors:
        middle = random.standard_normal(info.dimension, np.float32)
        rows[:] = middle + 0.5 * random.standard_normal((exemplars, info.dimension), np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    archive, flat = settings.state_dir / "people.zip", vectors.reshape(-1, info.dimension)
    write_archive(archive, Archive(info.space, info.dimension, people, {}, flat))
    with open_gallery(settings, info, owner=True) as gallery:
        import_archive(gallery, archive)
    archive.unlink()


@contextmanager
def open_broker(folder: Path) -> Iterator[tuple[str, str]]:
    """Run a broker on 127.0.0.1, mosquitto or else the package `iotcore`; yield its address and its name.

    Raises:
        ConfigError: neither is installed.
        DeliveryError: the broker does not start.
    """
    binary = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        from edge_agent.offline.demo.broker import DemoBroker

        with DemoBroker() as demo:
            yield demo.url, "iotcore (rumqttd)"
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    config = folder / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    process = subprocess.Popen(  # noqa: S603 - mosquitto, as found on PATH
        [binary, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _await_port(port, process)
        yield f"mqtt://127.0.0.1:{port}", "mosquitto"
    finally:
        process.terminate()
        process.wait(10)


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise DeliveryError(f"mosquitto does not start on port {port}; name a broker with --broker")


_READ = (
    "board", "l4t", "power_mode", "clocks_locked", "cpu_mhz", "cpu_max_mhz", "gpu_mhz", "gpu_max_mhz",
    "hottest_c", "throttled",
)  # fmt: skip


def machine(reading: Reading | None = None) -> dict[str, Any]:
    """Return facts about this machine: hardware, clocks, power mode, temperature, versions."""
    reading = reading or Reading()
    return {
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        **{name: getattr(reading, name) for name in _READ},
        "python": platform.python_version(),
        "edge_agent": __version__,
    }


def _cpu_name() -> str | None:
    """Name from the kernel; None on boards whose kernel has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
