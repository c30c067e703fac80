"""Open-set identity decisions: the pooled evidence of each track against the gallery."""

from edge_agent.identify.identifier import Identifier
from edge_agent.identify.pairs import SiteScores
from edge_agent.identify.site import Threshold

__all__ = ["Identifier", "SiteScores", "Threshold"]
