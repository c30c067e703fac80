from __future__ import annotations

import numpy as np

from edge_agent.core.structures import box_areas, iou_matrix


def test_overlap_of_every_pair_of_boxes() -> None:
    a = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [3, 3, 3, 9]], np.float32)
    b = np.array([[0, 0, 10, 10], [10, 0, 20, 10], [0, 0, 5, 5]], np.float32)
    expected = [[1.0, 0.0, 0.25], [1 / 3, 1 / 3, 0.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(iou_matrix(a, b), expected, rtol=1e-6)
    np.testing.assert_array_equal(box_areas(a), [100, 100, 0])


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
