"""Evaluation of embeddings: ranking, open-set error rates, report.

The ranking follows TAO's protocol (`metrics`), optionally after re-ranking (`rerank`); thresholds and error
rates are computed from cross-camera pairs (`openset`). `evaluate` computes all figures. Rates are fractions,
0..1.
"""

from edge_agent.offline.dataset import JunkRule
from edge_agent.offline.evaluate.labels import EmbeddedCrops, Sides, apply_junk_rule
from edge_agent.offline.evaluate.metrics import Ranking, rank
from edge_agent.offline.evaluate.openset import (
    OperatingPoint,
    Unsupported,
    equal_error_point,
    operating_points,
    threshold_at_fmr,
)
from edge_agent.offline.evaluate.pairs import PairScores
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
