"""Events of the agent: one dataclass for each kind of data, and the envelope; `core.commands`: commands.

A message is an envelope (`Event`) around the data of one kind, encoded as CloudEvents 1.0 JSON::

    {"specversion": "1.0", "id": "...", "source": "edge/v1/<site>/<device>",
     "type": "edge.identity.matched.v1", "time": "2024-05-01T10:00:00.000Z",
     "datacontenttype": "application/json", "dataschema": "urn:edge-agent:schema:identity:1",
     "session": "...", "traceparent": "00-...", "data": {...}, "seq": 17}

`session` is the id of one run of the agent. `seq` numbers the events of a device that must not be lost
(identity, person, gap, alert) over all sessions without holes; other messages have none.

`core.codec` encodes and decodes these classes and derives their JSON Schemas. Times are Unix seconds in the
classes and RFC 3339 text in UTC on the wire. Within version 1 keys are only added; readers ignore unknown
keys.
"""

# ruff: noqa: RUF009 - `about` and its like return a dataclasses.field

from __future__ import annotations

import hashlib
import types
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, TypeAlias

from edge_agent.core.alerts import AlertKind
from edge_agent.core.fields import Time, about, entries, value
from edge_agent.core.presence import PersonData, PresentData, uncertain
from edge_agent.core.structures import Decision, EngineInfo, SourceStatus
from edge_agent.core.telemetry import TelemetryData

NUMBERED = frozenset({"identity", "person", "gap", "alert"})
"""Kinds of data that go through the outbox and have a `seq`."""


_uncertain = partial(
    uncertain, ": the times of this event may be wrong, and their order with those of others"
)
"""Declare the mark of times that may be wrong."""


@dataclass(frozen=True, slots=True)
class DeviceSummary:
    """State of the device at the time of the event; null for unknown values."""

    temperature_c: float | None = value("Temperature of the hottest sensor.", "degC")
    temperature_zone: str | None = value("Name of that sensor.")
    throttled: bool | None = value("Whether clocks are reduced because of heat or current.")
    power_mode: str | None = value("Name of the power mode (nvpmodel), e.g. MAXN.")
    power_w: float | None = value("Power of the whole module.", "W")


@dataclass(frozen=True, slots=True)
class EngineData:
    """The network that made the embeddings."""

    name: str = about("Display name of the model.")
    sha256: str = about("SHA-256 of the configured ONNX file.")
    backend: str = about(
        "onnxruntime, tensorrt, triton, simulated:<name>, or upstream: no network runs here."
    )
    precision: str = about("fp32, fp16 or int8.")
    space: str = about("Id of the embedding space; scores of two spaces are not comparable.")
    dimension: int = about("Length of one embedding.", minimum=0)
    device: str = about("Display name of the device that runs it.")

    @staticmethod
    @lru_cache(maxsize=16)
    def of(engine: EngineInfo) -> EngineData:
        """Return the published part of an engine's description."""
        e = engine
        return EngineData(e.model, e.model_sha256, e.backend, e.precision, e.space, e.dimension, e.device)


@dataclass(frozen=True, slots=True)
class IdentityData:
    """Decision about one person in front of one camera."""

    kind: Literal["matched", "enrolled", "corrected", "departed", "unknown"] = about(
        "matched: known person; enrolled: new person, added to the gallery; corrected: later evidence"
        " overturned an earlier event; departed: the person's track ended; unknown: a track without identity."
    )
    camera: str = about("Id of the camera.")
    track_id: int = about("Number of the track within its camera and session.", minimum=1)
    identity_id: str | None = about("Opaque id of the person; null when unknown.")
    number: int | None = about("The person's number in the local gallery; null when unknown.")
    name: str | None = about("Name that the operator gave the person; null without one.")
    score: float | None = about(
        "Cosine similarity of the track's pooled embedding and the identity; null without a comparison.",
        minimum=-1,
        maximum=1,
    )
    runner_up: float | None = about(
        "The same for the second-best identity; null when there is none.", minimum=-1, maximum=1
    )
    margin: float | None = about("score minus runner_up; null when either is null.")
    threshold: float | None = about("Threshold for the score; null without a comparison.")
    rule: str = about(
        "Origin of the threshold: site (scores of people of this site), prior (scores that the network gives"
        " for rendered people, until the site has its own), calibrated, configured, operator (set by hand);"
        " warm-up: none yet."
    )
    evidence: int = about("Number of crops pooled.", minimum=0)
    quality: float = about("Mean quality of those crops.", minimum=0, maximum=1)
    bbox: tuple[float, float, float, float] = about(
        "Last position of the person: x1, y1, x2, y2 as fractions of the frame's width and height; may extend"
        " beyond the frame."
    )
    frame: int = about("Number of the frame of the decision.", minimum=0)
    frame_time: Time = about("Capture time of that frame.")
    first_seen: Time = about("First time of this track.")
    last_seen: Time = about("Last time of this track.")
    model: EngineData = about("The network that made the embeddings.")
    simulated: bool = about("True for an engine that only simulates a network: the event has no meaning.")
    corrects: str | None = value("Id of the event that this one overturns, for corrected.")
    previous_identity_id: str | None = value("Identity that the overturned event named.")
    reason: str = about(
        "Short reason, e.g. contested, slipped, fused, merged, split, forgotten, re-entry, left, restart.",
        default="",
    )
    ended: bool = about(
        "True when the track has ended, so that the person is not in view by it: always for departed, and for"
        " a correction of a track that departed before.",
        default=False,
    )
    detector: str | None = value("Detector that found the person, e.g. hog.")
    latency_ms: dict[str, float] = entries(
        "Milliseconds spent per stage; `total` is from capture to decision.", "ms"
    )
    device: DeviceSummary = about("State of the device at the time of the decision.", default=DeviceSummary)
    frame_size: tuple[int, int] | None = value("Width and height of the frame, which bbox refers to.", "px")
    time_uncertain: bool = _uncertain()
    identities: int | None = value("Number of identities that the track was compared with.")
    pair_rate: float | None = value(
        "Estimated probability that somebody new reaches the threshold with one identity; null where nothing"
        " is known of the scores."
    )
    search_rate: float | None = value("The same for any of the identities.")
    since: Time | None = value(
        "For a track that slipped to another person: time from which on it is this one; before, it is the"
        " person of the overturned event. Null: the identity is that of the whole track."
    )
    origin: Literal["local", "fleet"] = about(
        "What the decision is by: local, the gallery of this device; fleet, the store of the site, which"
        " named somebody whom another device knows.",
        default="local",
    )
    known_by: str | None = value("For the origin fleet: the device whose exemplar gave the score.")


@dataclass(frozen=True, slots=True)
class StatusData:
    """State of the agent. Retained; the broker publishes `offline` (the will) when the connection is lost."""

    state: Literal["online", "degraded", "stopping", "offline"] = about(
        "online: everything works; degraded: works in part, see reason; stopping: clean stop in progress;"
        " offline: not connected."
    )
    since: Time = about("When this state began.")
    reason: str = about("Reason as text; empty without a problem.", default="")
    version: str = about("Version of the agent.", default="")
    time_uncertain: bool = _uncertain()


@dataclass(frozen=True, slots=True)
class CameraInfo:
    """One configured camera, without its address."""

    camera: str = about("Id of the camera.")
    kind: str = about("file, rtsp, v4l2, csi, crops or another kind of source.")
    name: str | None = value("Name that the operator gave it.")


@dataclass(frozen=True, slots=True)
class InfoData:
    """Versions, model and cameras; published at every connection, before the status. Retained."""

    version: str = about("Version of the agent.")
    model: EngineData = about("The network that makes the embeddings.")
    simulated: bool = about("True when the engine only simulates a network.", default=False)
    detector: str | None = value("Detector of people, e.g. hog.")
    cameras: tuple[CameraInfo, ...] = about("Configured sources.", default=tuple)
    enrolment: str | None = value("auto or watchlist.")
    calibration: dict[str, Any] | None = value(
        "Summary of the active threshold calibration; null without one."
    )
    config_hash: str = about("SHA-256 of the active settings, without secrets.", default="")
    python: str = about("Version of Python.", default="")
    platform: str = about("Operating system and machine.", default="")
    board: str | None = value("Name of the board from its device tree; null on other machines.")
    l4t: str | None = value("Jetson Linux release; null on other machines.")
    packages: dict[str, str] = entries("Versions of the most important libraries.")
    fleet: str = about(
        "off: embeddings and names stay on this device; SITE@HOST:PORT: they are shared with the devices of"
        " this site by the store there.",
        default="off",
    )


@dataclass(frozen=True, slots=True)
class CameraStatusData:
    """State of one camera. Retained."""

    camera: str = about("Id of the camera.")
    state: Literal["online", "reconnecting", "offline", "ended", "disabled"] = about(
        "ended: a file or folder was read to its end."
    )
    since: Time = about("When this state began.")
    reason: str = about("Reason as text.", default="")
    time_uncertain: bool = _uncertain()


@dataclass(frozen=True, slots=True)
class NumberRange:
    """Sequence numbers from first to last, inclusive."""

    first: int = about("Lowest number.", minimum=1)
    last: int = about("Highest number.", minimum=1)


@dataclass(frozen=True, slots=True)
class GapData:
    """Numbers of events that will not be delivered."""

    reason: str = about(
        "rows, bytes, age: the outbox was full or the event too old; disk-full: it could not be written;"
        " no-subscriber: there was no subscriber for too long; rejected: the broker rejected it (it is kept"
        " and may be delivered late); erased: its person was erased; corrupt, power-loss: the outbox was"
        " damaged or truncated (the range is an upper bound: some events may have been delivered)."
    )
    ranges: tuple[NumberRange, ...] = about("Ranges of numbers, ascending.")
    count: int = about("Count of numbers in all ranges.", minimum=1)
    time_uncertain: bool = _uncertain()


@dataclass(frozen=True, slots=True)
class AlertData:
    """Condition that needs the attention of an operator."""

    kind: str = about("Last part of the topic; more may be added.", enum=[kind.value for kind in AlertKind])
    severity: Literal["info", "warning", "critical"] = about("Severity.")
    message: str = about("What happened and how to respond, as text.")
    active: bool = about("False when the condition is over.", default=True)
    details: dict[str, str | int | float | bool | None] = entries("Details by name.")
    time_uncertain: bool = _uncertain()


@dataclass(frozen=True, slots=True)
class CommandResultData:
    """Result of one command."""

    verb: str = about("The command.")
    transaction: str | None = about("Transaction of the command; null if it had none.")
    status: Literal["ok", "error"] = about("Whether the command succeeded.")
    code: str | None = value(
        "Error code: retained, too-large, too-many, malformed, not-allowed, expired,"
        " replayed, busy, failed; null when ok."
    )
    error: str | None = value("What is wrong and how to correct it; null when ok.")
    data: dict[str, Any] | None = value("Result data.")
    time_uncertain: bool = _uncertain()


DATA_TYPES: Mapping[str, type] = types.MappingProxyType(
    {
        "identity": IdentityData,
        "person": PersonData,
        "present": PresentData,
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
    """One message.

    Attributes:
        id: globally unique; a repeated delivery has the same id.
        type: `edge.<kind>.v1` or `edge.<kind>.<detail>.v1`, e.g. `edge.identity.matched.v1`.
        time: when the event happened, Unix seconds.
        data: of the class in `DATA_TYPES`.
        source: `edge/v1/<site>/<device>`; "" until it is published.
        session: id of the run of the agent; "" until it is published.
        seq: number of the event, None for kinds that have none or until it is published.
        traceparent: W3C Trace Context of a numbered event (CloudEvents' extension of that name); "" for kinds
            without number. Its trace is that of the frame of the decision.
    """

    id: str
    type: str
    time: Time
    data: Any
    source: str = ""
    session: str = ""
    seq: int | None = None
    traceparent: str = ""

    @property
    def kind(self) -> str:
        """Kind of `data`: `identity`, `gap`, `alert`, `status`, ..."""
        return self.type.split(".")[1]

    @property
    def detail(self) -> str | None:
        """`matched` of `edge.identity.matched.v1`; None for a type without this part."""
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
    """Make an event of the type `edge.<kind>[.<detail>].v1`; new ids replace those that are None.

    `trace` is the id of its W3C trace, 32 hex digits; the event is a span of it, marked as sampled.
    """
    name = f"edge.{kind}.{detail}.v1" if detail else f"edge.{kind}.v1"
    chosen = event_id or str(uuid.uuid4())
    traceparent = ""
    if kind in NUMBERED:
        digest = hashlib.blake2b(chosen.encode(), digest_size=24).hexdigest()
        traceparent = f"00-{trace or digest[:32]}-{digest[32:]}-01"
    return Event(id=chosen, type=name, time=time, data=data, traceparent=traceparent)


def identity_event(
    decision: Decision,
    *,
    engine: EngineInfo,
    device: DeviceSummary,
    latency_ms: Mapping[str, float],
    detector: str | None = None,
    trace: str | None = None,
    label: Callable[[float], float] = float,
) -> Event:
    """Make the event of a decision, with the id of the decision; `trace` as for `new_event`.

    `label` converts the times of its frames.
    """
    margin = None
    if decision.score is not None and decision.runner_up is not None:
        margin = decision.score - decision.runner_up
    (width, height), time = decision.size, label(decision.time)
    x1, y1, x2, y2 = decision.box.tolist()
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
        identities=decision.identities,
        pair_rate=_short(decision.pair_rate),
        search_rate=_short(decision.search_rate),
        evidence=decision.evidence,
        quality=round(float(decision.quality), 4),
        bbox=(round(x1 / width, 5), round(y1 / height, 5), round(x2 / width, 5), round(y2 / height, 5)),
        frame=decision.frame,
        frame_size=(int(width), int(height)),
        frame_time=time,
        first_seen=label(decision.first_seen),
        last_seen=label(decision.last_seen),
        since=None if decision.since is None else label(decision.since),
        origin=decision.origin,
        known_by=decision.known_by,
        corrects=decision.corrects,
        previous_identity_id=decision.previous,
        ended=decision.ended,
        reason=decision.reason,
        model=EngineData.of(engine),
        simulated=engine.backend.startswith("simulated"),
        detector=detector,
        latency_ms={stage: round(float(spent), 2) for stage, spent in latency_ms.items()},
        device=device,
    )
    return new_event("identity", data, detail=data.kind, time=time, event_id=decision.id, trace=trace)


def _rounded(value: float | None) -> float | None:
    """Round to four decimals, which suffice for a cosine and keep payloads short."""
    return None if value is None else round(float(value), 4)


def _short(rate: float | None) -> float | None:
    """Round to three digits."""
    return None if rate is None else float(f"{rate:.3g}")


Details: TypeAlias = Mapping[str, str | float | bool | None]
"""Of an alert, for programs."""


def alert_event(
    kind: AlertKind,
    message: str,
    *,
    severity: Literal["info", "warning", "critical"] = "warning",
    active: bool = True,
    time: float,
    details: Details | None = None,
) -> Event:
    """Make an alert; `kind` becomes the last part of its topic."""
    data = AlertData(str(kind), severity, message, active, dict(details or {}))
    return new_event("alert", data, detail=str(kind), time=time)


def camera_status_event(status: SourceStatus) -> Event:
    """Make the retained message with the state of a camera."""
    data = CameraStatusData(status.camera, status.state.value, status.time, status.reason)
    return new_event("camera", data, detail="status", time=status.time)
