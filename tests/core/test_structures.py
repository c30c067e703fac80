from __future__ import annotations

import numpy as np

from edge_agent.core.structures import Detections, iou_matrix


def test_overlap_of_every_pair_of_boxes() -> None:
    a = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [3, 3, 3, 9]], np.float32)
    b = np.array([[0, 0, 10, 10], [10, 0, 20, 10], [0, 0, 5, 5]], np.float32)
    expected = [[1.0, 0.0, 0.25], [1 / 3, 1 / 3, 0.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(iou_matrix(a, b), expected, rtol=1e-6)


def test_overlap_in_stacks_is_that_of_each_pair() -> None:
    random = np.random.default_rng(4)
    a, b = (
        np.cumsum(random.uniform(-5, 90, (4, 7, 2, 2)), axis=2).reshape(4, 7, 4).astype(np.float32)
        for _ in range(2)
    )
    stacked = iou_matrix(a, b)
    assert (stacked > 0.3).any()
    for layer in range(4):
        for row in range(7):
            for column in range(7):
                one = iou_matrix(a[layer, row : row + 1], b[layer, column : column + 1])
                np.testing.assert_array_equal(one, stacked[layer, row : row + 1, column : column + 1])


def test_boxes_within_a_picture() -> None:
    nan, inf = float("nan"), float("inf")
    rows = [
        [-5, -5, 10, 10],
        [20, 20, inf, 30],
        [nan, 0, 5, 5],
        [300, 0, 400, 10],
        [9, 9, 9, 20],
        [1, 1, 2, 2],
    ]
    found = Detections(np.array(rows, np.float32), np.array([1, 1, 1, 1, 1, nan], np.float32))
    inside = found.within(100, 50)
    assert inside.boxes.tolist() == [[0, 0, 10, 10], [20, 20, 100, 30]]
    assert len(Detections.none().within(100, 50)) == 0
