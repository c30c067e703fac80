"""Exemplars as 8-bit numbers: which of them an exact search has to read.

A row `x` is stored as `s c`, whole numbers `c` in -127..127 and a factor `s`; a query `q` as `t a`. So their
product is a sum of whole numbers times `s t`, and differs from `q x` by at most::

    |q - t a| |s c| + |q| |x - s c|        (Cauchy-Schwarz; about .016 for unit vectors)

The best exemplars are among the rows whose product is within twice that of the best. Only these are compared
in full, so results are exact, and a search reads a quarter of the memory. Vectors are first turned by a fixed
matrix (signs and Hadamard), so that none has a few large numbers that make the others small.

ONNX Runtime multiplies (`MatMulInteger`, unsigned by signed), with the integer instructions of the processor:
several times as fast as numpy with float32. Where it is wrong or not faster, nothing is stored, see
`make_coarse`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edge_agent.gallery.means import Vectors

Places = NDArray[np.int64]

_log = structlog.get_logger(__name__)

WIDTH = 16_640
"""Rows that are multiplied at once. Not a power of two: columns would displace each other from the cache."""
_STEP = 520
"""Columns by which the last block grows; unused ones are computed, too."""
_LEVELS = 127
_LEVELS_SATURATED = 63
"""Largest number of a query where products of 8 by 8 bits saturate: x86 processors with AVX2 alone."""
_ROUNDING = 1e-5
"""Upper bound of the rounding errors of float32, for vectors of length 1."""
_MIXED = 64
"""Numbers of a row that are mixed with each other."""
_TRIED, _TRIES = 2080, 5
"""Rows and rounds of the trial whether the product is faster here."""
LEAST = 10_000
"""Rows from which copies pay."""
FEW = 16
"""Where more than one row of so many remains, comparing with all is as fast."""
_COPIED = 1024
"""Rows copied or gathered at a time: 1 MB at 256 numbers."""
_GROUPS = 16
"""Products of which only the greatest counts for the floor of the best `k`: sorting takes long."""
PRODUCT = (
    b'\x08\x07:b\n\x18\n\x01A\n\x01B\x12\x01Y"\rMatMulInteger\x12\x01gZ\x15\n\x01A\x12\x10\n\x0e\x08\x02\x12\n\n\x03\x12'
    b"\x01m\n\x03\x12\x01kZ\x15\n\x01B\x12\x10\n\x0e\x08\x03\x12\n\n\x03\x12\x01k\n\x03\x12\x01nb\x15\n\x01Y\x12\x10\n\x0e"
    b"\x08\x06\x12\n\n\x03\x12\x01m\n\x03\x12\x01nB\x04\n\x00\x10\r"
)
"""The graph `Y = MatMulInteger(A, B)` of opset 13. The package `onnx` would take 0.2 s to import."""


class _Slot:
    """Blocks of codes, `(D, N)` int8 as the product needs them, with factors `(N,)` and sums `(N,)`.

    A query is unsigned: `middle` is added to its numbers, and `middle` times the sum taken from the product.
    """

    def __init__(self, dimension: int, middle: int) -> None:
        self.blocks: list[NDArray[np.int8]] = []
        self.factors: Vectors = np.zeros(0, np.float32)
        self.sums: NDArray[np.int32] = np.zeros(0, np.int32)
        self._dimension = dimension
        self._middle = middle

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self.blocks) + self.factors.nbytes + self.sums.nbytes

    def reserve(self, rows: int) -> None:
        """Make room for this many rows; full blocks stay, the last is copied when it grows."""
        rows = -(-rows // _STEP) * _STEP
        have = len(self.factors)
        if rows <= have:
            return
        for number in range(have // WIDTH, -(-rows // WIDTH)):
            block = np.zeros((self._dimension, min(WIDTH, rows - number * WIDTH)), np.int8)
            if number < len(self.blocks):
                block[:, : self.blocks[number].shape[1]] = self.blocks[number]
                self.blocks[number] = block
            else:
                self.blocks.append(block)
        self.factors = np.concatenate([self.factors, np.zeros(rows - have, np.float32)])
        self.sums = np.concatenate([self.sums, np.zeros(rows - have, np.int32)])

    def write(self, places: Places, codes: NDArray[np.int8], factors: Vectors) -> None:
        self.factors[places] = factors
        self.sums[places] = self._middle * codes.sum(axis=1, dtype=np.int32)
        for number in range(int(places.min()) // WIDTH, int(places.max()) // WIDTH + 1):
            here = places // WIDTH == number
            columns, of_block = places[here] - number * WIDTH, codes[here].T
            if len(columns) and len(columns) == columns[-1] - columns[0] + 1:  # adjacent, which is faster
                self.blocks[number][:, columns[0] : columns[-1] + 1] = of_block
            else:
                self.blocks[number][:, columns] = of_block

    def swap(self, a: int, b: int) -> None:
        (of_a, at_a), (of_b, at_b) = divmod(a, WIDTH), divmod(b, WIDTH)
        kept = self.blocks[of_a][:, at_a].copy()
        self.blocks[of_a][:, at_a] = self.blocks[of_b][:, at_b]
        self.blocks[of_b][:, at_b] = kept
        for values in (self.factors, self.sums):
            values[a], values[b] = values[b], values[a]


Rows = tuple[Places, Places, Places]
"""Query, slot and place of each row, `(N,)`."""


class Coarse:
    """8-bit copies of the rows of an `ExemplarIndex`, at the same slots and places.

    `levels` is the largest number of a query.
    """

    def __init__(self, dimension: int, session: Any, levels: int) -> None:  # noqa: ANN401 - of ONNX Runtime
        self._dimension = dimension
        self._session = session
        self._levels = levels
        self._slots: list[_Slot] = []
        parts = dimension // _MIXED
        self._signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (parts, _MIXED))
        self._matrix = _hadamard(_MIXED)
        self._error = 0.0  # greatest distance of a row from its code so far
        self._longest = 0.0  # greatest length of a code so far

    @property
    def nbytes(self) -> int:
        """Bytes of the codes."""
        return sum(slot.nbytes for slot in self._slots)

    def put(self, where: Sequence[tuple[int, Places]], rows: Vectors) -> None:
        """Store rows `(N, D)`: slots, and rising places in each, N in all."""
        turned = self._turned(rows)
        codes, factors = _rounded(turned, _LEVELS)
        restored = codes * factors
        self._longest = max(self._longest, _longest(restored))
        self._error = max(self._error, _longest(turned - restored))
        numbers, begin = codes.astype(np.int8), 0
        for slot, places in where:
            some, begin = slice(begin, begin + len(places)), begin + len(places)
            self.reserve(slot, int(places[-1]) + 1)
            self._slots[slot].write(places, numbers[some], factors[some, 0])

    def reserve(self, slot: int, rows: int) -> None:
        """Make room for so many rows of a slot."""
        while len(self._slots) <= slot:
            self._slots.append(_Slot(self._dimension, self._levels + 1))
        self._slots[slot].reserve(rows)

    def swap(self, slot: int, a: int, b: int) -> None:
        """Exchange two rows of a slot."""
        self._slots[slot].swap(a, b)

    def erase(self, slot: int, place: int) -> None:
        """Overwrite a row with zeros."""
        nothing = np.zeros((1, self._dimension), np.int8)
        self._slots[slot].write(np.array([place]), nothing, np.zeros(1, np.float32))

    def candidates(self, queries: Vectors, k: int, used: Sequence[int], most: int) -> Rows | None:
        """Return rows among which are the best exemplars of the `k` best identities of each query `(Q, D)`.

        `used` are the rows of each slot. None where there are more than `most` rows.
        """
        turned = self._turned(queries)
        codes, factors = _rounded(turned, self._levels)
        margins = self._margins(turned, codes * factors) / factors
        given = (codes + (self._levels + 1)).astype(np.uint8)
        best = np.full((len(queries), k), -np.inf, np.float32)
        near: list[tuple[Places, Places, Places, Vectors]] = []
        for first in range(0, used[0], WIDTH):
            begins = np.cumsum([0, *(min(WIDTH, rows - first) for rows in used if rows > first)])
            products = np.empty((len(queries), int(begins[-1])), np.float32)
            for slot in range(len(begins) - 1):
                self._multiply(given, slot, first, products[:, begins[slot] : begins[slot + 1]])
            best = _best(np.concatenate([best, _grouped(products, begins, k)], axis=1), k)
            floor = best[:, :1] - 2 * margins
            hits, columns = np.divmod(np.flatnonzero(products >= floor), products.shape[1])
            slots = np.searchsorted(begins, columns, side="right") - 1
            near.append((hits, slots, first + columns - begins[slots], products[hits, columns]))
            if sum(len(part[0]) for part in near) > most:
                return None
        hits, slots, places, found = (np.concatenate(part) for part in zip(*near, strict=True))
        kept = found >= floor[hits, 0]
        return hits[kept], slots[kept], places[kept]

    def _turned(self, rows: Vectors) -> Vectors:
        """Return rows `(N, D)` multiplied by the matrix, which keeps lengths and products."""
        parts = self._dimension // _MIXED
        mixed = parts * _MIXED
        apart = rows[:, :mixed].reshape(len(rows), _MIXED, parts).transpose(0, 2, 1) * self._signs
        turned = (apart.reshape(-1, _MIXED) @ self._matrix).reshape(len(rows), mixed)
        return turned if mixed == self._dimension else np.concatenate([turned, rows[:, mixed:]], axis=1)

    def _margins(self, queries: Vectors, restored: Vectors) -> Vectors:
        """Return the upper bound of the errors of the products of each query, `(Q, 1)`."""
        missing = np.linalg.norm(queries - restored, axis=1, keepdims=True)
        lengths = np.linalg.norm(queries, axis=1, keepdims=True)
        rounding = _ROUNDING * max(1.0, self._longest)
        return np.asarray(missing * self._longest + lengths * (self._error + rounding), np.float32)

    def _multiply(self, queries: NDArray[np.uint8], slot: int, first: int, products: Vectors) -> None:
        """Set products `(Q, N)` with the rows from place `first` on, which begins a block."""
        stored, columns = self._slots[slot], products.shape[1]
        whole = self._session.run(None, {"A": queries, "B": stored.blocks[first // WIDTH]})[0]
        here = slice(first, first + columns)
        np.subtract(whole[:, :columns], stored.sums[here], out=products, casting="unsafe")
        products *= stored.factors[here]


class Copies:
    """The 8-bit copies of an index, once it is large enough that they pay.

    Changed rows are copied at the next search, all at once: people in view change several times between two.
    """

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self._coarse: Coarse | None = None
        self._tried = False
        self._late: list[set[int]] = []
        """By slot: places whose rows have changed since they were copied."""

    @property
    def nbytes(self) -> int:
        """Bytes of the copies."""
        return 0 if self._coarse is None else self._coarse.nbytes

    def drop(self) -> None:
        """Drop all copies; `prepare` makes them again."""
        self._coarse, self._tried, self._late = None, False, []

    def prepare(self, slots: Sequence[Vectors], used: Sequence[int]) -> bool:
        """Copy what has changed, at the first call with enough rows all; return whether there are copies."""
        if not self._tried and sum(used) >= LEAST:
            self._tried = True
            self._coarse = make_coarse(self._dimension)
            for slot, rows in enumerate(used):
                self._note(slot, range(rows))
        if self._coarse is None:
            return False
        where, count = list[tuple[int, Places]](), 0
        for slot, late in enumerate(self._late):
            places = np.array(sorted(late), np.int64)
            late.clear()
            for first in range(0, len(places), _COPIED):
                where.append((slot, places[first : first + _COPIED]))
                count += len(where[-1][1])
                if count >= _COPIED:
                    self._copy(where, slots)
                    where, count = [], 0
        self._copy(where, slots)
        return True

    def _copy(self, where: Sequence[tuple[int, Places]], slots: Sequence[Vectors]) -> None:
        if where and self._coarse is not None:
            self._coarse.put(where, np.concatenate([slots[slot][places] for slot, places in where]))

    def put(self, slot: int, places: Sequence[int]) -> None:
        """Note that rows at rising places have changed."""
        if self._coarse is not None and places:
            self._coarse.reserve(slot, places[-1] + 1)
            self._note(slot, places)

    def _note(self, slot: int, places: Iterable[int]) -> None:
        while len(self._late) <= slot:
            self._late.append(set())
        self._late[slot].update(places)

    def swap(self, slot: int, a: int, b: int) -> None:
        """Exchange two rows of a slot."""
        if self._coarse is not None:
            self._coarse.swap(slot, a, b)
            late = self._late[slot]
            if (a in late) is not (b in late):
                late.symmetric_difference_update((a, b))

    def erase(self, slot: int, place: int) -> None:
        """Overwrite a row with zeros."""
        if self._coarse is not None:
            self._coarse.erase(slot, place)
            self._late[slot].discard(place)

    def best(
        self, queries: Vectors, k: int, slots: Sequence[Vectors], used: Sequence[int]
    ) -> tuple[Places, Places, Vectors] | None:
        """Return query, place and exact best product of identities, `(N,)`, with the `k` best of each query.

        None where there are no copies, or where too many exemplars can be among the best.
        """
        if used[0] < FEW * k or not self.prepare(slots, used) or self._coarse is None:
            return None
        near = self._coarse.candidates(queries, k, used, len(queries) * max(_COPIED, sum(used) // FEW))
        if near is None:
            return None
        hits, of, places = near
        products = np.empty(len(of), np.float32)
        for slot, matrix in enumerate(slots):
            here = np.flatnonzero(of == slot)
            for first in range(0, len(here), _COPIED):
                some = here[first : first + _COPIED]
                products[some] = np.einsum("nd,nd->n", matrix[places[some]], queries[hits[some]])
        pairs = hits * used[0] + places
        order = np.argsort(pairs, kind="stable")
        starts = np.flatnonzero(np.diff(pairs[order], prepend=-1))
        rows, where = np.divmod(pairs[order][starts], used[0])
        return rows, where, np.maximum.reduceat(products[order], starts)


def _hadamard(size: int) -> Vectors:
    """Return an orthogonal symmetric matrix whose elements all have the same size; `size` is a power of 2."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.asarray(matrix / np.sqrt(size), np.float32)


def _rounded(rows: Vectors, levels: int) -> tuple[Vectors, Vectors]:
    """Return rows `(N, D)` as whole numbers up to `levels`, and their factors `(N, 1)`."""
    factors = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-30) / np.float32(levels)
    return np.rint(rows / factors), factors


def _longest(rows: Vectors) -> float:
    """Return the greatest length of a row, rounded up."""
    return float(np.sqrt(np.einsum("nd,nd->n", rows, rows).max())) * (1 + _ROUNDING)


def _grouped(products: Vectors, begins: Places, k: int) -> Vectors:
    """Return products of different identities, `(Q, M)`, whose `k`-th best is at most the `k`-th best of all.

    `products` are those of all slots, which begin at `begins`; each next one has fewer identities.
    """
    greatest: Vectors = products[:, : begins[1]].copy()
    for begin, end in zip(begins[1:-1].tolist(), begins[2:].tolist(), strict=True):
        here = greatest[:, : end - begin]
        np.maximum(here, products[:, begin:end], out=here)
    count = greatest.shape[1] // _GROUPS
    if count < k:
        return greatest
    best: Vectors = greatest[:, : count * _GROUPS].reshape(len(products), _GROUPS, count).max(axis=1)
    return best


def _best(products: Vectors, k: int) -> Vectors:
    """Return the `k` best of each row, the least of them first."""
    best: Vectors = np.partition(products, -k, axis=1)[:, -k:]
    return best


def make_coarse(dimension: int) -> Coarse | None:
    """Return an empty store; None where ONNX Runtime multiplies wrongly, or no faster than numpy."""
    session = _session()
    random = np.random.default_rng(0)
    rows = random.integers(-_LEVELS, _LEVELS + 1, (_TRIED, dimension), np.int8)
    rows[:2] = [[_LEVELS], [-_LEVELS]]
    for levels in (_LEVELS, _LEVELS_SATURATED):
        query = random.integers(0, 2 * levels + 2, (1, dimension), np.uint8)
        query[:, : dimension // 2] = 2 * levels + 1
        if _right(session, query, rows) and _faster(session, query, rows):
            return Coarse(dimension, session, levels)
    _log.info("gallery_searched_without_codes", reason="ONNX Runtime multiplies integers no faster here")
    return None


def _right(session: Any, query: NDArray[np.uint8], rows: NDArray[np.int8]) -> bool:  # noqa: ANN401
    found = session.run(None, {"A": query, "B": np.ascontiguousarray(rows.T)})[0]
    return bool((found[0] == rows.astype(np.int64) @ query[0].astype(np.int64)).all())


def _faster(session: Any, query: NDArray[np.uint8], rows: NDArray[np.int8]) -> bool:  # noqa: ANN401
    given = {"A": query, "B": np.ascontiguousarray(rows.T)}
    wide, plain = rows.astype(np.float32), query[0].astype(np.float32)
    ours, numpys = [], []
    for _ in range(_TRIES):
        ours.append(_seconds(lambda: session.run(None, given)))
        numpys.append(_seconds(lambda: np.einsum("nd,d->n", wide, plain)))
    return min(ours) < min(numpys)


def _session() -> Any:  # noqa: ANN401 - a module without types
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(PRODUCT, options, providers=["CPUExecutionProvider"])


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
