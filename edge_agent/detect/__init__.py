"""Detectors find people in a frame: HOG, YOLOX, or none at all.

`open_detector` turns what the user typed into one of them. Scores are comparable within one detector
only, so each detector states its own levels (`ScoreLevels`).
"""

from __future__ import annotations

from pathlib import Path

from edge_agent.core.errors import ConfigError
from edge_agent.detect.base import Detector

__all__ = ["Detector", "open_detector"]


def open_detector(spec: str, *, threads: int = 0) -> Detector:
    """The detector that the user named; nothing heavy is loaded before it is entered.

    Args:
        spec: `hog`, `hog:FACTOR` (the picture is enlarged first, for people under 80 pixels),
            `yolox:PATH` (an ONNX file of the YOLOX family) or `none` (the whole frame).
        threads: CPU threads for a network (which ONNX Runtime runs), 0 for one per core.

    Raises:
        ConfigError: there is no such detector.
        ModelError: the network does not fit.
    """
    kind, _, argument = spec.partition(":")
    if kind == "yolox" and argument:
        from edge_agent.detect.yolox import YoloxDetector
        from edge_agent.engine.graph import prepare_detector
        from edge_agent.engine.onnxruntime import OnnxRuntimeEngine

        prepared = prepare_detector(Path(argument))
        return YoloxDetector(OnnxRuntimeEngine(prepared, max_batch=1, threads=threads))
    if kind == "hog":
        from edge_agent.detect.hog import HogDetector

        return HogDetector(resize=_factor(spec, argument))
    if spec == "none":
        from edge_agent.detect.none import WholeFrame

        return WholeFrame()
    raise ConfigError(f"no detector {spec!r}; choose `hog`, `yolox:PATH_TO_ONNX`, `external` or `none`")


def _factor(spec: str, text: str) -> float:
    """The factor in `hog:FACTOR`, 1 where there is none."""
    try:
        factor = float(text or 1)
    except ValueError:
        factor = 0.0
    if not 0.25 <= factor <= 4:
        raise ConfigError(f"detector {spec!r}: write `hog` or `hog:FACTOR` with a factor in 0.25..4")
    return factor
