"""Settings of brokers, and of what is delivered to them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from edge_agent.core.host import default_device
from edge_agent.core.sections import Section, about
from edge_agent.core.setting_types import (
    KAFKA_TOPIC,
    Id,
    KafkaBroker,
    Positive,
    ResponsePrefix,
    check_topic,
)

EXAMPLE_NAMES = frozenset({("plant-1", "gate-a"), ("site1", "jx01"), ("site", "device")})
"""Site and device in the example files, in the documentation, and the defaults of earlier versions."""


class MqttSettings(Section):
    """MQTT broker, and the names of this device on it."""

    broker: str | None = about(None, "mqtt://HOST:PORT or mqtts://HOST:PORT; none: no broker", repr=False)
    site: Id = about("site", "first id in every topic")
    device: Id = Field(
        default_factory=default_device,
        description="second id in every topic; host name and a digest of this machine when absent",
    )
    version: Literal["5", "3.1.1"] = about("5", "MQTT protocol version")
    username: str | None = about(None, "user name on the broker")
    password: SecretStr | None = about(None, "prefer the credential file mqtt__password")
    ca_file: Path | None = about(None, "CA certificates, PEM; the system's when absent")
    cert_file: Path | None = about(None, "client certificate, PEM, for mutual TLS")
    key_file: Path | None = about(None, "key of the client certificate, PEM")
    keepalive_s: int = about(15, "a dead broker is detected after twice this time", ge=5, le=3600)
    commands: tuple[str, ...] = about(
        (),
        "verbs accepted over MQTT: enrol, name, merge, split, reject, keep, suggestions, forget, reload,"
        " stats, recalibrate, threshold",
    )
    response_prefix: ResponsePrefix = about(
        "", "topics below this may be response topics of commands; empty: only those of this device"
    )
    home_assistant: bool | Literal["remove"] = about(
        False, "true: announce the device to Home Assistant; remove: withdraw the announcement"
    )

    @field_validator("broker")
    @classmethod
    def _none(cls, value: str | None) -> str | None:
        return None if value == "none" else value

    @property
    def names_problem(self) -> str:
        """Why another device may have the same names; "" without a reason."""
        if (self.site, self.device) not in EXAMPLE_NAMES:
            return ""
        return (
            f"mqtt.site {self.site!r} and mqtt.device {self.device!r} are those of an example, which other"
            " devices may have too: give this device its own"
        )


class KafkaSettings(Section):
    """Kafka: source of upstream boxes, and target of copies of events. See `docs/deepstream.md`."""

    brokers: tuple[KafkaBroker, ...] = about((), "HOST:PORT of some brokers; they name the others")
    tls: bool = about(False, "encrypt, and check the brokers' certificates and host names")
    ca_file: Path | None = about(None, "CA certificates, PEM; the system's when absent")
    cert_file: Path | None = about(None, "client certificate, PEM, for mutual TLS")
    key_file: Path | None = about(None, "key of the client certificate, PEM")
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = about(
        None, "SASL mechanism of the login; null: no login"
    )
    username: str | None = about(None, "user name of the login", min_length=1)
    password: SecretStr | None = about(None, "prefer the credential file kafka__password")
    group: str | None = about(
        None,
        "name of a consumer group to state, where the brokers permit only some; each agent gets every message"
        " all the same; null: named like the agent",
        min_length=1,
        max_length=249,
    )

    @model_validator(mode="after")
    def _fits(self) -> KafkaSettings:
        files = [name for name in ("ca_file", "cert_file", "key_file") if getattr(self, name) is not None]
        if files and not self.tls:
            raise ValueError(f"{files[0]} is set, but tls is false")
        if ("cert_file" in files) != ("key_file" in files):
            raise ValueError("cert_file and key_file go together: set both or neither")
        login = [name for name in ("mechanism", "username", "password") if getattr(self, name) is not None]
        # The credential with the password may be there for the service only, not for `status` and the like.
        if login and not {"mechanism", "username"} <= set(login):
            raise ValueError(
                f"a login is mechanism, username and password; here is only {' and '.join(login)}"
            )
        return self


class MetropolisSettings(Section):
    """Copies of identity events for consumers of NVIDIA Metropolis. See `docs/deepstream.md`."""

    format: Literal["off", "json", "protobuf"] = about(
        "off", "off: no copies; json: full schema of nvmsgconv; protobuf: nv.Frame"
    )
    transport: Literal["mqtt", "kafka"] = about("mqtt", "broker that gets the copies")
    topic: str | None = about(None, "their topic; needed unless format is off")

    @model_validator(mode="after")
    def _has_topic(self) -> MetropolisSettings:
        if self.format == "off":
            return self
        if not self.topic:
            raise ValueError("format is set, but topic is not")
        if self.transport == "kafka" and not KAFKA_TOPIC.fullmatch(self.topic):
            raise ValueError("topic: Kafka takes letters, digits, `.`, `_` and `-`, 249 at most")
        if self.transport == "mqtt":
            check_topic(self.topic)
        return self

    def goes_to(self, topics: str) -> bool:
        """Whether copies go to a topic, or to one that a filter of MQTT matches."""
        if self.format == "off" or self.topic is None:
            return False
        if self.transport == "kafka":
            return topics == self.topic
        levels, wanted = self.topic.split("/"), topics.split("/")
        wanted = wanted[2:] if wanted[0] == "$share" else wanted
        for at, level in enumerate(wanted):
            if level == "#":
                return True
            if at >= len(levels) or level not in {"+", levels[at]}:
                return False
        return len(wanted) == len(levels)


class OutboxSettings(Section):
    """Storage of events that the broker has not acknowledged."""

    synchronous: Literal["NORMAL", "FULL"] = about(
        "NORMAL", "FULL survives a power loss, at the cost of one fsync per event"
    )
    max_rows: int = about(1_000_000, "limit of events; the oldest are dropped first", ge=100)
    max_megabytes: int = about(1024, "limit of their size", ge=1)
    max_age_hours: Positive = about(168.0, "limit of their age")
