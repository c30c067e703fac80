"""Checks of what the configuration names: state folder, model, gallery and broker."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edge_agent.cli.checks import Finding
from edge_agent.core.errors import EdgeAgentError
from edge_agent.core.private import exposed, remedy
from edge_agent.core.served import is_served

if TYPE_CHECKING:
    from edge_agent.core.config import Settings
    from edge_agent.core.structures import EngineInfo
    from edge_agent.detect.base import Detector
    from edge_agent.engine.precision.calibration import Calibration

_RETAINED_S = 1.0
"""How long to wait for a retained message; it comes with the subscription."""
_HOG_PICTURE = (1280, 720)
"""Size of the picture with which HOG is measured; elsewhere it took 154 ms of CPU, and YOLOX nano 18."""
LITTLE_SPACE, NO_SPACE = 2 << 30, 200 << 20  # bytes; a full outbox has 1 GiB by default


def settings_of(config: Path | None) -> tuple[Settings | None, Finding]:
    """Load the settings; None where they are invalid."""
    from edge_agent.core.loading import config_file, load

    try:
        settings, file = load(config), config_file(config)
    except EdgeAgentError as problem:
        advice = "correct it, then: edge-agent config check"
        return None, Finding("configuration", "missing", str(problem), advice)
    sources = len(settings.sources)
    found = f"{file or 'defaults and environment'}, {sources} source(s)"
    advice = "" if sources else "add the cameras to [[sources]], or use edge-agent run --source"
    return settings, Finding("configuration", "ok" if sources else "note", found, advice)


def secrets(settings: Settings, config: Path | None) -> list[Finding]:
    """Check that files with a secret cannot be read by every user."""
    from edge_agent.core.loading import secret_files

    return [
        Finding("secrets", "warning", f"{path} contains a secret, and every user may read it", remedy(path))
        for path in exposed(secret_files(settings, config))
    ]


def model(settings: Settings) -> tuple[EngineInfo | None, list[Finding]]:
    """Load the network and run its self-test; None where it fails."""
    from edge_agent.embed.opening import open_agent_embedder
    from edge_agent.engine.precision.calibration import current_calibration
    from edge_agent.engine.upstream import UPSTREAM

    folder = settings.state_dir
    with TemporaryDirectory() as scratch:
        # The check must not create a state folder, or files in the folder of another user.
        own = folder.is_dir() and folder.stat().st_uid == os.geteuid()
        try:
            place = folder if own else Path(scratch)
            calibration = current_calibration(settings.engine, folder)
            with open_agent_embedder(settings, place, calibration, patient=False) as embedder:
                info = embedder.info
        except EdgeAgentError as problem:
            advice = "set engine.model, or train a model: docs/models.md"
            if is_served(settings.engine.backend):
                advice = "start the server, or correct engine.backend and engine.model: docs/triton.md"
            return None, [Finding("model", "missing", str(problem), advice)]
    if info.backend == UPSTREAM:
        found = f"none runs here: embeddings come from upstream, space {info.space}, {info.dimension} numbers"
        return info, [Finding("model", "ok", found), _calibration(calibration, info)]
    found = f"{info.model} on {info.backend} {info.precision}, self-test passed, space {info.space}"
    return info, [Finding("model", "ok", found), _calibration(calibration, info)]


def detectors(settings: Settings) -> list[Finding]:
    """Open the detector of each source, which checks its network on two pictures."""
    from edge_agent.core.installed import chosen_detector
    from edge_agent.detect.opening import open_detector
    from edge_agent.source.address import source_kind

    common = settings.detector.kind
    enabled = [own for own in settings.sources if own.enabled]
    kinds = {own.detector or common for own in enabled if source_kind(own.url) != "deepstream"}
    if not enabled:
        kinds.add(common)
    findings = []
    for kind in sorted(kinds - {"external"}):
        try:
            chosen = chosen_detector(kind, settings.state_dir)
            with open_detector(chosen, input_size=settings.detector.input_size) as detector:
                findings.append(_detector(detector))
        except EdgeAgentError as problem:
            advice = "set detector.kind: docs/models.md#detectors"
            findings.append(Finding("detector", "missing", str(problem), advice))
    return findings


def _detector(detector: Detector) -> Finding:
    """Name a detector; of HOG, measure the CPU time that it takes on this machine."""
    from edge_agent.core.installed import FALLBACK
    from edge_agent.core.published import SUGGESTED_DETECTOR
    from edge_agent.detect.recognition import start_up_pictures

    if detector.name != FALLBACK:
        return Finding("detector", "ok", detector.name)
    _, people = start_up_pictures((_HOG_PICTURE[1], _HOG_PICTURE[0]))
    detector.detect(people)  # the first call allocates
    began = time.process_time()
    detector.detect(people)
    spent = time.process_time() - began
    width, height = _HOG_PICTURE
    found = (
        f"{detector.name}: {1000 * spent:.0f} ms of CPU for a picture of {width} x {height}, measured now; "
        "YOLOX nano takes an eighth of that. It takes parts of people for people, and finds "
        f"nobody below {detector.smallest:.0f} pixels"
    )
    return Finding("detector", "warning", found, f"edge-agent model fetch {SUGGESTED_DETECTOR}")


def _calibration(calibration: Calibration | None, engine: EngineInfo) -> Finding:
    """Check that the calibration belongs to the network that runs."""
    again = "edge-agent calibrate --dataset DIR (docs/calibration.md)"
    if calibration is None:
        return Finding(
            "calibration",
            "note",
            "none: the network's prior and the site's scores set the match threshold",
            again,
        )
    if calibration.data["space"] != engine.space:
        found = f"{calibration.name} belongs to {calibration.data['model']['name']}, which does not run"
        return Finding("calibration", "warning", found, again)
    value = calibration.threshold
    threshold = "no threshold" if value is None else f"threshold {value:.4f}"
    return Finding("calibration", "ok", f"{calibration.name}: {calibration.precision}, {threshold}")


def state_folder(folder: Path) -> list[Finding]:
    """Check the state folder, its permissions and free space."""
    title = "state folder"
    present = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(present, os.W_OK | os.X_OK):
        found = f"{present} is not writable for user {os.geteuid()}"
        return [Finding(title, "missing", found, "choose another state_dir")]
    if present != folder:
        return [Finding(title, "note", f"{folder} will be created"), _space(present)]
    status = folder.stat()
    if stat.S_IMODE(status.st_mode) & 0o077:
        found = f"{folder} is open to others (mode {stat.S_IMODE(status.st_mode):04o})"
        return [Finding(title, "warning", found, f"chmod 700 {folder}"), _space(folder)]
    if status.st_uid != os.geteuid():
        found = f"{folder} belongs to user {status.st_uid}, this is user {os.geteuid()}"
        return [Finding(title, "note", found, "run doctor as the user of the service"), _space(folder)]
    return [Finding(title, "ok", str(folder)), _space(folder)]


def _space(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    found = f"{free / (1 << 30):.1f} GiB free for {folder}"
    if free < NO_SPACE:
        return Finding("disk", "missing", found, "free some: gallery and outbox cannot be written")
    if free < LITTLE_SPACE:
        return Finding("disk", "warning", found, "free some, or lower outbox.max_megabytes")
    return Finding("disk", "ok", found)


def clock(folder: Path) -> list[Finding]:
    """Check the system clock against the time that the agent has counted, see `core.clock`."""
    from edge_agent.core.clock import CLOCK_FILE, Clock

    known = Clock.existing(folder / CLOCK_FILE)
    if known is None:
        return []
    state = known.state()
    if state.state == "stepped":
        advice = "correct it, or let NTP do so: timedatectl; the agent erases nobody because of it"
        return [Finding("clock step", "warning", str(state), advice)]
    return [Finding("clock step", "ok", "the system clock has not left the time that has passed")]


def gallery(settings: Settings, engine: EngineInfo | None) -> list[Finding]:
    """Check that the gallery can be read and fits the model."""
    from edge_agent.core.encryption import database_key
    from edge_agent.gallery.gallery import GALLERY_FILE, Gallery

    path = settings.state_dir / GALLERY_FILE
    if not path.is_file():
        return [Finding("gallery", "note", f"{path} will be created")]
    try:
        with Gallery.existing(path, key=database_key(settings.storage)) as existing:
            stats = existing.stats()
    except EdgeAgentError as problem:
        return [Finding("gallery", "missing", str(problem))]
    count = f"{stats.identities} of {stats.capacity} identities"
    found = f"{count}, {stats.enrolled} enrolled, space {stats.space}"
    if engine is not None and engine.space != stats.space and stats.identities:
        advice = f"use its model, or: edge-agent gallery forget --all --state {settings.state_dir}"
        return [Finding("gallery", "missing", f"{found}, but the model has space {engine.space}", advice)]
    return [Finding("gallery", "ok", found)]


def broker(settings: Settings) -> list[Finding]:
    """Connect to the broker as the agent does, and look for another agent with the same names."""
    from edge_agent.core.mqtt import BrokerSettings
    from edge_agent.deliver.subscriber import Subscriber
    from edge_agent.deliver.topics import Topics

    if settings.mqtt.broker is None:
        return [Finding("broker", "note", "none is configured", "set mqtt.broker")]
    findings = _names(settings)
    try:
        chosen = BrokerSettings.of(settings.mqtt)
        topics = Topics(settings.mqtt.site, settings.mqtt.device)
        with Subscriber(chosen, (topics.status,)) as subscriber:
            retained = subscriber.next(_RETAINED_S)
            findings += _others(settings, None if retained is None else retained.payload)
            return [Finding("broker", "ok", f"{chosen.url} accepts the connection"), *findings]
    except EdgeAgentError as problem:
        advice = "the agent runs without it and delivers later; check address, user and certificates"
        return [Finding("broker", "warning", str(problem), advice), *findings]


def kafka(settings: Settings) -> list[Finding]:
    """Ask the brokers of Kafka for the topics that are read and written."""
    from edge_agent.core.kafka import KafkaBrokers, kafka_topics

    topics = kafka_topics(settings)
    if not topics:
        advice = "set detector.external_transport or metropolis.transport to kafka, or remove kafka.brokers"
        unused = bool(settings.kafka.brokers)
        return [Finding("kafka", "note", "brokers are set, but nothing uses them", advice)] if unused else []
    try:
        brokers = KafkaBrokers.of(settings)
        count, lacking = brokers.check(topics)
    except EdgeAgentError as problem:
        advice = "the agent runs without it meanwhile; check addresses, login and certificates"
        return [Finding("kafka", "warning", str(problem), advice)]
    findings = [Finding("kafka", "ok", f"{brokers.url}: {count} broker(s)")]
    if brokers.sends_password_openly:
        findings.append(Finding("kafka", "warning", "the password is sent unencrypted", "set kafka.tls"))
    return findings + [
        Finding("kafka", "warning", f"there is no topic {topic}", "create it, or correct its name")
        for topic in lacking
    ]


def _names(settings: Settings) -> list[Finding]:
    """Check the names of this device."""
    if problem := settings.mqtt.names_problem:
        return [Finding("names", "warning", problem, "set mqtt.site and mqtt.device")]
    return [Finding("names", "ok", f"site {settings.mqtt.site}, device {settings.mqtt.device}")]


def _others(settings: Settings, status: bytes | None) -> list[Finding]:
    """Check whether the agent that is online under these names is the one of this state folder."""
    from edge_agent.health.inquiry import SOCKET_NAME, read_status

    here: dict[str, Any] = {}
    with contextlib.suppress(EdgeAgentError):
        here = read_status(settings.state_dir / SOCKET_NAME)
    found: list[Finding] = []
    if problem := (here.get("delivery") or {}).get("problem"):
        found.append(Finding("delivery", "warning", str(problem)))
    try:
        message = json.loads(status or b"{}")
        online, session = message["data"]["state"] != "offline", message["session"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return found
    if online and session != here.get("session"):
        text = f"another agent is online as {settings.mqtt.site}/{settings.mqtt.device}"
        advice = "stop it, or give this device its own mqtt.site and mqtt.device"
        found.append(Finding("names", "warning", text, advice))
    return found
