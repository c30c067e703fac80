"""`edge-agent watch`: show events and health of devices as a subscriber receives them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_agent.core.errors import InputError

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from edge_agent.core.events import Event
    from edge_agent.core.mqtt import BrokerSettings
    from edge_agent.deliver.subscriber import Subscriber

RECENT = 15
"""Events shown."""


def command(
    broker: Annotated[
        str, typer.Option(help="mqtt://HOST:PORT or mqtts://HOST:PORT.")
    ] = "mqtt://127.0.0.1:1883",
    site: Annotated[str, typer.Option(help="Site to watch; + for all.")] = "+",
    device: Annotated[str, typer.Option(help="Device to watch; + for all.")] = "+",
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print each message as one line of JSON.")] = False,
    count: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="End after N messages; for scripts.")
    ] = None,
    username: Annotated[str | None, typer.Option(help="User name on the broker.")] = None,
    password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File that holds the password.")
    ] = None,
    ca_file: Annotated[Path | None, typer.Option(metavar="FILE", help="CA certificates, PEM.")] = None,
    cert_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Client certificate, PEM.")] = None,
    key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Its key, PEM.")] = None,
    mqtt_version: Annotated[str, typer.Option(metavar="5|3.1.1", help="MQTT version.")] = "5",
) -> None:
    """Show identity events and device health from a broker, until Ctrl-C."""
    from edge_agent.core.config import MqttSettings
    from edge_agent.core.mqtt import BrokerSettings
    from edge_agent.deliver.subscriber import Subscriber
    from edge_agent.deliver.topics import PREFIX

    if mqtt_version not in {"5", "3.1.1"}:
        raise typer.BadParameter("write 5 or 3.1.1", param_hint="--mqtt-version")
    settings = BrokerSettings.of(
        MqttSettings(
            broker=broker,
            username=username,
            password=_password(password_file),
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


def _password(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text().rstrip("\r\n")
    except OSError as problem:
        raise InputError(f"cannot read the password file {path}: {problem.strerror}") from problem


def _print_lines(subscriber: Subscriber, count: int | None) -> None:
    for number, message in enumerate(subscriber, start=1):
        print(message.payload.decode(errors="replace"), flush=True)
        if number == count:
            return


def _show(subscriber: Subscriber, settings: BrokerSettings, count: int | None) -> None:
    """Draw the view twice a second, or when a message arrives."""
    from rich.live import Live

    view = View(settings.url)
    seen = 0
    with Live(view.render(), refresh_per_second=4, screen=False) as live:
        while count is None or seen < count:
            message = subscriber.next(0.5)
            while message is not None:
                view.add(message.topic, message.payload)
                seen += 1
                message = subscriber.next(0.0) if seen != count else None
            view.connected = subscriber.connected
            live.update(view.render())


@dataclass(slots=True)
class DeviceView:
    """The latest messages of one device."""

    status: Any = None
    info: Any = None
    telemetry: Any = None
    cameras: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class View:
    """State from the messages so far, and its display."""

    broker: str
    connected: bool = True
    devices: dict[str, DeviceView] = field(default_factory=dict)
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
        name = "/".join(topic.split("/")[2:4])
        device = self.devices.setdefault(name, DeviceView())
        if event.kind == "status":
            device.status = event.data
        elif event.kind == "info":
            device.info = event.data
        elif event.kind == "telemetry":
            device.telemetry = event.data
        elif event.kind == "camera":
            device.cameras[event.data.camera] = event.data
        else:
            self.recent.append(event)

    def render(self) -> Group:
        """Three tables: devices, cameras, events."""
        from rich.console import Group

        return Group(self._devices(), self._cameras(), self._events())

    def _devices(self) -> Table:
        from rich.table import Table

        title = f"{self.broker}{'' if self.connected else '  (connection lost, trying again)'}"
        columns = ("device", "state", "model", "hottest", "throttled", "power", "crops/s", "outbox", "people")
        table = Table(*columns, title=title, expand=True)
        for name, device in sorted(self.devices.items()):
            status, now = device.status, device.telemetry
            state = "" if status is None else f"{status.state} {status.reason}".strip()
            model = "" if device.info is None else f"{device.info.model.name} {device.info.model.precision}"
            table.add_row(
                _plain(name),
                _plain(state),
                _plain(model),
                _number(now and now.hottest_c, "°C"),
                "" if now is None or now.throttled is None else ("yes" if now.throttled else "no"),
                _number(now and now.power_total_w, "W"),
                _number(now and now.crops_per_s, ""),
                "" if now is None or now.outbox_rows is None else str(now.outbox_rows),
                "" if now is None or now.people_present is None else str(now.people_present),
            )
        return table

    def _cameras(self) -> Table:
        from rich.table import Table

        table = Table("camera", "state", "reason", "frames/s", expand=True)
        for name, device in sorted(self.devices.items()):
            rates = device.telemetry.frames_per_s if device.telemetry else {}
            for camera, status in sorted(device.cameras.items()):
                rate = _number(rates.get(camera), "")
                table.add_row(*map(_plain, (f"{name} {camera}", status.state, status.reason, rate)))
        return table

    def _events(self) -> Table:
        from rich.table import Table

        table = Table(
            "time", "seq", "device", "event", "camera", "who", "score", "threshold", "why", expand=True
        )
        for event in self.recent:
            table.add_row(*map(_plain, _cells(event)))
        return table


def _cells(event: Event) -> tuple[str, ...]:
    """Return one row of the table of events."""
    from edge_agent.core.timing import rfc3339

    data = event.data
    start = (
        rfc3339(event.time)[11:23],
        "" if event.seq is None else str(event.seq),
        event.source.removeprefix("edge/v1/"),
    )
    if event.kind == "identity":
        who = data.name or data.identity_id or "unknown"
        scores = (_number(data.score, ""), _number(data.threshold, ""))
        return (*start, data.kind, f"{data.camera} #{data.track_id}", who, *scores, data.reason or data.rule)
    if event.kind == "alert":
        return (*start, f"alert {data.kind}", "", "", "", "", data.message)
    if event.kind == "gap":
        ranges = ", ".join(f"{r.first}-{r.last}" for r in data.ranges[:5])
        return (*start, f"gap of {data.count}", "", "", "", "", f"{data.reason}: {ranges}")
    return (*start, event.type, "", "", "", "", "")


def _plain(text: str) -> str:
    """Received text without control characters and markup."""
    from rich.markup import escape

    return escape("".join(letter if letter.isprintable() else "?" for letter in text))


def _number(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.3g}{' ' if unit else ''}{unit}"
