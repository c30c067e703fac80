"""No network: the space of the messages is stated, and no picture is embedded."""

from __future__ import annotations

import numpy as np
import pytest

from edge_agent.core.config import QualitySettings
from edge_agent.core.errors import EngineError
from edge_agent.core.structures import Detections, MessageFrame
from edge_agent.embed.embedder import Embedder
from edge_agent.embed.quality import QualityGate
from edge_agent.engine.graph.prepared import PROFILES
from edge_agent.engine.upstream import UpstreamEngine


def embedder() -> Embedder:
    return Embedder(UpstreamEngine("theirs", 4), profile=PROFILES["tao"], gate=QualityGate(QualitySettings()))


def test_a_picture_is_refused_and_says_why():
    with embedder() as opened:
        assert (opened.info.space, opened.info.dimension, opened.info.backend) == ("theirs", 4, "upstream")
        for _ in range(3):
            with pytest.raises(EngineError, match="computed upstream"):
                opened.embed_images([np.zeros((200, 80, 3), np.uint8)])


def test_embeddings_of_boxes_that_mislead_are_not_used():
    boxes = np.array([[100, 100, 200, 400], [300, 100, 306, 118], [500, 100, 600, 400]], np.float32)
    message = MessageFrame(
        "front", 1, 0.0, (1920, 1080), Detections(boxes, np.ones(3, np.float32)), (1, 2, 3),
        np.eye(4, dtype=np.float32)[:3], np.array([True, True, False]),
    )  # fmt: skip
    with embedder() as opened:
        found = opened.accept(message)
        assert found.present.tolist() == [True, False, False]
        assert found.reasons == ("", "small", "")
        assert (found.quality > 0).tolist() == [True, False, False]
        assert (opened.counters.received, dict(opened.counters.refused)) == (1, {"small": 1})
