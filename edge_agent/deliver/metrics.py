"""Prometheus metrics on the loopback interface; none of them identifies a person.

Telemetry metrics (declared in `core.telemetry`) show the latest telemetry. Counters of delivery are read at
each scrape. Durations of the stages are histograms. `core.serving` bounds what clients may take.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from edge_agent.core.errors import ConfigError
from edge_agent.core.events import InfoData
from edge_agent.core.fields import Metric
from edge_agent.core.serving import BoundedServer, Stream
from edge_agent.core.telemetry import TelemetryData
from edge_agent.core.text import LONGEST_CELL, visible
from edge_agent.deliver.connection import ConnectionState
from edge_agent.deliver.http import Api
from edge_agent.deliver.local import Counters

STAGE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
ADDRESS = "127.0.0.1"
PATHS = ("/", "/metrics")
WAITING = ("in_flight", "outbox_rows", "outbox_bytes", "outbox_parked", "copies_rows")
"""Counters of delivery that are gauges."""
_FORMAT = re.compile(
    r" *[\w/*+.-]+(?: *; *(?:version=\d{1,4}(?:\.\d{1,4}){0,3}|(?!version=)\w+=[\w.-]+))* *", re.ASCII
)
"""A format that a client accepts. The Prometheus library fails at other versions, and repeats them."""


class Delivery(Protocol):
    """Publisher whose counters and connection are shown."""

    @property
    def counters(self) -> Counters: ...  # noqa: D102
    @property
    def state(self) -> ConnectionState: ...  # noqa: D102


class Metrics(Collector):
    """Serves metrics while it is entered, without a password; port 0: `port` becomes a free one.

    `api` answers the other paths, which need a token.
    """

    def __init__(self, *, port: int, delivery: Delivery, info: InfoData, api: Api | None = None) -> None:
        self.port = port
        self._api = api
        self._delivery = delivery
        self._info = info
        self._telemetry: TelemetryData | None = None
        self._registry = CollectorRegistry()
        self._stages = Histogram(
            "edge_agent_stage_seconds",
            "Time spent per stage for one frame or batch.",
            ["stage"],
            buckets=STAGE_BUCKETS_S,
            registry=self._registry,
        )
        self._registry.register(self)
        self._server: BoundedServer | None = None

    def __enter__(self) -> Metrics:
        """Start to listen; ConfigError: the port is not available."""
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((ADDRESS, self.port))
            self.port = listening.getsockname()[1]
            self._server = BoundedServer(listening, self._answer, name="metrics").__enter__()
            if self._api is not None:
                self._api.origin.notify = self._server.notify
        except OSError as problem:
            listening.close()
            raise ConfigError(
                f"telemetry.metrics_port: cannot listen on {ADDRESS}:{self.port}: {problem.strerror};"
                " choose another port"
            ) from problem
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.__exit__()

    def _answer(self, request: bytes) -> bytes | Stream | None:
        """Return the HTTP answer to a request; None while its head is incomplete."""
        head, end, _ = request.partition(b"\r\n\r\n")
        if not end:
            return None
        line, *lines = head.decode("latin-1").split("\r\n")
        method, _, rest = line.partition(" ")
        target, _, version = rest.partition(" ")
        if not version.startswith("HTTP/1."):
            return _http("400 Bad Request")
        if method not in ("GET", "HEAD"):
            return _http("405 Method Not Allowed")
        path, _, query = target.partition("?")
        if path not in PATHS:
            return self._answer_api(method, path, query, lines)
        accepted = [
            text for name, _, text in (one.partition(":") for one in lines) if name.lower() == "accept"
        ]
        known = [one for one in ",".join(accepted).split(",") if _FORMAT.fullmatch(one)]
        encode, content_type = choose_encoder(",".join(known))
        body = encode(self._registry)
        return _http("200 OK", body if method == "GET" else b"", content_type, length=len(body))

    def _answer_api(self, method: str, path: str, query: str, lines: list[str]) -> bytes | Stream:
        if self._api is None:
            return _http("404 Not Found")
        fields = (line.partition(":") for line in lines)
        answer = self._api.answer(path, query, {name.lower(): text.strip() for name, _, text in fields})
        if isinstance(answer, Stream):
            return _http("405 Method Not Allowed") if method == "HEAD" else answer
        body = answer.body if method == "GET" else b""
        return _http(answer.status, body, answer.content_type, length=len(answer.body), more=answer.header)

    def observe(self, stage: str, seconds: float) -> None:
        """Record the duration of a stage."""
        self._stages.labels(stage).observe(seconds)

    def take(self, telemetry: TelemetryData) -> None:
        """Replace the telemetry that is shown."""
        self._telemetry = telemetry

    def collect(self) -> Iterator[Any]:
        """All families except the histograms; called by the Prometheus library at each scrape."""
        info, model = self._info, self._info.model
        labels = {
            "version": info.version,
            "model": model.name,
            "backend": model.backend,
            "precision": model.precision,
            "detector": info.detector or "",
        }
        labels = {name: _label(text) for name, text in labels.items()}
        yield InfoMetricFamily("edge_agent", "Versions and model of the agent.", labels)
        now, text = self._delivery.state, "1 for the state of the connection."
        states = GaugeMetricFamily("edge_agent_broker", text, labels=["state"])
        for state in ConnectionState:
            states.add_metric([state.value], float(state is now))
        yield states
        for name, value in asdict(self._delivery.counters).items():
            if name in WAITING:
                yield GaugeMetricFamily(f"edge_agent_delivery_{name}", "Current value.", value=value)
            else:
                yield CounterMetricFamily(f"edge_agent_delivery_{name}", "Since the start.", value=value)
        if self._telemetry is not None:
            yield from telemetry_families(self._telemetry)


def _http(
    status: str,
    body: bytes = b"",
    content_type: str = "text/plain",
    *,
    length: int | None = None,
    more: str = "",
) -> bytes:
    """Return an HTTP answer that ends its connection."""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n{more}Connection: close\r\n\r\n"
    )
    return head.encode() + body


def telemetry_families(telemetry: TelemetryData) -> Iterator[Any]:
    """One family for each field that declares a metric; unknown values have no sample."""
    for field in fields(telemetry):
        metric: Metric | None = field.metadata["metric"]
        value = getattr(telemetry, field.name)
        if metric is None or value is None:
            continue
        family_type = CounterMetricFamily if metric.counter else GaugeMetricFamily
        labels = [metric.label] if metric.label else []
        family = family_type(f"edge_agent_{metric.name}", field.metadata["description"], labels=labels)
        if metric.label is None:
            family.add_metric([], float(value))
        else:
            entries = value if isinstance(value, Mapping) else dict.fromkeys(value, 1.0)
            for label, number in {_label(key): number for key, number in entries.items()}.items():
                family.add_metric([label], number)
        yield family


def _label(text: str) -> str:
    """Return a label, which the library quotes; it leaves characters that end a line for some readers."""
    return visible(text, LONGEST_CELL)
