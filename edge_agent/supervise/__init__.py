"""Keeps a service up: which stage is stuck, how earlier starts ended, whether memory grows, and who asks."""

from edge_agent.supervise.watchdog import Stage, StageState, Supervisor

__all__ = ["Stage", "StageState", "Supervisor"]
