"""How well an embedding finds people again: ranking, open-set rates, report.

The ranking follows TAO's protocol (`metrics`), optionally after re-ranking (`rerank`); thresholds and error
rates come from pairs across cameras (`openset`). `evaluate` runs all of it in one pass over the pairs.
All rates are fractions, 0..1.
"""

from edge_agent.offline.dataset import JunkRule
from edge_agent.offline.evaluate.labels import EmbeddedCrops, Sides, apply_junk_rule
from edge_agent.offline.evaluate.metrics import Ranking, rank
from edge_agent.offline.evaluate.openset import (
    OperatingPoint,
    PairScores,
    Unsupported,
    equal_error_point,
    operating_points,
    threshold_at_fmr,
)
from edge_agent.offline.evaluate.protocol import Evaluation, SampledQuery, evaluate
from edge_agent.offline.evaluate.rerank import ReRanking

__all__ = [
    "EmbeddedCrops",
    "Evaluation",
    "JunkRule",
    "OperatingPoint",
    "PairScores",
    "Ranking",
    "ReRanking",
    "SampledQuery",
    "Sides",
    "Unsupported",
    "apply_junk_rule",
    "equal_error_point",
    "evaluate",
    "operating_points",
    "rank",
    "threshold_at_fmr",
]
