"""Everything that this agent says on the wire: one dataclass per event, encoded as CloudEvents 1.0 JSON.

A message is an envelope (`Event`) around the data of one kind::

    {"specversion": "1.0", "id": "...", "source": "edge/v1/<site>/<device>",
     "type": "edge.identity.matched.v1", "time": "2024-05-01T10:00:00.000Z",
     "datacontenttype": "application/json", "dataschema": "urn:edge-agent:schema:identity:1",
     "session": "...", "traceparent": "00-...", "data": {...}, "seq": 17}

`session` names one run of the agent. `seq` counts the events of a device that must not be lost (identity,
gap, alert), over all its sessions and without holes; messages that are retained or may be lost have none.

Times are Unix seconds in these classes and RFC 3339 text in UTC with milliseconds on the wire. Readers
tolerate keys that they do not know: within version 1 keys are only added. The JSON Schemas and the AsyncAPI
document under `docs/` are generated from this file.
"""

# ruff: noqa: RUF009 - `about` returns a dataclasses.field, which is what a default may be

from __future__ import annotations

import hashlib
import json
import types
import typing
import uuid
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from edge_agent.core.errors import InputError
from edge_agent.core.structures import Decision, EngineInfo, SourceStatus

__all__ = [
    "COMMAND_TYPES",
    "DATA_TYPES",
    "NUMBERED",
    "AlertData",
    "CameraInfo",
    "CameraStatusData",
    "Command",
    "CommandResultData",
    "DeviceSummary",
    "EngineData",
    "EnrolCommand",
    "Event",
    "ForgetCommand",
    "GapData",
    "IdentityData",
    "InfoData",
    "MergeCommand",
    "NameCommand",
    "NumberRange",
    "RecalibrateCommand",
    "ReloadCommand",
    "StatsCommand",
    "StatusData",
    "TelemetryData",
    "alert_event",
    "camera_status_event",
    "command_schema",
    "data_schema",
    "decode",
    "encode",
    "envelope",
    "envelope_schema",
    "from_wire",
    "identity_event",
    "new_event",
    "parse_time",
    "rfc3339",
    "schema_urn",
    "to_wire",
]

JSON_SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
NUMBERED = frozenset({"identity", "gap", "alert"})
"""Kinds of data that go through the outbox and carry `seq`."""


def about(description: str, *, default: Any = MISSING, **schema: Any) -> Any:  # noqa: ANN401 - as `field`
    """A dataclass field with what its JSON Schema says: a description, and keywords such as `unit`.

    `format="date-time"` marks a float of Unix seconds that travels as RFC 3339 text.
    """
    metadata = {"description": description, **schema}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def _mapping() -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class DeviceSummary:
    """How the device was when the event was made; null where the device does not say."""

    temperature_c: float | None = about("Hottest sensor.", default=None, unit="degC")
    temperature_zone: str | None = about("Name of that sensor.", default=None)
    throttled: bool | None = about("Whether the clock is held down by heat or current.", default=None)
    power_mode: str | None = about("Power mode as nvpmodel names it, e.g. MAXN.", default=None)
    power_w: float | None = about("Power drawn by the whole module.", default=None, unit="W")


@dataclass(frozen=True, slots=True)
class EngineData:
    """The network that made the embeddings."""

    name: str = about("Name of the model, for people.")
    sha256: str = about("SHA-256 of the ONNX file that the user named.")
    backend: str = about("onnxruntime, tensorrt, or simulated:<name>.")
    precision: str = about("fp32, fp16 or int8.")
    space: str = about("Id of the embedding space; scores of two spaces are not comparable.")
    dimension: int = about("Numbers in one embedding.", minimum=0)
    device: str = about("What it runs on, for people.")

    @staticmethod
    def of(engine: EngineInfo) -> EngineData:
        """The part of an engine's description that subscribers see."""
        return EngineData(
            name=engine.model,
            sha256=engine.model_sha256,
            backend=engine.backend,
            precision=engine.precision,
            space=engine.space,
            dimension=engine.dimension,
            device=engine.device,
        )


@dataclass(frozen=True, slots=True)
class IdentityData:
    """What the agent decided about one person in front of one camera."""

    kind: Literal["matched", "enrolled", "corrected", "departed", "unknown"] = about(
        "matched: known person; enrolled: new person, now in the gallery; corrected: a later look overturned"
        " an earlier event; departed: the person's track ended; unknown: a track without identity."
    )
    camera: str = about("Id of the camera.")
    track_id: int = about("Number of the track within its camera and session.", minimum=1)
    identity_id: str | None = about("Opaque id of the person; null when unknown.")
    number: int | None = about("The person's number in the local gallery; null when unknown.")
    name: str | None = about("What the operator calls the person; null without a name.")
    score: float | None = about(
        "Cosine of the track's pooled evidence and the identity; null when nothing was compared.",
        minimum=-1,
        maximum=1,
    )
    runner_up: float | None = about(
        "The same for the second-best identity; null when there is none.", minimum=-1, maximum=1
    )
    margin: float | None = about("score minus runner_up; null when either is null.")
    threshold: float | None = about("What the score was held against; null when nothing was compared.")
    rule: str = about("Where the threshold came from: calibrated, site, warm-up, configured, watchlist.")
    evidence: int = about("Number of crops pooled.", minimum=0)
    quality: float = about("Mean quality of those crops.", minimum=0, maximum=1)
    bbox: tuple[float, float, float, float] = about(
        "Where the person was last seen: x1, y1, x2, y2 as fractions of the frame's width and height; may"
        " reach over the border.",
    )
    frame: int = about("Number of the frame at which this was decided.", minimum=0)
    frame_time: float = about("Capture time of that frame.", format="date-time")
    first_seen: float = about("First time of this track.", format="date-time")
    last_seen: float = about("Last time of this track.", format="date-time")
    model: EngineData = about("The network that made the embeddings.")
    simulated: bool = about("True when the engine only simulates a network: the event means nothing.")
    corrects: str | None = about("Id of the event that this one overturns, for corrected.", default=None)
    previous_identity_id: str | None = about("Identity that the overturned event named.", default=None)
    reason: str = about("A short word for why, e.g. contested, fused, re-entry, expired.", default="")
    detector: str | None = about("What found the person, e.g. hog.", default=None)
    latency_ms: dict[str, float] = about(
        "Milliseconds spent per stage; `total` is from capture to decision.", default=_mapping, unit="ms"
    )
    device: DeviceSummary = about("State of the device at this moment.", default=DeviceSummary)


@dataclass(frozen=True, slots=True)
class StatusData:
    """Whether the agent works. Retained; the broker publishes `offline` in its place when it dies."""

    state: Literal["online", "degraded", "stopping", "offline"] = about(
        "online: all works; degraded: works in part, see reason; stopping: clean stop under way;"
        " offline: gone."
    )
    since: float = about("When this state began.", format="date-time")
    reason: str = about("Why, for people; empty when all is well.", default="")
    version: str = about("Version of the agent.", default="")


@dataclass(frozen=True, slots=True)
class CameraInfo:
    """One camera as configured; its address is not told."""

    camera: str = about("Id of the camera.")
    kind: str = about("file, rtsp, v4l2, csi, crops or another kind of source.")
    name: str | None = about("What the operator calls it.", default=None)


@dataclass(frozen=True, slots=True)
class InfoData:
    """What runs on the device: published at every connect, before the status. Retained."""

    version: str = about("Version of the agent.")
    model: EngineData = about("The network that makes the embeddings.")
    simulated: bool = about("True when the engine only simulates a network.", default=False)
    detector: str | None = about("What finds people, e.g. hog.", default=None)
    cameras: tuple[CameraInfo, ...] = about("Sources as configured.", default=tuple)
    enrolment: str | None = about("auto or watchlist.", default=None)
    calibration: dict[str, Any] | None = about(
        "Summary of the threshold calibration in use; null without one.", default=None
    )
    config_hash: str = about("SHA-256 of the settings in use, without secrets.", default="")
    python: str = about("Version of Python.", default="")
    platform: str = about("Operating system and machine.", default="")
    board: str | None = about("Board as its device tree names it; null on other machines.", default=None)
    l4t: str | None = about("Jetson Linux release; null on other machines.", default=None)
    packages: dict[str, str] = about("Versions of the libraries that matter.", default=_mapping)


@dataclass(frozen=True, slots=True)
class TelemetryData:
    """Health of the device and load of the agent, every few seconds; a lost one is not sent again."""

    uptime_s: float = about("Since the agent started.", unit="s", minimum=0)
    state: str = about("State as on the status topic.")
    temperatures_c: dict[str, float] = about("By sensor.", default=_mapping, unit="degC")
    hottest_c: float | None = about("Hottest sensor.", default=None, unit="degC")
    hottest_zone: str | None = about("Name of the hottest sensor.", default=None)
    throttled: bool | None = about("Whether the clock is held down by heat or current.", default=None)
    throttle_reasons: tuple[str, ...] = about(
        "What says that it is: cooling devices in action, or events since the last telemetry.", default=tuple
    )
    limits_c: dict[str, float] = about(
        "By sensor: where the kernel begins to act against its heat.", default=_mapping, unit="degC"
    )
    power_mode: str | None = about("Power mode as nvpmodel names it.", default=None)
    power_w: dict[str, float] = about("By rail.", default=_mapping, unit="W")
    power_total_w: float | None = about("Whole module.", default=None, unit="W")
    fan_percent: float | None = about("Fan speed.", default=None, unit="%")
    fan_rpm: float | None = about("Turns of the fan.", default=None, unit="1/min")
    clocks_locked: bool | None = about(
        "Whether clocks are pinned to their maximum (jetson_clocks).", default=None
    )
    cpu_percent: float | None = about("Load over all cores.", default=None, unit="%")
    cpu_mhz: float | None = about("Clock of the fastest core.", default=None, unit="MHz")
    cpu_max_mhz: float | None = about("The highest that the power mode allows.", default=None, unit="MHz")
    gpu_percent: float | None = about("Load of the GPU.", default=None, unit="%")
    gpu_mhz: float | None = about("Clock of the GPU.", default=None, unit="MHz")
    gpu_max_mhz: float | None = about("The highest that the power mode allows.", default=None, unit="MHz")
    engines_mhz: dict[str, float] = about(
        "Clocks of DLA, NVDEC, VIC and other units; one that is off is missing.", default=_mapping, unit="MHz"
    )
    engines_percent: dict[str, float] = about(
        "Share of the time that such a unit was powered.", default=_mapping, unit="%"
    )
    memory_used_bytes: int | None = about("Of the machine.", default=None, unit="B")
    memory_total_bytes: int | None = about("Of the machine.", default=None, unit="B")
    swap_used_bytes: int | None = about("Of the machine.", default=None, unit="B")
    process_memory_bytes: int | None = about("Resident memory of the agent.", default=None, unit="B")
    disk_free_bytes: int | None = about("On the disk that holds the agent's state.", default=None, unit="B")
    disk_total_bytes: int | None = about("Size of that disk.", default=None, unit="B")
    disk_wear_percent: float | None = about("Used-up life of that disk.", default=None, unit="%")
    governor_state: str | None = about(
        "watching; limiting: the load is lowered for heat; exhausted: all of it, and still too hot; blind: no"
        " sensor tells; off.",
        default=None,
    )
    governor_step: int | None = about("0: full load; each further step does less.", default=None, minimum=0)
    stuck: tuple[str, ...] = about("Stages that do not get on.", default=tuple)
    frames_per_s: dict[str, float] = about("Frames taken in, by camera.", default=_mapping, unit="1/s")
    crops_per_s: float | None = about("Crops embedded.", default=None, unit="1/s")
    latency_ms: dict[str, float] = about("Median per stage over the interval.", default=_mapping, unit="ms")
    queues: dict[str, int] = about("Entries waiting, by queue.", default=_mapping)
    dropped: dict[str, int] = about("Dropped since the start, by what and why.", default=_mapping)
    still_frames: dict[str, int] = about(
        "Frames since the start that a motion gate kept from the detector, by camera with a gate.",
        default=_mapping,
    )
    people_present: int | None = about("Tracks with an identity now.", default=None)
    identities: int | None = about("People in the gallery.", default=None)
    connection: str | None = about(
        "Connection to the broker: connecting, connected, waiting, refused, stopped or disabled.",
        default=None,
    )
    connects: int | None = about("Connections to the broker since the start.", default=None)
    outbox_rows: int | None = about("Events not yet acknowledged by the broker.", default=None)
    outbox_bytes: int | None = about("Their size.", default=None, unit="B")
    outbox_parked: int | None = about("Events that the broker refused.", default=None)


@dataclass(frozen=True, slots=True)
class CameraStatusData:
    """State of one camera. Retained."""

    camera: str = about("Id of the camera.")
    state: Literal["online", "reconnecting", "offline", "ended", "disabled"] = about(
        "ended: a file or folder that was read to its end."
    )
    since: float = about("When this state began.", format="date-time")
    reason: str = about("Why, for people.", default="")


@dataclass(frozen=True, slots=True)
class NumberRange:
    """Sequence numbers from first to last, both included."""

    first: int = about("Lowest number.", minimum=1)
    last: int = about("Highest number.", minimum=1)


@dataclass(frozen=True, slots=True)
class GapData:
    """Events that will not come, by number, and why."""

    reason: str = about(
        "rows, bytes, age: the outbox was full or the event too old; disk-full: it could not be written;"
        " no-subscriber: nobody subscribed for too long; rejected: the broker refused it (it is kept and may"
        " come late); erased: its person was forgotten; corrupt, power-loss: the outbox was damaged or cut"
        " off (the range is an upper bound: some may have come)."
    )
    ranges: tuple[NumberRange, ...] = about("The numbers, ascending.")
    count: int = about("How many numbers the ranges hold.", minimum=1)


@dataclass(frozen=True, slots=True)
class AlertData:
    """Something that a person should look at."""

    kind: str = about("Last part of the topic, e.g. thermal_throttle, camera_lost, engine_rebuilt.")
    severity: Literal["info", "warning", "critical"] = about("How bad it is.")
    message: str = about("What happened and what to do, for people.")
    active: bool = about("False when this says that the trouble is over.", default=True)
    details: dict[str, str | int | float | bool | None] = about("Facts, by name.", default=_mapping)


@dataclass(frozen=True, slots=True)
class CommandResultData:
    """Answer to one command."""

    verb: str = about("The command.")
    transaction: str | None = about("As the command gave it; null where it gave none.")
    status: Literal["ok", "error"] = about("Whether it was done.")
    code: str | None = about(
        "Kind of error, for programs: retained, too-large, too-many, malformed, not-allowed, expired,"
        " replayed, busy, failed; null when ok.",
        default=None,
    )
    error: str | None = about("What went wrong and how to mend it; null when ok.", default=None)
    data: dict[str, Any] | None = about("What the command found or made.", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What every command has."""

    transaction: str = about(
        "Chosen by the sender, different for every command; comes back with the result.",
        minLength=1,
        maxLength=128,
    )
    issued: float = about("When the command was sent; an old one is refused.", format="date-time")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolCommand(Command):
    """Put a person into the gallery: whoever a track shows, or whoever a picture shows."""

    name: str | None = about("What to call the person.", default=None, maxLength=200)
    camera: str | None = about("Camera of the track.", default=None)
    track_id: int | None = about("A track that is seen now.", default=None)
    crop: str | None = about("Picture of one person, JPEG or PNG, in base64.", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class NameCommand(Command):
    """Name a person."""

    identity_id: str = about("The person.", minLength=1)
    name: str | None = about("The new name; null takes it away.", maxLength=200)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeCommand(Command):
    """Say that two identities are one person."""

    identity_id: str = about("The identity that stays.", minLength=1)
    absorbed_id: str = about("The identity that goes into it.", minLength=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetCommand(Command):
    """Erase a person from gallery, outbox and crop spool."""

    identity_id: str = about("The person.", minLength=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadCommand(Command):
    """Read the settings again and apply what may change while running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsCommand(Command):
    """Tell counters of gallery and delivery."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecalibrateCommand(Command):
    """Forget what was learnt about the site's scores and learn the threshold anew."""


COMMAND_TYPES: Mapping[str, type[Command]] = types.MappingProxyType(
    {
        "enrol": EnrolCommand,
        "name": NameCommand,
        "merge": MergeCommand,
        "forget": ForgetCommand,
        "reload": ReloadCommand,
        "stats": StatsCommand,
        "recalibrate": RecalibrateCommand,
    }
)
"""Class of each command, by the last part of its topic."""


DATA_TYPES: Mapping[str, type] = types.MappingProxyType(
    {
        "identity": IdentityData,
        "gap": GapData,
        "alert": AlertData,
        "status": StatusData,
        "info": InfoData,
        "telemetry": TelemetryData,
        "camera": CameraStatusData,
        "command-result": CommandResultData,
    }
)
"""Class of the data by the second part of an event's type (`edge.<kind>[.<detail>].v1`)."""


@dataclass(frozen=True, slots=True)
class Event:
    """One message: who says what, when.

    Attributes:
        id: unique for ever; a repeated delivery has the same id.
        type: `edge.<kind>.v1` or `edge.<kind>.<detail>.v1`, e.g. `edge.identity.matched.v1`.
        time: when the event happened, Unix seconds.
        data: one of the data classes of this module.
        source: `edge/v1/<site>/<device>`; "" until it is published.
        session: id of the run of the agent; "" until it is published.
        seq: number of the event, None for kinds that have none or until it is published.
        traceparent: W3C Trace Context of a numbered event (CloudEvents' extension of that name); "" for kinds
            without number. Its trace is the frame's at which the event was decided.
    """

    id: str
    type: str
    time: float
    data: Any
    source: str = ""
    session: str = ""
    seq: int | None = None
    traceparent: str = ""

    @property
    def kind(self) -> str:
        """`identity`, `gap`, `alert`, `status`, ...: which class `data` has."""
        return self.type.split(".")[1]

    @property
    def detail(self) -> str | None:
        """`matched` of `edge.identity.matched.v1`; None where the type has no such part."""
        parts = self.type.split(".")
        return parts[2] if len(parts) == 4 else None


def new_event(
    kind: str,
    data: object,
    *,
    detail: str | None = None,
    time: float,
    event_id: str | None = None,
    trace: str | None = None,
) -> Event:
    """An event of this kind with a fresh id (or the given one).

    Args:
        kind: first part of its type.
        detail: second part of its type, None for none.
        data: of the class of that kind.
        time: when it happened, Unix seconds.
        event_id: a fresh one when None.
        trace: id of the trace that it belongs to, 32 hex digits; one of its own when None.
    """
    name = f"edge.{kind}.{detail}.v1" if detail else f"edge.{kind}.v1"
    chosen = event_id or str(uuid.uuid4())
    traceparent = _traceparent(chosen, trace) if kind in NUMBERED else ""
    return Event(id=chosen, type=name, time=time, data=data, traceparent=traceparent)


def _traceparent(event_id: str, trace: str | None) -> str:
    """W3C Trace Context, sampled: the event is a span of the trace; both follow from its id."""
    digest = hashlib.blake2b(event_id.encode(), digest_size=24).hexdigest()
    return f"00-{trace or digest[:32]}-{digest[32:]}-01"


def identity_event(
    decision: Decision,
    *,
    engine: EngineInfo,
    device: DeviceSummary,
    latency_ms: Mapping[str, float],
    detector: str | None = None,
    trace: str | None = None,
) -> Event:
    """The event that tells of a decision; its id is the decision's.

    Args:
        decision: what was decided.
        engine: the network that made the embeddings.
        device: state of the device now.
        latency_ms: milliseconds per stage.
        detector: name of what found the person.
        trace: id of the frame's trace, 32 hex digits.
    """
    margin = (
        None if decision.score is None or decision.runner_up is None else decision.score - decision.runner_up
    )
    width, height = decision.size
    x1, y1, x2, y2 = (float(value) for value in decision.box)
    data = IdentityData(
        kind=decision.kind.value,
        camera=decision.camera,
        track_id=decision.track_id,
        identity_id=decision.identity,
        number=decision.number,
        name=decision.name,
        score=_rounded(decision.score),
        runner_up=_rounded(decision.runner_up),
        margin=_rounded(margin),
        threshold=_rounded(decision.threshold),
        rule=decision.rule,
        evidence=decision.evidence,
        quality=round(float(decision.quality), 4),
        bbox=(round(x1 / width, 5), round(y1 / height, 5), round(x2 / width, 5), round(y2 / height, 5)),
        frame=decision.frame,
        frame_time=decision.time,
        first_seen=decision.first_seen,
        last_seen=decision.last_seen,
        corrects=decision.corrects,
        previous_identity_id=decision.previous,
        reason=decision.reason,
        model=EngineData.of(engine),
        simulated=engine.backend.startswith("simulated"),
        detector=detector,
        latency_ms={stage: round(float(spent), 2) for stage, spent in latency_ms.items()},
        device=device,
    )
    return new_event(
        "identity", data, detail=data.kind, time=decision.time, event_id=decision.id, trace=trace
    )


def _rounded(value: float | None) -> float | None:
    """Four decimals: a cosine carries no more, and payloads stay short."""
    return None if value is None else round(float(value), 4)


def alert_event(
    kind: str,
    message: str,
    *,
    severity: Literal["info", "warning", "critical"] = "warning",
    active: bool = True,
    time: float,
    details: Mapping[str, str | float | bool | None] | None = None,
) -> Event:
    """An alert with a fresh id; `kind` becomes the last part of its topic."""
    data = AlertData(
        kind=kind, severity=severity, message=message, active=active, details=dict(details or {})
    )
    return new_event("alert", data, detail=kind, time=time)


def camera_status_event(status: SourceStatus) -> Event:
    """The retained message that tells a camera's state."""
    data = CameraStatusData(
        camera=status.camera, state=status.state.value, since=status.time, reason=status.reason
    )
    return new_event("camera", data, detail="status", time=status.time)


# --- encode and decode ------------------------------------------------------------------------------------


def rfc3339(seconds: float) -> str:
    """Unix seconds as RFC 3339 in UTC with milliseconds: `2024-05-01T10:00:00.000Z`."""
    moment = datetime.fromtimestamp(round(seconds, 3), timezone.utc)
    return moment.isoformat(timespec="milliseconds")[:-6] + "Z"


def parse_time(text: str) -> float:
    """RFC 3339 text to Unix seconds; ValueError where it is none or has no offset from UTC."""
    # datetime.fromisoformat reads the `Z` only from Python 3.11 on.
    moment = datetime.fromisoformat(text[:-1] + "+00:00" if text[-1:] in {"Z", "z"} else text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no offset from UTC")
    return moment.timestamp()


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def encode(event: Event) -> bytes:
    """The event as one line of UTF-8 JSON; `seq` stands last, and only where it is known.

    Raises:
        ValueError: the data holds a number that is not finite: JSON has none.
    """
    return _ENCODER.encode(envelope(event)).encode()


def envelope(event: Event) -> dict[str, Any]:
    """The event as a JSON object."""
    document: dict[str, Any] = {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "time": rfc3339(event.time),
        "datacontenttype": "application/json",
        "dataschema": schema_urn(event.kind),
        "session": event.session,
    }
    if event.traceparent:
        document["traceparent"] = event.traceparent
    document["data"] = to_wire(event.data)
    if event.seq is not None:
        document["seq"] = event.seq
    return document


def decode(payload: bytes | str) -> Event:
    """Read one message of this agent; keys that this version does not know are passed over.

    Raises:
        InputError: not JSON, not one of our events, or a key is missing or of the wrong type.
    """
    try:
        found = json.loads(payload)
        kind = found["type"].split(".")[1]
        data_type = DATA_TYPES[kind]
        return Event(
            id=_text(found, "id"),
            type=found["type"],
            time=parse_time(found["time"]),
            data=from_wire(data_type, found["data"]),
            source=_text(found, "source"),
            session=_text(found, "session"),
            seq=None if found.get("seq") is None else int(found["seq"]),
            traceparent=str(found.get("traceparent", "")),
        )
    except InputError:
        raise
    except (
        KeyError,
        TypeError,
        ValueError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as problem:
        what = f"key {problem} is missing or unknown" if isinstance(problem, KeyError) else str(problem)
        raise InputError(f"not an event of edge-agent: {what}") from problem


def _text(found: Mapping[str, Any], key: str) -> str:
    value = found[key]
    if not isinstance(value, str):
        raise TypeError(f"{key}: expected text, got {type(value).__name__}")
    return value


def to_wire(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """A data class as JSON values: times as text, tuples as lists."""
    if isinstance(value, (str, int, float)) or value is None:
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {name: write(getattr(value, name)) for name, write in _wire_plan(type(value))}
    if isinstance(value, Mapping):
        return {str(key): to_wire(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_wire(entry) for entry in value]
    raise TypeError(f"{type(value).__name__} cannot go on the wire")


@lru_cache
def _wire_plan(data_type: Any) -> tuple[tuple[str, Callable[[Any], Any]], ...]:  # noqa: ANN401 - a dataclass
    """Field names of a data class, and what writes each."""
    return tuple(
        (f.name, rfc3339 if f.metadata.get("format") == "date-time" else to_wire) for f in fields(data_type)
    )


T = TypeVar("T")


def from_wire(data_type: type[T], found: object) -> T:
    """Build a data class from a JSON object, passing over unknown keys.

    Raises:
        InputError: not an object, a key without default is missing, or a value has the wrong type.
    """
    if not isinstance(found, dict):
        raise InputError(f"{data_type.__name__}: expected an object, got {type(found).__name__}")
    values: dict[str, Any] = {}
    for name, (entry, hint) in _read_plan(typing.cast("Any", data_type)).items():
        if name in found:
            values[name] = _read(hint, found[name], entry, f"{data_type.__name__}.{name}")
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise InputError(f"{data_type.__name__}: key {name!r} is missing")
    return data_type(**values)


@lru_cache
def _read_plan(data_type: Any) -> dict[str, tuple[Field[Any], Any]]:  # noqa: ANN401 - a dataclass
    hints = get_type_hints(data_type)
    return {entry.name: (entry, hints[entry.name]) for entry in fields(data_type)}


def _read(hint: Any, value: Any, entry: Field[Any] | None, where: str) -> Any:  # noqa: ANN401 - a type and any value
    """One JSON value as the type that the class declares."""
    if entry is not None and entry.metadata.get("format") == "date-time":
        if not isinstance(value, str):
            raise InputError(f"{where}: expected a time as text, got {value!r}")
        try:
            return parse_time(value)
        except (ValueError, OverflowError) as problem:
            raise InputError(f"{where}: {problem}") from problem
    return _READERS.get(get_origin(hint) or hint, _read_class)(hint, value, where)


def _read_class(hint: Any, value: Any, where: str) -> Any:  # noqa: ANN401, ARG001 - called as its siblings
    if is_dataclass(hint):
        return from_wire(typing.cast("type", hint), value)
    return value  # Any


def _read_union(hint: Any, value: Any, where: str) -> Any:  # noqa: ANN401
    choices = get_args(hint)
    if value is None and type(None) in choices:
        return None
    for choice in choices:
        try:
            return _read(choice, value, None, where)
        except InputError:
            continue
    raise InputError(f"{where}: {value!r} fits none of the allowed types")


def _read_literal(hint: Any, value: Any, where: str) -> Any:  # noqa: ANN401
    if value not in get_args(hint):
        raise InputError(f"{where}: {value!r} is none of {', '.join(map(repr, get_args(hint)))}")
    return value


def _read_tuple(hint: Any, value: Any, where: str) -> tuple[Any, ...]:  # noqa: ANN401
    if not isinstance(value, list):
        raise InputError(f"{where}: expected a list, got {value!r}")
    inner = get_args(hint)
    if inner[-1] is Ellipsis:
        return tuple(_read(inner[0], entry, None, where) for entry in value)
    if len(value) != len(inner):
        raise InputError(f"{where}: expected {len(inner)} entries, got {len(value)}")
    return tuple(_read(one, entry, None, where) for one, entry in zip(inner, value, strict=True))


def _read_dict(hint: Any, value: Any, where: str) -> dict[str, Any]:  # noqa: ANN401
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, got {value!r}")
    inner = get_args(hint)[1]
    return {key: _read(inner, entry, None, f"{where}.{key}") for key, entry in value.items()}


def _read_scalar(hint: Any, value: Any, where: str) -> Any:  # noqa: ANN401
    # JSON's true is a Python int, and a float without decimals may come as an integer.
    right = not isinstance(value, bool) if hint in (int, float) else True
    wanted = (int, float) if hint is float else hint
    if not (right and isinstance(value, wanted)):
        raise InputError(f"{where}: expected {hint.__name__}, got {value!r}")
    return float(value) if hint is float else value


def _read_none(hint: Any, value: Any, where: str) -> None:  # noqa: ANN401, ARG001
    if value is not None:
        raise InputError(f"{where}: expected null, got {value!r}")


_READERS: dict[Any, Callable[[Any, Any, str], Any]] = {
    types.UnionType: _read_union,
    typing.Union: _read_union,
    Literal: _read_literal,
    tuple: _read_tuple,
    dict: _read_dict,
    str: _read_scalar,
    int: _read_scalar,
    float: _read_scalar,
    bool: _read_scalar,
    type(None): _read_none,
}


# --- JSON Schema ------------------------------------------------------------------------------------------


def schema_urn(kind: str) -> str:
    """Name of the schema of a kind of data, as `dataschema` and as `$id`."""
    return f"urn:edge-agent:schema:{kind}:1"


def data_schema(kind: str) -> dict[str, Any]:
    """JSON Schema (2020-12) of the data of one kind, made from its dataclass."""
    return {
        "$schema": JSON_SCHEMA_DIALECT,
        "$id": schema_urn(kind),
        "title": DATA_TYPES[kind].__name__,
        **class_schema(DATA_TYPES[kind]),
    }


def envelope_schema(kind: str) -> dict[str, Any]:
    """JSON Schema of a whole message of one kind: the envelope with its data inside."""
    text = {"type": "string"}
    properties: dict[str, Any] = {
        "specversion": {"const": "1.0", "description": "Version of CloudEvents."},
        "id": text
        | {"minLength": 1, "description": "Unique for ever; drop a message whose id you have seen."},
        "source": text | {"pattern": r"^edge/v1/[a-z0-9_-]{1,64}/[a-z0-9_-]{1,64}$"},
        "type": text | {"pattern": rf"^edge\.{kind}(\.[a-z0-9_]+)?\.v1$"},
        "time": text | {"format": "date-time", "description": "When it happened, UTC."},
        "datacontenttype": {"const": "application/json"},
        "dataschema": {"const": schema_urn(kind)},
        "session": text | {"description": "One run of the agent."},
        "data": class_schema(DATA_TYPES[kind]),
    }
    required = list(properties)
    if kind in NUMBERED:
        properties["seq"] = {
            "type": "integer",
            "minimum": 1,
            "description": "Counts the numbered events of the device over all sessions, without holes.",
        }
        required.append("seq")
        properties["traceparent"] = {
            "type": "string",
            "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-01$",
            "description": "W3C Trace Context: the trace is the frame's at which this was decided, so events"
            " of one frame share it; the span is the event's own.",
        }
    return {
        "$schema": JSON_SCHEMA_DIALECT,
        "$id": f"urn:edge-agent:schema:{kind}-message:1",
        "title": f"Message with {DATA_TYPES[kind].__name__}",
        "type": "object",
        "properties": properties,
        "required": required,
    }


def command_schema(verb: str) -> dict[str, Any]:
    """JSON Schema of the payload of one command. Unlike in events, unknown keys are refused."""
    return {
        "$schema": JSON_SCHEMA_DIALECT,
        "$id": schema_urn(f"command-{verb}"),
        "title": COMMAND_TYPES[verb].__name__,
        **class_schema(COMMAND_TYPES[verb]),
        "additionalProperties": False,
    }


def class_schema(data_type: type) -> dict[str, Any]:
    """JSON Schema of one dataclass; further keys are allowed, since later versions add some."""
    properties = {}
    required = []
    for name, (entry, hint) in _read_plan(data_type).items():
        extra = dict(entry.metadata)
        time_text = extra.get("format") == "date-time"
        properties[name] = ({"type": "string"} if time_text else _type_schema(hint)) | extra
        if entry.default is MISSING and entry.default_factory is MISSING:
            required.append(name)
    documented = (data_type.__doc__ or "").strip()
    return {"type": "object", "description": documented, "properties": properties, "required": required}


_SCALAR_SCHEMAS: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
}


def _type_schema(hint: Any) -> dict[str, Any]:  # noqa: ANN401, PLR0911 - one return per form of a type
    """JSON Schema of one annotation."""
    if hint in _SCALAR_SCHEMAS:
        return {"type": _SCALAR_SCHEMAS[hint]}
    if is_dataclass(hint):
        return class_schema(typing.cast("type", hint))
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"type": "string", "enum": list(inner)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type_schema(inner[1])}
    if origin is tuple and inner[-1] is Ellipsis:
        return {"type": "array", "items": _type_schema(inner[0])}
    if origin is tuple:
        return {
            "type": "array",
            "items": _type_schema(inner[0]),
            "minItems": len(inner),
            "maxItems": len(inner),
        }
    if origin in (types.UnionType, typing.Union):
        return _union_schema(inner)
    return {}  # Any


def _union_schema(choices: tuple[Any, ...]) -> dict[str, Any]:
    schemas = [_type_schema(choice) for choice in choices]
    if all(set(one) == {"type"} for one in schemas):
        return {"type": [one["type"] for one in schemas]}
    return {"anyOf": schemas}
