"""Thermals, power and load of the device; what is not known is None, never a number."""

from edge_agent.health.telemetry.reader import Telemetry
from edge_agent.health.telemetry.reading import Reading

__all__ = ["Reading", "Telemetry"]
