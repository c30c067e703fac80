"""Checks before a network is loaded: files and folders that the settings name, and the broker's address."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.core.detectors import parse_detector
from edge_agent.core.distribution import install_command
from edge_agent.core.errors import ConfigError, EdgeAgentError, InputError
from edge_agent.core.files import open_regular, shown
from edge_agent.core.installed import chosen_detector
from edge_agent.core.kafka import KafkaBrokers, kafka_topics
from edge_agent.core.mqtt import BrokerSettings
from edge_agent.deliver.copies import copies_target

if TYPE_CHECKING:
    from edge_agent.core.config import Settings
    from edge_agent.source.base import Source


def check_before_start(settings: Settings, sources: Sequence[Source]) -> None:
    """Raise the first problem that prevents a run.

    A source that cannot be read does so only where there is no other: else the others go on, and its reader
    reports it.

    Raises:
        EdgeAgentError: of a source, a detector, the ReID network or the broker's settings.
    """
    failed = list(_source_problems(sources))
    if failed and len(failed) == len(sources):
        raise failed[0]
    for problem in (
        *_detector_problems(settings), *_model_problems(settings),
        *_broker_problems(settings), *_kafka_problems(settings), *_fleet_problems(settings),
    ):  # fmt: skip
        raise problem


def all_problems(settings: Settings) -> Iterator[EdgeAgentError]:
    """Yield everything that the settings name and that cannot be reached, also the brokers' host names."""
    from edge_agent.source.opening import open_sources

    if any(source.enabled for source in settings.sources):
        try:
            yield from _source_problems(open_sources(settings.sources, settings.state_dir, settings=settings))
        except EdgeAgentError as problem:
            yield problem
    yield from _detector_problems(settings)
    yield from _model_problems(settings)
    yield from _broker_problems(settings)
    yield from _kafka_problems(settings)
    yield from _fleet_problems(settings)
    yield from _unknown_hosts(settings)


def _source_problems(sources: Sequence[Source]) -> Iterator[EdgeAgentError]:
    for source in sources:
        check = getattr(source, "check", None)  # cameras have none
        if check is not None:
            try:
                check()
            except EdgeAgentError as problem:
                yield problem


def _detector_problems(settings: Settings) -> Iterator[EdgeAgentError]:
    chosen = {source.detector or settings.detector.kind for source in settings.sources if source.enabled}
    for text in sorted(chosen or {settings.detector.kind}):
        try:
            file = parse_detector(chosen_detector(text, settings.state_dir)).file
        except ValueError as problem:
            yield ConfigError(str(problem))
            continue
        except ConfigError as problem:
            yield problem
            continue
        if file is not None:
            yield from _unreadable("detector", file)


def _model_problems(settings: Settings) -> Iterator[EdgeAgentError]:
    from edge_agent.engine.graph.stripes import STRIPES_NAME

    model = settings.engine.model
    if model is not None and str(model) != STRIPES_NAME:
        yield from _unreadable("engine.model", model)


def _broker_problems(settings: Settings) -> Iterator[EdgeAgentError]:
    if settings.mqtt.broker is None:
        return
    try:
        BrokerSettings.of(settings.mqtt)
    except ConfigError as problem:
        yield problem
        return
    for key in ("ca_file", "cert_file", "key_file"):
        if (path := getattr(settings.mqtt, key)) is not None:
            yield from _unreadable(f"mqtt.{key}", path)


def _kafka_problems(settings: Settings) -> Iterator[EdgeAgentError]:
    try:
        if kafka_topics(settings):
            KafkaBrokers.of(settings)
        copies_target(settings)
    except EdgeAgentError as problem:
        yield problem


def _fleet_problems(settings: Settings) -> Iterator[EdgeAgentError]:
    if not settings.fleet.enabled:
        return
    if find_spec("asyncpg") is None:
        yield ConfigError(f"fleet.enabled needs asyncpg: {install_command('fleet')}")
    for key in ("ca_file", "cert_file", "key_file"):
        if (path := getattr(settings.fleet, key)) is not None:
            yield from _unreadable(f"fleet.{key}", path)


def _unknown_hosts(settings: Settings) -> Iterator[EdgeAgentError]:
    hosts = []
    with suppress(ConfigError):
        if settings.mqtt.broker is not None:
            broker = BrokerSettings.of(settings.mqtt)
            hosts.append(("mqtt.broker", broker.host, broker.port))
    for address in settings.kafka.brokers:
        host, _, port = address.rpartition(":")
        hosts.append(("kafka.brokers", host.strip("[]"), int(port)))
    if settings.fleet.enabled and (store := settings.fleet.address) is not None:
        hosts.append(("fleet.store", store.host, store.port))
    for key, host, number in hosts:
        try:
            socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)
        except OSError as problem:
            yield ConfigError(f"{key}: the name {host} is not known here: {problem.strerror}")


def _unreadable(key: str, path: Path) -> Iterator[EdgeAgentError]:
    try:
        open_regular(path).close()
    except InputError as problem:
        yield InputError(
            f"{key}: {problem}" if shown(path) in str(problem) else f"{key}: {shown(path)}: {problem}"
        )
