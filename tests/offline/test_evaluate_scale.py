"""20,000 queries against 20,000 gallery crops at 256 numbers: memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, resource, sys
import numpy as np
from edge_agent.offline.evaluate.labels import EmbeddedCrops
from edge_agent.offline.evaluate.protocol import evaluate
from edge_agent.offline.evaluate.rerank import ReRanking

random = np.random.default_rng(0)
people, count = 751, 20_000
centres = random.normal(size=(people + 1, 256)).astype(np.float32)

def side():
    pids = random.integers(1, people + 1, count)
    vectors = centres[pids] + 2.2 * random.normal(size=(count, 256)).astype(np.float32)
    return EmbeddedCrops.of(vectors, pids, random.integers(1, 7, count), [str(i) for i in range(count)])

found = evaluate(side(), side(), reranking=ReRanking() if sys.argv[1] == "rerank" else None).document()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"peak": peak, "mAP": found["mAP"], "queries": found["queries_evaluated"]}))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("ranking", ["plain", "rerank"])
def test_memory_at_20000_by_20000(ranking: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ranking], capture_output=True, text=True, check=True, timeout=1200
    )
    found = json.loads(done.stdout)
    assert found["peak"] < 4 * 2**30
    assert found["queries"] > 19_000
    assert 0.2 < found["mAP"] < 1
