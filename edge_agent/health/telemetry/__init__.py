"""Temperatures, power and load of the device; unknown values are None."""

from edge_agent.health.telemetry.reader import Telemetry
from edge_agent.health.telemetry.reading import Reading

__all__ = ["Reading", "Telemetry"]
