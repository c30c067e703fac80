"""Search over galleries of every size: exact, and by a shortlist of FAISS codes."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from structlog.testing import capture_logs

import edge_agent.gallery.coarse as coarse_module
import edge_agent.gallery.index as index_module
import edge_agent.gallery.shortlist as shortlist_module
from edge_agent.core.config import GallerySettings
from edge_agent.core.distribution import install_command
from edge_agent.core.errors import ConfigError
from edge_agent.gallery import Gallery
from edge_agent.gallery.index import ExemplarIndex
from edge_agent.gallery.shortlist import Codes

Vectors = NDArray[np.float32]
D = 32
LIMIT = 1000  # identities: the least that the configuration allows


def people(identities: int, seed: int = 0) -> Iterator[Vectors]:
    """Embeddings like those of networks: most variance is in few directions. One after the other."""
    drawn = np.random.default_rng(seed)
    spread = 1 / np.sqrt(1 + np.arange(D) / 2)
    centres = drawn.normal(size=(identities, D)) * spread
    while True:
        rows = centres + 0.35 * drawn.normal(size=(identities, D)) * spread
        yield (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def brute_force(truth: dict[int, Vectors], query: Vectors, k: int) -> list[tuple[int, float]]:
    ranked = sorted((-max(float(row @ query) for row in rows), number) for number, rows in truth.items())
    best = [(number, -score) for score, number in ranked[:k]]
    return best + [(-1, -np.inf)] * (k - len(best))


@pytest.fixture(scope="module")
def codes() -> Any:
    pytest.importorskip("faiss", reason="faiss is not installed: pip install '.[index]'")
    return Codes


# ---- exact


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 4)), max_size=80),
    st.integers(0, 2**16),
    st.integers(1, 12),
    st.sampled_from([1, 64, 1 << 18]),
)
@settings(max_examples=80, deadline=None)
def test_search_agrees_with_brute_force(
    changes: list[tuple[int, int]], seed: int, k: int, block: int
) -> None:
    drawn = np.random.default_rng(seed)
    index, truth = ExemplarIndex(3), dict[int, Vectors]()
    for number, count in changes:
        rows = drawn.integers(-1, 2, size=(count, 3)).astype(np.float32)  # many equals, all sums exact
        index.put(number, rows)
        truth[number] = rows
    truth = {number: rows for number, rows in truth.items() if len(rows)}
    queries = drawn.integers(-2, 3, size=(5, 3)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(index_module, "_BLOCK", block)
        patched.setattr(index_module, "_FIRST_ROWS", 1)
        numbers, scores = index.search(queries, k)
    assert (numbers.dtype, scores.dtype, numbers.shape) == (np.int64, np.float32, (5, k))
    for row, query in enumerate(queries):
        found = list(zip(numbers[row].tolist(), scores[row].tolist(), strict=True))
        assert found == brute_force(truth, query, k)


@contextlib.contextmanager
def coded() -> Iterator[None]:
    """Small galleries are searched by their 8-bit copies, in several blocks."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(index_module, "_FIRST_ROWS", 1)
        for name, value in {"LEAST": 0, "FEW": 1, "WIDTH": 6, "_STEP": 2, "_GROUPS": 2}.items():
            patched.setattr(coarse_module, name, value)
        yield


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 4)), max_size=80),
    st.integers(0, 2**16),
    st.integers(1, 12),
    st.sampled_from([3, 64, 65, 130]),
)
@settings(max_examples=80, deadline=None)
def test_search_by_8_bit_copies_agrees_with_brute_force(
    changes: list[tuple[int, int]], seed: int, k: int, dimension: int
) -> None:
    drawn = np.random.default_rng(seed)
    index, truth = ExemplarIndex(dimension), dict[int, Vectors]()
    with coded():
        for number, count in changes:
            rows = drawn.integers(-1, 2, size=(count, dimension)).astype(np.float32)  # many equals
            if len(rows) and drawn.random() < 0.5:
                rows[:, 0] *= drawn.integers(1, 100)  # one great number, which the others drown in
            index.put(number, rows)
            truth[number] = rows
            if drawn.random() < 0.2:
                index.search(rows[:1], 1)  # the copies are made at the first search
        truth = {number: rows for number, rows in truth.items() if len(rows)}
        queries = drawn.integers(-2, 3, size=(5, dimension)).astype(np.float32)
        numbers, scores = index.search(queries, k)
    for row, query in enumerate(queries):
        found = list(zip(numbers[row].tolist(), scores[row].tolist(), strict=True))
        assert found == brute_force(truth, query, k)


def test_8_bit_copies_follow_when_rows_are_turned() -> None:
    index, drawn = filled(300, 3)
    queries = next(drawn)[:20]
    offset = np.full(D, 0.05, np.float32)
    with coded():
        index.search(queries, 4)
        index.turn(0, np.zeros(D, np.float32), offset)
        index.turn(0, offset, -offset)
        found = index.search(queries, 4)
    plain, _ = filled(300, 3)
    plain.turn(0, np.zeros(D, np.float32), offset)
    plain.turn(0, offset, -offset)
    expected = plain.search(queries, 4)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)


def test_a_large_gallery_is_searched_by_8_bit_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    index, drawn = filled(4000, 3)
    queries = next(drawn)[:200]
    before = index.nbytes
    numbers, scores = index.search(queries, 32)
    assert index.nbytes > before + 3 * 4000 * D
    monkeypatch.setattr(coarse_module, "make_coarse", lambda _: None)
    plain, _ = filled(4000, 3)
    expected, values = plain.search(queries, 32)
    np.testing.assert_allclose(scores, values, atol=1e-6)
    assert np.mean(numbers == expected) > 0.999  # the last digit may order equals differently
    one = np.tile(queries[:1], (4000, 1))  # all are alike: nothing can be left out
    index.load(np.arange(1, 4001), np.full(4000, 3), ((np.arange(1, 4001), one, _views(4000)) for _ in "123"))
    found, same = index.search(queries[:2], 5)
    np.testing.assert_array_equal(found, [[1, 2, 3, 4, 5]] * 2)
    np.testing.assert_allclose(same, np.repeat(one[:1] @ queries[:2].T, 5).reshape(2, 5), atol=1e-6)


def test_nothing_is_stored_where_integers_are_multiplied_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coarse_module, "_faster", lambda *_: False)
    with capture_logs() as logs:
        assert coarse_module.make_coarse(D) is None
    assert logs[0]["event"] == "gallery_searched_without_codes"


def test_queries_have_7_bits_where_products_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    right = []

    def saturated(session: Any, query: NDArray[np.uint8], rows: NDArray[np.int8]) -> bool:
        right.append(int(query.max()))
        return int(query.max()) <= 127

    monkeypatch.setattr(coarse_module, "_right", saturated)
    monkeypatch.setattr(coarse_module, "_faster", lambda *_: True)
    monkeypatch.setattr(coarse_module, "LEAST", 0)
    index, drawn = filled(600, 2)
    queries = next(drawn)[:20]
    found, _ = index.search(queries, 3)
    assert right == [255, 127]
    np.testing.assert_array_equal(found[:, 0], np.arange(1, 21))


def test_the_product_is_that_of_the_onnx_package() -> None:
    from onnx import TensorProto, helper

    names = {"A": (TensorProto.UINT8, "mk"), "B": (TensorProto.INT8, "kn"), "Y": (TensorProto.INT32, "mn")}
    given = {name: helper.make_tensor_value_info(name, kind, list(of)) for name, (kind, of) in names.items()}
    node = helper.make_node("MatMulInteger", ["A", "B"], ["Y"])
    graph = helper.make_graph([node], "g", [given["A"], given["B"]], [given["Y"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 7
    assert model.SerializeToString() == coarse_module.PRODUCT


def _views(count: int) -> NDArray[np.int32]:
    return np.zeros(count, np.int32)


def test_no_queries_and_no_results() -> None:
    index = ExemplarIndex(3)
    assert index.search(np.zeros((0, 3), np.float32), 4)[0].shape == (0, 4)
    assert index.search(np.zeros((2, 3), np.float32), 0)[1].shape == (2, 0)


@given(st.lists(st.integers(1, 5), max_size=40), st.integers(1, 9), st.integers(0, 2**16))
@settings(max_examples=50, deadline=None)
def test_loading_by_batches_agrees_with_putting_one_by_one(counts: list[int], piece: int, seed: int) -> None:
    drawn = np.random.default_rng(seed)
    numbers = 3 * np.arange(1, len(counts) + 1)
    owners = drawn.permutation(np.repeat(numbers, counts))
    rows = drawn.normal(size=(len(owners), 4)).astype(np.float32)
    views = drawn.integers(0, 3, len(owners)).astype(np.int32)
    index = ExemplarIndex(4)
    index.load(
        numbers,
        np.array(counts, np.int64),
        (
            (owners[at : at + piece], rows[at : at + piece], views[at : at + piece])
            for at in range(0, len(owners), piece)
        ),
    )
    assert len(index) == len(counts)
    for number in numbers.tolist():
        np.testing.assert_array_equal(index.vectors([number])[1], rows[owners == number])
        np.testing.assert_array_equal(index.rows([number])[2], views[owners == number])
    index.put(3, rows[:3])
    np.testing.assert_array_equal(index.vectors([3])[1], rows[:3])


# ---- by a shortlist


def filled(identities: int, exemplars: int, seed: int = 0) -> tuple[ExemplarIndex, Iterator[Vectors]]:
    drawn = people(identities, seed)
    numbers = np.arange(1, identities + 1)
    index = ExemplarIndex(D)
    index.load(
        numbers,
        np.full(identities, exemplars),
        ((numbers, next(drawn), np.zeros(identities, np.int32)) for _ in range(exemplars)),
    )
    return index, drawn


def with_codes(index: ExemplarIndex, codes: Any) -> None:
    index.shortlist = codes(index.sample(32_768))
    assert not index.listed
    while index.encode():
        pass
    assert index.listed


@contextlib.contextmanager
def recorded_tables() -> Iterator[list[Any]]:
    """The FAISS indexes of the codes, one for each slot, in the order in which they are made."""
    faiss, made = sys.modules["faiss"], list[Any]()
    clone = faiss.clone_index

    def recorded(pattern: Any) -> Any:
        made.append(clone(pattern))
        return made[-1]

    with mock.patch.object(faiss, "clone_index", recorded):
        yield made


@pytest.mark.parametrize("exemplars", [1, 4])
def test_recall_of_the_codes(codes: Any, exemplars: int) -> None:
    index, drawn = filled(5000, exemplars)
    queries = next(drawn)[:200]
    exact, scores = index.search(queries, 32)
    with_codes(index, codes)
    found, values = index.search(queries, 32)
    assert np.mean(found[:, 0] == exact[:, 0]) >= 0.995
    shared = [
        len(set(ours) & set(theirs)) for ours, theirs in zip(found.tolist(), exact.tolist(), strict=True)
    ]
    assert np.mean(shared) / 32 >= 0.97
    same = found == exact
    np.testing.assert_allclose(values[same], scores[same], atol=1e-6)
    assert (np.diff(values, axis=1) <= 0).all()
    np.testing.assert_array_equal(index.search(queries[:2], 5000)[0][:, 0], exact[:2, 0])  # that many: exact


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_codes_agree_with_the_rows_after_any_changes(codes: Any, data: st.DataObject) -> None:
    """Also while they are being made."""
    index, rows = ExemplarIndex(D), next(people(700))
    table = codes(rows)
    for number in range(1, 30):
        index.put(number, rows[number : number + number % 4])
    with pytest.MonkeyPatch.context() as patched, recorded_tables() as tables:
        patched.setattr(index_module, "_ENCODED", 7)
        index.shortlist = table
        for _ in range(data.draw(st.integers(5, 40))):
            if data.draw(st.booleans()):
                at = data.draw(st.integers(0, 390))
                index.put(data.draw(st.integers(1, 40)), rows[at : at + data.draw(st.integers(0, 5))])
            else:
                index.encode()
        while index.encode():
            pass
        assert index.listed
        current = index.sample(1 << 30)  # all, slot by slot
        held = [slot.reconstruct_n(0, slot.ntotal) for slot in tables if slot.ntotal]
        assert sum(map(len, held)) == len(current)
        if held:
            table.put(len(tables), 0, current)  # a slot more, in which nothing has changed
            expected = tables[-1].reconstruct_n(0, len(current))
            np.testing.assert_array_equal(np.concatenate(held), expected)


def packed_codes(table: Any, rows: int) -> NDArray[np.uint8]:
    """Codes in the memory of an index, also those behind its end."""
    packer, memory = table.get_CodePacker(), table.codes
    blocks = sys.modules["faiss"].rev_swig_ptr(memory.get(), memory.size()).reshape(-1, packer.block_size)
    places = [divmod(row, packer.nvec) for row in range(rows)]
    return np.array([packer.unpack_1(blocks[block : block + 1], within) for block, within in places])


def test_codes_of_erased_identities_are_overwritten(codes: Any) -> None:
    index, _ = filled(800, 2)
    gone = [5, 800, 801 - 3]
    vectors = index.vectors(gone)[1]
    with recorded_tables() as tables:
        with_codes(index, codes)
        for number in gone:
            index.put(number, np.zeros((0, D), np.float32))
        assert index.listed
        assert index.shortlist is not None
        slots = list(tables)
        assert len(slots) == 2
        index.shortlist.put(len(slots), 0, vectors)  # a slot more
    erased = packed_codes(tables[-1], len(vectors))
    assert np.any(erased, axis=1).all()
    for slot in slots:
        assert slot.ntotal == len(index) == 797
        held = packed_codes(slot, 800)
        assert not np.any(held[slot.ntotal :])
        for code in erased:
            assert not (held == code).all(axis=1).any()


# ---- the gallery chooses


def open_gallery(**changes: Any) -> Gallery:
    settings = GallerySettings(**({"exact_up_to": LIMIT} | changes))
    return Gallery(":memory:", settings, space="s", dimension=D)


def build() -> threading.Thread | None:
    """The thread that builds an index."""
    return next((thread for thread in threading.enumerate() if thread.name == "gallery-index"), None)


@pytest.fixture
def opened() -> Iterator[Gallery]:
    with open_gallery() as gallery:
        yield gallery


def enrol(gallery: Gallery, rows: Vectors, **changes: Any) -> list[int]:
    seen: dict[str, Any] = {"origin": "t", "camera": "c", "time": 1.0, **changes}
    return [gallery.enrol(row[None], np.ones(1), **seen).number for row in rows]


def built(gallery: Gallery) -> None:
    gallery.search(next(people(1)), 1)
    gallery.builder.wait()
    assert not gallery.builder.exact


def test_the_index_is_built_above_the_limit_and_dropped_below(codes: Any, opened: Gallery) -> None:
    rows = next(people(LIMIT + 1))
    numbers = enrol(opened, rows[:LIMIT])
    opened.search(rows[:1], 1)
    assert (opened.builder.exact, build()) == (True, None)
    numbers += enrol(opened, rows[LIMIT:])
    found, scores = opened.search(rows, 1)  # while it is built
    assert found[:, 0].tolist() == numbers
    built(opened)
    found, scores = opened.search(rows, 1)
    assert found[:, 0].tolist() == numbers
    np.testing.assert_allclose(scores, 1, atol=1e-6)
    for number in numbers[: LIMIT // 2]:
        opened.forget(number)
    assert opened.search(rows[-1:], 1)[0].tolist() == [[numbers[-1]]]
    assert opened.builder.exact


def test_changes_are_seen_by_the_next_search(codes: Any, opened: Gallery) -> None:
    drawn = people(LIMIT + 60)
    rows, others = next(drawn), next(drawn)
    numbers = enrol(opened, rows[: LIMIT + 50])
    built(opened)
    newcomer, query = LIMIT + 55, others[LIMIT + 55 :][:1]
    (number,) = enrol(opened, rows[newcomer : newcomer + 1])
    assert opened.search(query, 1)[0].tolist() == [[number]]
    opened.add_exemplars(numbers[3], query, np.ones(1), origin="u", camera="c", time=2.0)
    found, scores = opened.search(query, 2)
    assert found.tolist() == [[numbers[3], number]]
    assert scores[0, 0] == pytest.approx(1)
    opened.remove_origin(numbers[3], "u")
    assert opened.search(query, 1)[0].tolist() == [[number]]
    opened.merge(numbers[7], number)
    assert opened.search(query, 1)[0].tolist() == [[numbers[7]]]
    opened.forget(numbers[7])
    assert not {number, numbers[7]} & set(opened.search(query, 64)[0][0].tolist())
    assert not opened.builder.exact


def test_the_setting_exact_builds_no_index(opened: Gallery) -> None:
    rows = next(people(LIMIT + 5))
    with open_gallery(index="exact") as gallery:
        enrol(gallery, rows)
        gallery.search(rows[:1], 1)
        assert (gallery.builder.exact, build()) == (True, None)


def test_without_the_library_search_stays_exact_with_one_warning(
    opened: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    rows = next(people(LIMIT + 5))
    numbers = enrol(opened, rows)
    with capture_logs() as logged:
        for _ in range(3):
            assert opened.search(rows[:3], 1)[0][:, 0].tolist() == numbers[:3]
    (warning,) = logged
    assert warning["event"] == "gallery_searched_exactly"
    assert install_command("index") in warning["reason"]
    assert opened.builder.exact


def test_the_setting_faiss_needs_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=re.escape(install_command("index"))):
        open_gallery(index="faiss").__enter__()


def test_a_library_that_fails_leaves_search_exact(
    codes: Any, opened: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(sample: Vectors) -> Any:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(shortlist_module, "Codes", failing)
    rows = next(people(LIMIT + 5))
    numbers = enrol(opened, rows)
    with capture_logs() as logged:
        opened.search(rows[:1], 1)
        opened.builder.wait()
        assert opened.search(rows[:3], 1)[0][:, 0].tolist() == numbers[:3]
    assert [line["event"] for line in logged] == ["gallery_index_failed"]
    assert opened.builder.exact


def test_closing_does_not_wait_for_the_index(codes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_ENCODED", 1)
    rows = next(people(LIMIT + 5))
    with open_gallery() as gallery:
        enrol(gallery, rows)
        gallery.search(rows[:1], 1)
        builder = build()
    assert builder is not None
    assert not builder.is_alive()


def test_enrolled_of_some_numbers(opened: Gallery) -> None:
    rows = next(people(3))
    auto, named = enrol(opened, rows[:1]) + enrol(opened, rows[1:2], kind="enrolled")
    assert opened.enrolled([auto, named, 99]) == {named}
    assert opened.enrolled([]) == set()
