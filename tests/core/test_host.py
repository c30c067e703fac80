"""Which addresses are this machine's: a secret may go to them without TLS."""

import pytest

from edge_agent.core.config import MqttSettings
from edge_agent.core.host import is_loopback
from edge_agent.core.mqtt import BrokerSettings


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.0.1", "::1", "[::1]"])
def test_addresses_of_this_machine(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["127.example.com", "127.0.0.1.example.com", "localhost.example.com", "10.0.0.1", "[fe80::1]", ""]
)
def test_addresses_that_may_be_of_another_machine(host):
    assert not is_loopback(host)


def test_a_broker_whose_name_begins_like_an_address_of_this_machine():
    assert not BrokerSettings.of(MqttSettings(broker="mqtt://127.example.com:1883")).is_loopback
    assert BrokerSettings.of(MqttSettings(broker="mqtt://[::1]:1883")).is_loopback
