"""`edge-agent watch`: show events and health of devices as a subscriber receives them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from edge_agent.cli.output import console, print_message, warn_of_exposed
from edge_agent.core.errors import InputError
from edge_agent.core.files import read_text
from edge_agent.core.text import LONGEST_CELL, visible

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from edge_agent.core.events import Event
    from edge_agent.core.mqtt import BrokerSettings
    from edge_agent.deliver.subscriber import Subscriber

RECENT = 15
"""Events shown."""


def command(
    broker: Annotated[str, Option(help="mqtt://HOST:PORT or mqtts://HOST:PORT.")] = "mqtt://127.0.0.1:1883",
    site: Annotated[str, Option(help="Site to watch; + for all.")] = "+",
    device: Annotated[str, Option(help="Device to watch; + for all.")] = "+",
    *,
    as_json: Annotated[bool, Option("--json", help="Print each message as one line of JSON.")] = False,
    count: Annotated[
        int | None, Option(min=1, metavar="N", help="End after N messages; for scripts.")
    ] = None,
    username: Annotated[str | None, Option(help="User name on the broker.")] = None,
    password_file: Annotated[
        Path | None, Option(metavar="FILE", help="File that holds the password.")
    ] = None,
    ca_file: Annotated[Path | None, Option(metavar="FILE", help="CA certificates, PEM.")] = None,
    cert_file: Annotated[Path | None, Option(metavar="FILE", help="Client certificate, PEM.")] = None,
    key_file: Annotated[Path | None, Option(metavar="FILE", help="Its key, PEM.")] = None,
    mqtt_version: Annotated[str, Option(metavar="5|3.1.1", help="MQTT version.")] = "5",
) -> None:
    """Show identity events and device health from a broker, until Ctrl-C."""
    from edge_agent.core.delivery_settings import MqttSettings
    from edge_agent.core.mqtt import BrokerSettings
    from edge_agent.deliver.subscriber import Subscriber
    from edge_agent.deliver.topics import PREFIX

    if mqtt_version not in {"5", "3.1.1"}:
        raise typer.BadParameter("write 5 or 3.1.1", param_hint="--mqtt-version")
    settings = BrokerSettings.of(
        MqttSettings(
            broker=broker,
            username=username,
            password=password_file and _password(password_file),
            ca_file=ca_file,
            cert_file=cert_file,
            key_file=key_file,
            version=mqtt_version,
        )
    )
    with Subscriber(settings, (f"{PREFIX}/{site}/{device}/#",)) as subscriber:
        try:
            if as_json:
                _print_lines(subscriber, count)
            else:
                _show(subscriber, settings, count)
        except KeyboardInterrupt:
            return


def _password(path: Path) -> str:
    warn_of_exposed([path])
    return read_text(path).rstrip("\r\n")


def _print_lines(subscriber: Subscriber, count: int | None) -> None:
    for number, message in enumerate(subscriber, start=1):
        print_message(message.payload)
        if number == count:
            return


def _show(subscriber: Subscriber, settings: BrokerSettings, count: int | None) -> None:
    """Draw the view twice a second, or when a message arrives."""
    from rich.live import Live

    view = View(settings.url)
    seen = 0
    with Live(view.render(), console=console(), refresh_per_second=4, screen=False) as live:
        while count is None or seen < count:
            message = subscriber.next(0.5)
            while message is not None:
                view.add(message.topic, message.payload)
                seen += 1
                message = subscriber.next(0.0) if seen != count else None
            view.connected = subscriber.connected
            live.update(view.render())


_FIGURES = {
    "hottest": ("hottest_c", " °C"),
    "throttled": ("throttled", ""),
    "power": ("power_total_w", " W"),
    "crops/s": ("crops_per_s", ""),
    "outbox": ("outbox_rows", ""),
    "people": ("people_present", ""),
}
"""Column of the table of devices -> field of the telemetry, unit."""


_EVENT_COLUMNS = ("time", "seq", "device", "event", "camera", "who", "score", "threshold", "why")
_UNBROKEN = {"time", "seq", "who", "score", "threshold"}
"""Columns that a narrow terminal does not break."""
_LONGEST_NAME = 24


@dataclass(slots=True)
class View:
    """State from the messages so far, and its display."""

    broker: str
    connected: bool = True
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Device -> `status`, `info`, `telemetry` or `camera NAME` -> data of the latest message."""
    recent: deque[Event] = field(default_factory=lambda: deque(maxlen=RECENT))
    unread: int = 0
    """Messages that are not events, e.g. commands."""

    def add(self, topic: str, payload: bytes) -> None:
        """Update the state from one message."""
        from edge_agent.core.codec import decode

        try:
            event = decode(payload)
        except InputError:
            self.unread += 1
            return
        latest = self.devices.setdefault("/".join(topic.split("/")[2:4]), {})
        if event.kind in {"status", "info", "telemetry"}:
            latest[event.kind] = event.data
        elif event.kind == "present":
            latest["present"] = event.data
        elif event.kind == "camera":
            latest[f"camera {event.data.camera}"] = event.data
        else:
            self.recent.append(event)

    def render(self) -> Group:
        """Three tables: devices, cameras, events."""
        from rich.console import Group

        return Group(self._devices(), "", self._cameras(), "", self._events())

    def _devices(self) -> Table:
        table = _table(("device", "state", "model", *_FIGURES))
        table.title = f"{self.broker}{'' if self.connected else '  (connection lost, trying again)'}"
        for name, latest in sorted(self.devices.items()):
            status, info, now = (latest.get(kind) for kind in ("status", "info", "telemetry"))
            state = "" if status is None else f"{status.state} {status.reason}".strip()
            model = "" if info is None else f"{info.model.name} {info.model.precision}"
            figures = [_figure(getattr(now, key, None), unit) for key, unit in _FIGURES.values()]
            table.add_row(*map(_cell, (name, state, model, *figures)))
        return table

    def _cameras(self) -> Table:
        table = _table(("camera", "state", "reason", "frames/s"))
        for name, latest in sorted(self.devices.items()):
            rates = latest["telemetry"].frames_per_s if "telemetry" in latest else {}
            for key, status in sorted(latest.items()):
                if key.startswith("camera "):
                    rate = _figure(rates.get(status.camera))
                    cells = (f"{name} {status.camera}", status.state, status.reason, rate)
                    table.add_row(*map(_cell, cells))
        return table

    def _events(self) -> Table:
        from rich.text import Text

        titles = list(_EVENT_COLUMNS)
        if len(self.devices) == 1:
            titles.remove("device")  # the first table names it
        table = _table(titles)
        for event in self.recent:
            cells = _cells(event)
            table.add_row(
                *(Text(cells[title]) if title == "who" else _cell(cells[title]) for title in titles)
            )
        return table


def _table(titles: Iterable[str]) -> Table:
    """Return an empty table that breaks long texts; names of people are cut."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(expand=True, box=SIMPLE_HEAD, padding=0, show_edge=False)
    for title in titles:
        made.add_column(title, no_wrap=title in _UNBROKEN, overflow="fold")
    return made


def _cells(event: Event) -> dict[str, str]:
    """Return the texts of an event by the titles of the table."""
    from edge_agent.core.timing import rfc3339

    data = event.data
    cells = dict.fromkeys(_EVENT_COLUMNS, "") | {
        "time": rfc3339(event.time)[11:19],
        "seq": _figure(event.seq),
        "device": event.source.removeprefix("edge/v1/"),
    }
    if event.kind == "identity":
        before = (data.previous_identity_id or "unknown",) if data.kind == "corrected" else ()
        return cells | {
            "event": data.kind,
            "camera": f"{data.camera} #{data.track_id}",
            "who": _people(*before, data.name or data.identity_id or "unknown"),
            "score": _figure(data.score),
            "threshold": _figure(data.threshold),
            "why": data.reason or data.rule,
        }
    if event.kind == "person":
        before = tuple(one for one in (data.absorbed_id, data.split_from_id) if one is not None)
        who = _people(*before, data.name or data.identity_id)
        return cells | {"event": f"person {data.kind}", "who": who, "why": data.reason}
    if event.kind == "alert":
        return cells | {"event": f"alert {data.kind}", "why": data.message}
    if event.kind == "gap":
        ranges = ", ".join(f"{r.first}-{r.last}" for r in data.ranges[:5])
        return cells | {"event": f"gap of {data.count}", "why": f"{data.reason}: {ranges}"}
    return cells | {"event": event.type}


def _people(*names: str) -> str:
    """Return one person, or the one before a change and the one after it, each on a line."""
    return " ->\n".join(visible(name, _LONGEST_NAME) for name in names)


def _cell(text: str) -> str:
    return visible(text, LONGEST_CELL)


def _figure(value: float | None, unit: str = "") -> str:
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "no"}[value]
    return f"{value:.3g}{unit}" if isinstance(value, float) else str(value)
