"""Rank-k, mAP and mINP against a naive implementation and against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.core.errors import DatasetError, InputError, NonFiniteEmbedding
from edge_agent.offline.dataset import JunkRule
from edge_agent.offline.evaluate.labels import EmbeddedCrops, apply_junk_rule
from edge_agent.offline.evaluate.metrics import Ranking, RankingTally, rank
from edge_agent.offline.evaluate.protocol import evaluate


def crops(vectors: NDArray[np.float64], pids: list[int], camids: list[int]) -> EmbeddedCrops:
    return EmbeddedCrops.of(vectors, pids, camids, [f"{i}" for i in range(len(pids))])


def random_sides(
    seed: int, *, people: int = 6, cameras: int = 3, queries: int = 25, gallery: int = 60, size: int = 8
) -> tuple[EmbeddedCrops, EmbeddedCrops]:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(people + 1, size))

    def side(count: int) -> EmbeddedCrops:
        pids = random.integers(1, people + 1, count)
        vectors = centres[pids] + 0.8 * random.normal(size=(count, size))
        return crops(vectors, pids.tolist(), random.integers(1, cameras + 1, count).tolist())

    return side(queries), side(gallery)


def naive(query: EmbeddedCrops, gallery: EmbeddedCrops) -> dict[int, tuple[int, float, float]]:
    """Per query with a match: first rank, AP, INP. One query, one gallery item at a time."""
    results = {}
    for q in range(len(query)):
        scored = []
        for g in range(len(gallery)):
            same_person = query.pids[q] == gallery.pids[g]
            if same_person and query.camids[q] == gallery.camids[g]:
                continue
            difference = query.vectors[q].astype(float) - gallery.vectors[g].astype(float)
            scored.append((round(float(difference @ difference), 6), bool(same_person)))
        scored.sort()  # False before True in a tie
        hits = [position for position, (_, right) in enumerate(scored, 1) if right]
        if hits:
            precision = [(found + 1) / position for found, position in enumerate(hits)]
            results[q] = (hits[0], sum(precision) / len(hits), len(hits) / hits[-1])
    return results


def assert_equal(found: Ranking | None, expected: dict[int, tuple[int, float, float]], queries: int) -> None:
    if not expected:
        assert found is None
        return
    assert found is not None
    assert found.rows.tolist() == list(expected)
    assert found.skipped == queries - len(expected)
    assert found.first.tolist() == [first for first, _, _ in expected.values()]
    np.testing.assert_allclose(found.average_precision, [ap for _, ap, _ in expected.values()], atol=1e-12)
    np.testing.assert_allclose(found.inverse_penalty, [inp for _, _, inp in expected.values()], atol=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_random_cases_equal_the_naive_implementation(seed: int) -> None:
    query, gallery = random_sides(seed)
    assert_equal(rank(query, gallery), naive(query, gallery), len(query))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 3), st.integers(1, 12), st.integers(1, 20))
def test_cases_full_of_ties_equal_the_naive_implementation(
    seed: int, people: int, cameras: int, queries: int, gallery: int
) -> None:
    """Vectors from a handful of directions: nearly every distance is tied."""
    random = np.random.default_rng(seed)
    directions = np.eye(3)

    def side(count: int) -> EmbeddedCrops:
        picked = directions[random.integers(0, 3, count)]
        return crops(
            picked,
            random.integers(1, people + 1, count).tolist(),
            random.integers(1, cameras + 1, count).tolist(),
        )

    one, other = side(queries), side(gallery)
    assert_equal(rank(one, other), naive(one, other), len(one))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30))
def test_block_height_and_gallery_order_change_nothing(seed: int, height: int) -> None:
    query, gallery = random_sides(seed, size=4)
    shuffled = gallery.take(np.random.default_rng(seed).permutation(len(gallery)))
    whole = rank(query, gallery)
    assert whole is not None
    for other in (rank(query, gallery, height=height), rank(query, shuffled, height=height)):
        assert other is not None
        np.testing.assert_array_equal(other.first, whole.first)
        np.testing.assert_array_equal(other.average_precision, whole.average_precision)
        np.testing.assert_array_equal(other.inverse_penalty, whole.inverse_penalty)


def test_the_largest_numbers_of_people_and_cameras_are_numbers_as_others() -> None:
    query, gallery = random_sides(3)
    largest = 2**63 - 1

    def renumbered(side: EmbeddedCrops) -> EmbeddedCrops:
        pids, camids = largest + 1 - side.pids.astype(object), largest + 1 - side.camids.astype(object)
        return crops(side.vectors, pids.tolist(), camids.tolist())

    assert_equal(rank(renumbered(query), renumbered(gallery)), naive(query, gallery), len(query))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_figures_stay_in_bounds(seed: int) -> None:
    query, gallery = random_sides(seed, size=3)
    found = rank(query, gallery)
    assert found is not None
    cmc = found.cmc(20)
    assert (np.diff(cmc) >= 0).all()
    assert 0 <= cmc[0] <= cmc[-1] <= 1
    assert cmc[4] == pytest.approx(found.rank(5))
    assert 0 < found.mean_inverse_penalty <= found.mean_average_precision <= 1


# --- by hand -------------------------------------------------------------------------------------


def line(*angles: float) -> NDArray[np.float64]:
    """Unit vectors at these angles in degrees: distance grows with the difference."""
    radians = np.deg2rad(angles)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def test_average_precision_by_hand() -> None:
    query = crops(line(0), [1], [1])
    #                       right  wrong  right  wrong
    gallery = crops(line(10, 20, 30, 40), [1, 2, 1, 3], [2, 2, 2, 2])
    found = rank(query, gallery)
    assert found is not None
    assert found.mean_average_precision == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert found.mean_inverse_penalty == pytest.approx(2 / 3)
    assert found.rank(1) == 1.0


def test_same_camera_is_removed_and_others_close_up() -> None:
    query = crops(line(0), [1], [1])
    gallery = crops(line(1, 2, 3), [1, 1, 2], [1, 2, 1])  # the nearest is the query's own camera
    found = rank(query, gallery)
    assert found is not None
    assert found.first.tolist() == [1]


def test_another_person_of_the_same_camera_stays() -> None:
    query = crops(line(0), [1], [1])
    gallery = crops(line(1, 2), [2, 1], [1, 2])
    found = rank(query, gallery)
    assert found is not None
    assert found.first.tolist() == [2]


def test_a_query_without_match_is_skipped_not_failed() -> None:
    query = crops(line(0, 90), [1, 5], [1, 1])
    gallery = crops(line(1, 2), [1, 2], [2, 2])
    found = rank(query, gallery)
    assert found is not None
    assert (found.rows.tolist(), found.skipped, found.rank(1)) == ([0], 1, 1.0)


def test_a_person_of_one_camera_only_is_skipped() -> None:
    query = crops(line(0, 90), [1, 2], [1, 1])
    gallery = crops(line(1, 2, 91), [1, 1, 2], [1, 1, 2])
    found = rank(query, gallery)
    assert found is not None
    assert found.rows.tolist() == [1]


def test_a_network_with_one_vector_for_all_scores_zero() -> None:
    query = crops(line(45, 45), [1, 2], [1, 1])
    gallery = crops(line(45, 45, 45, 45), [1, 2, 3, 4], [2, 2, 2, 2])
    found = rank(query, gallery)
    assert found is not None
    assert found.first.tolist() == [4, 4]
    assert found.rank(1) == 0.0


def test_cmc_is_flat_beyond_the_gallery() -> None:
    found = rank(crops(line(0), [1], [1]), crops(line(1, 2), [2, 1], [2, 2]))
    assert found is not None
    assert found.cmc(5).tolist() == [0, 1, 1, 1, 1]


def test_blocks_may_come_in_any_order() -> None:
    query, gallery = random_sides(3)
    scores = (query.vectors.astype(float) @ gallery.vectors.T.astype(float)).astype(np.float32)
    tally = RankingTally(query, gallery)
    tally.add(10, scores[10:].copy())
    tally.add(0, scores[:10].copy())
    whole, found = rank(query, gallery), tally.result()
    assert whole is not None
    assert found is not None
    np.testing.assert_array_equal(found.average_precision, whole.average_precision)


# --- junk and distractors ------------------------------------------------------------------------


def test_strict_removes_junk_and_keeps_distractors_as_strangers() -> None:
    query = crops(line(0), [1], [1])
    gallery = crops(line(1, 2, 3, 4), [-1, 0, 1, 0], [2, 2, 2, 2])
    sides = apply_junk_rule(query, gallery, JunkRule.STRICT)
    assert (len(sides.gallery), sides.dropped_gallery) == (3, 1)
    found = rank(sides.query, sides.gallery)
    assert found is not None
    assert found.first.tolist() == [2]


def test_tao_compat_reads_junk_as_person_one() -> None:
    query = crops(line(0), [1], [1])
    gallery = crops(line(1, 2, 3), [-1, 0, 1], [2, 2, 2])
    sides = apply_junk_rule(query, gallery, JunkRule.TAO_COMPAT)
    found = rank(sides.query, sides.gallery)
    assert found is not None
    assert found.first.tolist() == [1]
    assert found.mean_average_precision == pytest.approx((1 + 2 / 3) / 2)


def test_distractors_have_no_match_under_strict_and_each_other_under_tao_compat() -> None:
    query = crops(line(0, 50), [0, 1], [1, 1])
    gallery = crops(line(1, 51), [0, 1], [2, 2])
    strict = apply_junk_rule(query, gallery, JunkRule.STRICT)
    assert (len(strict.query), strict.dropped_queries) == (1, 1)
    compat = apply_junk_rule(query, gallery, JunkRule.TAO_COMPAT)
    found = rank(compat.query, compat.gallery)
    assert found is not None
    assert found.rows.tolist() == [0, 1]


def test_distractors_of_the_query_s_camera_stay() -> None:
    """They are strangers to each other and to the query, so the same-person-and-camera rule spares them."""
    query = crops(line(0), [1], [1])
    gallery = crops(line(1, 2, 3), [0, 0, 1], [1, 1, 2])
    sides = apply_junk_rule(query, gallery, JunkRule.STRICT)
    found = rank(sides.query, sides.gallery)
    assert found is not None
    assert found.first.tolist() == [3]


# --- refusals ------------------------------------------------------------------------------------


def test_embeddings_that_cannot_be_used_are_named() -> None:
    with pytest.raises(NonFiniteEmbedding, match=r"the first that of 1"):
        crops(np.array([[1.0, 0.0], [np.nan, 0.0]]), [1, 2], [1, 1])
    with pytest.raises(InputError, match="embedding of 0 is all zero"):
        crops(np.zeros((2, 2)), [1, 2], [1, 1])


def test_sides_of_different_networks_are_refused() -> None:
    with pytest.raises(InputError, match="2 numbers, gallery embeddings 3"):
        apply_junk_rule(crops(line(0), [1], [1]), crops(np.eye(3), [1, 2, 3], [1, 1, 1]), JunkRule.STRICT)


def test_nothing_but_junk_is_refused() -> None:
    with pytest.raises(InputError, match="gallery side contains no usable crop"):
        evaluate(crops(line(0), [1], [1]), crops(line(0), [-1], [2]))


def test_an_evaluation_without_any_match_is_refused() -> None:
    with pytest.raises(DatasetError, match="none of the 1 queries"):
        evaluate(crops(line(0), [1], [1]), crops(line(0), [1], [1]))
