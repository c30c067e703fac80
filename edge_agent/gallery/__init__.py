"""The people that the agent knows."""
