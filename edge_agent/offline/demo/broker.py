"""A broker for the demo and for tests: rumqttd, from the wheel of the package `iotcore`.

It listens on 127.0.0.1 only, supports MQTT 5, keeps everything in memory and does not send reason code 16.
For any other purpose run mosquitto.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from string import Template
from types import TracebackType
from typing import Any

from edge_agent.core.errors import ConfigError, DeliveryError

_CONFIG = Path(__file__).parent / "rumqttd.toml"


class DemoBroker:
    """A broker that runs while it is entered, on the given TCP port of 127.0.0.1, or any free one (0)."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self._broker: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def url(self) -> str:
        """Address for `mqtt.broker`."""
        return f"mqtt://127.0.0.1:{self.port}"

    def __enter__(self) -> DemoBroker:
        """Start the broker.

        Raises:
            ConfigError: the package `iotcore` is not installed.
            DeliveryError: the port is in use, or the broker does not start.
        """
        try:
            from iotcore import Broker
        except ImportError as problem:
            raise ConfigError(
                "there is no demo broker: install edge-agent with the extra `demo`"
                " (`bench --pipeline` also accepts another broker: --broker URL)"
            ) from problem
        self.port = self.port or _free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="edge-agent-broker-")
        config = Path(self._folder.name) / "rumqttd.toml"
        config.write_text(Template(_CONFIG.read_text(encoding="utf-8")).substitute(port=self.port))
        try:
            with _interrupt_blocked():
                self._broker = Broker(config_path=str(config)).start()
        except (OSError, RuntimeError) as problem:
            self._folder.cleanup()
            raise DeliveryError(f"no demo broker on port {self.port}: {problem}") from problem
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._broker is not None:
            self._broker.stop()
        if self._folder is not None:
            self._folder.cleanup()


@contextlib.contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """Shield a process started in the block from Ctrl-C, so that the agent can still publish `offline`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
