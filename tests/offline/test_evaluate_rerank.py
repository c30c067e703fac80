"""k-reciprocal re-ranking against a dense implementation that follows the paper's text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.offline.evaluate.labels import EmbeddedCrops, unit_rows
from edge_agent.offline.evaluate.protocol import evaluate
from edge_agent.offline.evaluate.rerank import ReRankedScores, ReRanking


def dense(
    query: NDArray[np.float32], gallery: NDArray[np.float32], settings: ReRanking
) -> NDArray[np.float64]:
    """Re-ranked distances `(Q, G)` from full `N x N` matrices and plain loops."""
    rows = np.concatenate([query, gallery]).astype(float)
    count = len(rows)
    distance = 2 - 2 * (rows @ rows.T).astype(np.float32).astype(float)
    scaled = distance / distance.max(axis=1, keepdims=True)
    ranked = np.argsort(distance, axis=1, kind="stable")

    def reciprocal(p: int, k: int) -> set[int]:
        return {c for c in ranked[p, : k + 1].tolist() if p in ranked[c, : k + 1].tolist()}

    encoding = np.zeros((count, count))
    for p in range(count):
        base = reciprocal(p, settings.k1)
        grown = set(base)
        for candidate in base:
            half = reciprocal(candidate, round(settings.k1 / 2))
            if len(half & base) / len(half) > 2 / 3:
                grown |= half
        for member in grown:
            encoding[p, member] = np.exp(-scaled[p, member])
        encoding[p] /= encoding[p].sum()
    if settings.k2 > 1:
        encoding = np.stack([encoding[ranked[p, : settings.k2]].mean(axis=0) for p in range(count)])
    result = np.zeros((len(query), len(gallery)))
    for q in range(len(query)):
        for g in range(len(gallery)):
            one, other = encoding[q], encoding[len(query) + g]
            jaccard = 1 - np.minimum(one, other).sum() / np.maximum(one, other).sum()
            result[q, g] = (1 - settings.weight) * jaccard + settings.weight * scaled[q, len(query) + g]
    return result


def random_rows(seed: int, queries: int, gallery: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(7, 12))
    rows = centres[random.integers(0, 7, queries + gallery)] + 0.5 * random.normal(
        size=(queries + gallery, 12)
    )
    unit = unit_rows(rows, ["x"] * len(rows))
    return unit[:queries], unit[queries:]


def scores(
    query: NDArray[np.float32], gallery: NDArray[np.float32], settings: ReRanking, height: int | None = None
):
    return np.concatenate([block for _, block in ReRankedScores(query, gallery, settings).blocks(height)])


@pytest.mark.parametrize(
    "settings", [ReRanking(), ReRanking(5, 1, 0.3), ReRanking(8, 3, 0.0), ReRanking(4, 2, 1.0)], ids=str
)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_dense_implementation(seed: int, settings: ReRanking) -> None:
    query, gallery = random_rows(seed, 15, 60)
    np.testing.assert_allclose(-scores(query, gallery, settings), dense(query, gallery, settings), atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 15))
def test_small_sets_too(seed: int, queries: int, gallery: int) -> None:
    """Fewer crops than k1: all crops are neighbours."""
    one, other = random_rows(seed, queries, gallery)
    np.testing.assert_allclose(-scores(one, other, ReRanking()), dense(one, other, ReRanking()), atol=1e-5)


def test_block_height_changes_nothing_and_rows_are_those_of_blocks() -> None:
    query, gallery = random_rows(5, 20, 50)
    scorer = ReRankedScores(query, gallery, ReRanking())
    whole = scores(query, gallery, ReRanking())
    np.testing.assert_array_equal(scores(query, gallery, ReRanking(), height=3), whole)
    np.testing.assert_array_equal(np.stack([scorer.row(index) for index in range(20)]), whole)


def test_duplicates_of_one_crop_do_not_break_it() -> None:
    query, gallery = random_rows(6, 4, 20)
    copies = np.concatenate([gallery, np.repeat(query[:1], 30, axis=0)])
    assert np.isfinite(scores(query, copies, ReRanking())).all()
    same = np.repeat(query[:1], 30, axis=0)
    assert np.isfinite(scores(same[:5], same[5:], ReRanking())).all()


@pytest.mark.parametrize("wrong", [(0, 6, 0.3), (20, 0, 0.3), (20, 6, 1.5), (20, 6, -0.1)])
def test_parameters_are_checked(wrong: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="re-ranking needs"):
        ReRanking(*wrong)


def test_it_is_named_in_the_document_and_leaves_open_set_figures_alone() -> None:
    query, gallery = random_rows(7, 14, 60)
    random = np.random.default_rng(0)
    one = EmbeddedCrops.of(query, random.integers(1, 5, 14).tolist(), [1] * 14, ["x"] * 14)
    other = EmbeddedCrops.of(gallery, random.integers(1, 5, 60).tolist(), [2] * 60, ["x"] * 60)
    plain, again = evaluate(one, other).document(), evaluate(one, other, reranking=ReRanking()).document()
    assert plain["reranking"] is None
    assert again["reranking"] == "k-reciprocal k1=20 k2=6 lambda=0.3"
    assert plain["eer"] == again["eer"]
    assert plain["mAP"] != again["mAP"]
