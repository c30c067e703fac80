"""Kinds of networks that detect people, by name; `core.detectors` has the list for users."""

from __future__ import annotations

from edge_agent.core.detectors import NETWORKS
from edge_agent.detect.kinds.base import Kind
from edge_agent.detect.kinds.end2end import END2END, YOLOX_END2END
from edge_agent.detect.kinds.peoplenet import PEOPLENET
from edge_agent.detect.kinds.yolov5 import YOLOV5
from edge_agent.detect.kinds.yolov8 import YOLOV8
from edge_agent.detect.kinds.yolox import YOLOX

_ALL = (YOLOX, YOLOV8, YOLOV5, END2END, YOLOX_END2END, PEOPLENET)

KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}
assert KINDS.keys() == NETWORKS.keys(), "core.detectors.NETWORKS lists other kinds"
