"""Who is it: pooled evidence of a track against the gallery, decided as an open set."""

from edge_agent.identify.identifier import Identifier
from edge_agent.identify.site import SiteScores, Threshold

__all__ = ["Identifier", "SiteScores", "Threshold"]
