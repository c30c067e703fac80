"""YOLOv5 and YOLOv7: `[N, 3 A, 5 + classes]` of centre x, y, w, h, objectness and classes, in pixels.

Preprocessing as in YOLOv5's `letterbox`: RGB, 0..1, picture centred, the rest 114.
"""

from __future__ import annotations

from edge_agent.detect.fit import Fit
from edge_agent.detect.kinds.base import UNIT_RGB, Kind
from edge_agent.detect.kinds.objectness import BOX_COLUMNS, ObjectnessDecoder, check_objectness
from edge_agent.detect.kinds.seen import Seen, Unlike, expect_pixels, fits_rows, shapes, usual_rows
from edge_agent.detect.kinds.yolov8 import LEVELS, MAX_IOU

_ANCHORS = 3
"""Boxes for each cell."""


def _read(seen: Seen) -> ObjectnessDecoder:
    pictures = seen.table()
    rows, columns = pictures[0].shape
    if columns <= BOX_COLUMNS or not fits_rows(seen, rows, _ANCHORS):
        raise Unlike(f"its output is {shapes(seen)}, expected [{_ANCHORS * usual_rows(seen)}, 5 + classes]")
    response = check_objectness(seen, pictures)
    expect_pixels(seen, pictures)
    return ObjectnessDecoder(response)


YOLOV5 = Kind("yolov5", UNIT_RGB, Fit.CENTRE, LEVELS, MAX_IOU, (640, 640), _read)
