"""Kinds of detectors that can be chosen: the one list behind settings, help, errors and documentation.

`detect.kinds` implements those that run a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NETWORKS = {
    "yolox": "YOLOX",
    "yolov8": "YOLOv8, YOLOv9, YOLO11, YOLO12",
    "yolov5": "YOLOv5, YOLOv7",
    "end2end": "YOLOv10, YOLO26, exports with NMS inside or for DeepStream",
    "yolox-end2end": "YOLOX, exported with NMS inside or for DeepStream",
    "peoplenet": "NVIDIA PeopleNet, DetectNet_v2",
}
"""Kinds that run an ONNX file, and the families of networks that each reads."""

AUTO = "auto"

BUILT_IN = {
    AUTO: "auto (that of `edge-agent model fetch`, else hog)",
    "hog": "hog, hog:FACTOR",
    "external": "external (boxes over MQTT or Kafka)",
    "none": "none (a frame is one person)",
}
"""Kinds without an ONNX file of their own, and how each is written."""

FORMS = ", ".join([*BUILT_IN.values(), "KIND:FILE.onnx"]) + " or FILE.onnx"
"""How a detector is written; KIND is one of `NETWORKS`, and is recognised where it is left out."""

KINDS_TEXT = "KIND is one of " + "; ".join(f"{kind} ({families})" for kind, families in NETWORKS.items())
"""The kinds with their families, for help and messages."""

LEAST_FACTOR, MOST_FACTOR = 0.25, 4.0
"""Limits of the factor by which a picture is resized for HOG."""


@dataclass(frozen=True, slots=True)
class DetectorChoice:
    """A detector as chosen by its user.

    Attributes:
        kind: one of `BUILT_IN` or `NETWORKS`, or "" for a network that is to be recognised.
        file: of a network.
        factor: of HOG.
    """

    kind: str
    file: Path | None = None
    factor: float = 1.0


def parse_detector(text: str) -> DetectorChoice:
    """Read a detector in one of `FORMS`; ValueError, with the forms and kinds, where it is in none."""
    kind, colon, argument = text.partition(":")
    if kind == "hog":
        return DetectorChoice("hog", factor=_factor(text, argument))
    if text in BUILT_IN:
        return DetectorChoice(text)
    if kind in NETWORKS and argument:
        return DetectorChoice(kind, Path(argument))
    if text.endswith(".onnx") and (not colon or Path(text).exists()):
        return DetectorChoice("", Path(text))
    raise ValueError(f"no detector {text!r}; write {FORMS}; {KINDS_TEXT}")


def _factor(text: str, argument: str) -> float:
    try:
        factor = float(argument or 1)
    except ValueError:
        factor = 0.0
    if not LEAST_FACTOR <= factor <= MOST_FACTOR:
        limits = f"{LEAST_FACTOR:g} to {MOST_FACTOR:g}"
        raise ValueError(f"detector {text!r}: write hog, or hog:FACTOR with a factor of {limits}")
    return factor
