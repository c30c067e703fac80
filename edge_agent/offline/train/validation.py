"""Evaluation between the epochs: TAO's figures on query and test crops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import DatasetError
from edge_agent.offline.dataset import JunkRule
from edge_agent.offline.evaluate.labels import EmbeddedCrops, apply_junk_rule
from edge_agent.offline.evaluate.metrics import RankingTally, rank
from edge_agent.offline.evaluate.rerank import ReRankedScores, ReRanking

if TYPE_CHECKING:
    from edge_agent.offline.train.data import Pictures
    from edge_agent.offline.train.spec import ReRankingSection

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Validation:
    """Query and gallery pictures, and whether their ranking is re-ranked."""

    query: Pictures
    gallery: Pictures
    re_ranking: ReRankingSection

    def figures(self, embed: Embed) -> Mapping[str, float]:
        """Return mAP and rank-k of `embed`; DatasetError if no query has a match in another camera."""
        sides = apply_junk_rule(_labelled(embed, self.query), _labelled(embed, self.gallery), JunkRule.STRICT)
        chosen = self.re_ranking
        if chosen.re_ranking:
            settings = ReRanking(chosen.k1, chosen.k2, chosen.lambda_value)
            tally = RankingTally(sides.query, sides.gallery)
            for start, block in ReRankedScores(sides.query.vectors, sides.gallery.vectors, settings).blocks():
                tally.add(start, block)
            ranking = tally.result()
        else:
            ranking = rank(sides.query, sides.gallery)
        if ranking is None:
            raise DatasetError(
                "no query of dataset.query_dataset_dir has a match in another camera of the gallery"
            )
        depths = sorted({1, 5, 10, chosen.max_rank})
        return {"mAP": ranking.mean_average_precision, **{f"rank{k}": ranking.rank(k) for k in depths}}


def _labelled(embed: Embed, side: Pictures) -> EmbeddedCrops:
    persons = side.people[side.labels].tolist()
    names = [str(number) for number in range(len(persons))]
    return EmbeddedCrops.of(embed(side.images), persons, side.cameras.tolist(), names)
