"""`edge-agent doctor --try`: use each camera and the broker once, as the agent will.

The agent may run meanwhile: the broker gets a client of another name, and crop folders are not read. A USB or
CSI camera can be opened by one program at a time.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.cli.checks import Finding
from edge_agent.core.errors import EdgeAgentError
from edge_agent.core.redaction import public_source
from edge_agent.core.structures import Frame, MessageFrame, SourceState, SourceStatus

if TYPE_CHECKING:
    from edge_agent.core.config import Settings, SourceSettings
    from edge_agent.deliver.subscriber import Subscriber
    from edge_agent.source.base import Source

FIRST_FRAME_S = 20.0
"""Longest wait for the first frame of a source."""
ANSWER_S = 5.0
"""Longest wait for the broker to confirm, and to send the message back."""
_SILENT_ADVICE = (
    "check detector.external_topics, the sensor's name in the messages, and that somebody was in the picture"
)
_NO_MESSAGES_ADVICE = "check the address of the broker, the login and detector.external_topics"


def sources(settings: Settings, snapshots: Path) -> Iterator[Finding]:
    """Open each enabled source, and save its first frame to the folder `snapshots`."""
    from edge_agent.cli.native_output import logged_native_output
    from edge_agent.cli.service import stream_secrets
    from edge_agent.core.loading import state_folder
    from edge_agent.source.opening import open_sources

    enabled = [one for one in settings.sources if one.enabled]
    if not enabled:
        yield Finding("sources", "note", "none is enabled", "add the cameras to [[sources]]")
        return
    try:
        state_folder(snapshots)
        opened = open_sources(settings.sources, snapshots, settings=settings)
        secrets = stream_secrets(settings)
    except EdgeAgentError as problem:
        yield Finding("sources", "missing", str(problem), "correct [[sources]]")
        return
    with logged_native_output(secrets):
        for one, source in zip(enabled, opened, strict=True):
            yield _source(one, source, snapshots)


def _source(settings: SourceSettings, source: Source, snapshots: Path) -> Finding:
    from edge_agent.source.address import local_path, source_kind
    from edge_agent.source.reader import FrameReader

    title = f"source {source.id}"
    if source_kind(settings.url) == "crops":
        return _folder(title, local_path(settings.url))
    wake, states = threading.Event(), list[SourceStatus]()
    began = time.monotonic()
    with FrameReader(source, wake=wake, on_status=states.append) as reader:
        while (item := reader.poll()) is None and not reader.ended:
            if time.monotonic() - began > FIRST_FRAME_S:
                break
            wake.wait(0.1)
            wake.clear()
        problem = reader.error
    took = time.monotonic() - began
    if isinstance(item, Frame):
        return _snapshot(title, item, snapshots / f"{source.id}.jpg", took)
    if isinstance(item, MessageFrame):
        people, vectors = len(item.detections), int(item.embedded.sum())
        return Finding(
            title, "ok", f"a message after {took:.1f} s: {people} people, {vectors} of them with an embedding"
        )
    reasons = [one.reason for one in states if one.state is not SourceState.ONLINE and one.reason]
    found = str(problem) if problem is not None else (reasons[-1] if reasons else "nothing was sent")
    if took >= FIRST_FRAME_S:
        found = f"no frame in {took:.0f} s: {found}"
    if source_kind(settings.url) == "deepstream":
        if reasons or problem:
            return Finding(title, "missing", found, _NO_MESSAGES_ADVICE)
        return Finding(title, "warning", found, _SILENT_ADVICE)  # it sends nothing while nobody is there
    return Finding(title, "missing", found, "check its url and login, and the camera itself")


def _folder(title: str, folder: Path) -> Finding:
    if folder.is_dir() and os.access(folder, os.R_OK | os.X_OK):
        return Finding(title, "ok", f"{folder} can be read; its crops are left for the agent")
    found = f"{public_source(str(folder))} is no folder that user {os.geteuid()} can read"
    return Finding(title, "missing", found, "correct its url")


def _snapshot(title: str, frame: Frame, path: Path, took: float) -> Finding:
    import cv2

    from edge_agent.core.manifest import write_atomic

    height, width = frame.image.shape[:2]
    found = f"{width} x {height} after {took:.1f} s, saved as {path}"
    try:
        write_atomic(path, cv2.imencode(".jpg", frame.image)[1].tobytes(), mode=0o600)
    except EdgeAgentError as problem:
        return Finding(
            title, "warning", f"{width} x {height} after {took:.1f} s; {problem}", "free some space"
        )
    return Finding(
        title, "ok", found, "look at it: is the picture right, and are people at least 100 pixels high?"
    )


def broker(settings: Settings) -> Iterator[Finding]:
    """Connect with the configured login, publish to an own topic, and read the message back.

    Nothing where no broker is configured, which `configuration.broker` reports.
    """
    from edge_agent.core.mqtt import BrokerSettings
    from edge_agent.deliver.subscriber import Subscriber
    from edge_agent.deliver.topics import Topics

    if settings.mqtt.broker is None:
        return
    topic = Topics(settings.mqtt.site, settings.mqtt.device).doctor
    payload = uuid.uuid4().hex.encode()
    try:
        with Subscriber(BrokerSettings.of(settings.mqtt), (topic,)) as client:
            yield Finding("broker: connect", "ok", "accepted, with the configured login")
            refused = client.publish(topic, payload, ANSWER_S)
            if refused is not None:
                advice = f"allow this device to write {topic} and its other topics (examples/mosquitto)"
                yield Finding("broker: publish", "missing", f"{topic}: {refused}", advice)
                return
            yield Finding("broker: publish", "ok", f"{topic}: confirmed")
            yield _read_back(client, topic, payload)
    except EdgeAgentError as problem:
        yield Finding(
            "broker: connect", "missing", str(problem), "check address, user, password and certificates"
        )


def _read_back(client: Subscriber, topic: str, payload: bytes) -> Finding:
    deadline = time.monotonic() + ANSWER_S
    while (left := deadline - time.monotonic()) > 0:
        message = client.next(left)
        if message is not None and message.payload == payload:
            return Finding("broker: read back", "ok", f"{topic}: the same message came back")
    advice = f"allow this device to read {topic}; the agent itself reads only commands"
    return Finding("broker: read back", "note", f"{topic}: published, but nothing came back", advice)
