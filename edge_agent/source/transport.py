"""Where messages of upstream programs come from: MQTT or Kafka, with one interface.

What is in the messages is not known here; `source.boxes` and `source.deepstream` parse them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from edge_agent.core.errors import ConfigError
from edge_agent.core.kafka import KafkaBrokers, KafkaSubscription
from edge_agent.core.mqtt import BrokerSettings, Incoming, Subscription

if TYPE_CHECKING:
    from edge_agent.core.config import Settings

CONNECT_TIMEOUT_S = 2.0
"""Bounds the time that the thread of an MQTT client blocks, and thereby the end of the program."""
Broker: TypeAlias = BrokerSettings | KafkaBrokers


class Receiver(Protocol):
    """Receives the messages of some topics until it is closed; connects again after a loss."""

    def open_in_background(self) -> None:
        """Connect on a thread of its own. BrokerRefused: certificates that cannot be used."""

    def close(self) -> None:
        """Disconnect; a second call has no effect."""


def upstream_broker(settings: Settings) -> Broker:
    """Return the broker of `detector.external_transport`.

    Raises:
        ConfigError: no broker is set, or its settings are not valid.
        BrokerRefused: a certificate of Kafka cannot be read.
    """
    if settings.detector.external_transport == "kafka":
        return KafkaBrokers.of(settings)
    if settings.mqtt.broker is None:
        raise ConfigError(
            "messages of an upstream are to be read, but no broker is set (mqtt.broker, --broker)"
        )
    return BrokerSettings.of(settings.mqtt)


def receiver(
    broker: Broker,
    topics: Sequence[str],
    on_message: Callable[[Incoming], None],
    *,
    on_change: Callable[[bool, str], None],
    on_problem: Callable[[str, str], None],
    max_packet: int,
) -> Receiver:
    """Return what receives these topics; the callbacks are those of `core.mqtt.Subscription`.

    `max_packet` limits the messages (bytes) where the broker lets clients do so: MQTT 5.

    Raises:
        ConfigError: Kafka has no topic of such a name.
    """
    if isinstance(broker, KafkaBrokers):
        return KafkaSubscription(broker, topics, on_message, on_change=on_change, on_problem=on_problem)
    return Subscription(
        broker, topics, on_message, on_change=on_change, on_problem=on_problem, qos=0,
        max_packet=max_packet, connect_timeout_s=CONNECT_TIMEOUT_S,
    )  # fmt: skip
