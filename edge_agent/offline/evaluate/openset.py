"""Open-set figures: false matches of strangers, missed matches of known people.

Pairs of one person are genuine, all others impostor (`pairs`). A pair is accepted at a threshold t when its
score is >= t:

- FMR(t): share of impostor pairs accepted; FNMR(t): share of genuine pairs rejected
  (ISO/IEC 19795-1, false match rate and false non-match rate).
- EER: the common value where the two curves cross, linear between the two neighbouring thresholds.

**Required data.** n impostor pairs without a false match show, at 95 % confidence, only that FMR <= 3/n (rule
of three, exactly -ln(0.05)/n). A target below that is refused with the reason.

**Confidence intervals, 95 %.** A two-sided percentile bootstrap over persons (`bootstrap`). With few errors
it is too narrow (with none it is [0, 0]), so each bound is the wider of the bootstrap's and the exact
binomial one (Clopper-Pearson). The threshold is fixed in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_agent.offline.evaluate.labels import EmbeddedCrops
from edge_agent.offline.evaluate.metrics import similarity_blocks

DEFAULT_TARGETS = (1e-2, 1e-3, 1e-4)

INTERVAL_METHOD = (
    "95 %; wider of percentile bootstrap over persons (1000 replicates, seed 0) and Clopper-Pearson; "
    "threshold fixed"
)

_CONFIDENCE = 0.95

Interval = tuple[float, float]
"""Lower and upper bound, both 0..1."""


@dataclass(frozen=True, slots=True)
class EqualErrorPoint:
    """The common value of FMR and FNMR, 0..1, and its score."""

    rate: float
    threshold: float


def equal_error_point(scores: PairScores) -> EqualErrorPoint | None:
    """Return the EER, linear between the thresholds around the crossing; None without both kinds of pair."""
    if not (scores.genuine_pairs and scores.impostor_pairs):
        return None
    thresholds, fmr, fnmr = scores.curve()
    after = int(np.argmax(fnmr >= fmr))  # exists: at the last edge FNMR is 1 and FMR 0
    gap_before, gap_after = fmr[after - 1] - fnmr[after - 1], fmr[after] - fnmr[after]
    step = gap_before / (gap_before - gap_after)
    rate = fmr[after - 1] + step * (fmr[after] - fmr[after - 1])
    # well-separated scores: the curves coincide over an interval, whose middle is the threshold
    flat = np.flatnonzero((fmr == fmr[after]) & (fnmr == fnmr[after])) if gap_after == 0 else [after]
    return EqualErrorPoint(float(rate), float(thresholds[[flat[0], flat[-1]]].mean()))


def pairs_needed(target_fmr: float) -> int:
    """Return the number of impostor pairs below which even zero false matches cannot show `target_fmr`."""
    return math.ceil(-math.log(1 - _CONFIDENCE) / target_fmr)


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A threshold with its measured rates, counts and intervals.

    Attributes:
        target_fmr: requested rate.
        threshold: lowest threshold on the grid whose FMR is at most the target; scores at it are accepted.
        fmr, fmr_ci: `false_matches` / `impostor_pairs`, and its interval, see the module.
        false_matches, impostor_pairs: impostor pairs accepted, and in all.
        fnmr, fnmr_ci: the same for genuine pairs refused; None without genuine pairs.
        false_non_matches, genuine_pairs: genuine pairs refused, and in all.
    """

    target_fmr: float
    threshold: float
    fmr: float
    fmr_ci: Interval
    false_matches: int
    impostor_pairs: int
    fnmr: float | None
    fnmr_ci: Interval | None
    false_non_matches: int
    genuine_pairs: int


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A target rate that the data cannot support, and the reason."""

    target_fmr: float
    reason: str


def choose_threshold(scores: PairScores, target_fmr: float) -> float | Unsupported:
    """Return the lowest threshold whose measured FMR is at most `target_fmr`.

    Raises:
        ValueError: the target is not between 0 and 1.
    """
    if not 0 < target_fmr < 1:
        raise ValueError(f"target FMR must lie between 0 and 1, got {target_fmr}")
    pairs, needed = scores.impostor_pairs, pairs_needed(target_fmr)
    if pairs < needed:
        reason = (
            f"{pairs} impostor pairs across cameras cannot support FMR {target_fmr:g}: even without one "
            f"false match, {needed} are needed for 95 % confidence (rule of three); "
            "add people or cameras, or request a higher rate"
        )
        return Unsupported(target_fmr, reason)
    allowed = math.floor(target_fmr * pairs + 1e-9)
    accepted = pairs - np.concatenate([[0], np.cumsum(scores.impostor)])
    edge = int(np.argmax(accepted <= allowed))
    return edge / BINS_PER_UNIT - 1.0


def threshold_at_fmr(
    query: EmbeddedCrops, gallery: EmbeddedCrops, target_fmr: float
) -> OperatingPoint | Unsupported:
    """Choose the match threshold for a target false-match rate from cross-camera pairs.

    Labels must come from `apply_junk_rule`.

    Raises:
        ValueError: the target is not between 0 and 1.
    """
    return operating_points(query, gallery, PairScores.between(query, gallery), (target_fmr,))[0]


def operating_points(
    query: EmbeddedCrops, gallery: EmbeddedCrops, scores: PairScores, targets: Iterable[float]
) -> tuple[OperatingPoint | Unsupported, ...]:
    """Return the thresholds for several targets, with intervals; needs one more pass over the pairs."""
    choices = {target: choose_threshold(scores, target) for target in targets}
    thresholds = [choice for choice in choices.values() if isinstance(choice, float)]
    bootstrap = PersonBootstrap(query, gallery, thresholds)
    return tuple(
        choice if isinstance(choice, Unsupported) else _point(scores, target, choice, bootstrap)
        for target, choice in choices.items()
    )


def _point(scores: PairScores, target: float, threshold: float, bootstrap: PersonBootstrap) -> OperatingPoint:
    accepted, impostors = scores.false_matches(threshold), scores.impostor_pairs
    refused, genuine = scores.false_non_matches(threshold), scores.genuine_pairs
    fmr_draws, fnmr_draws = bootstrap.rates(threshold)
    return OperatingPoint(
        target_fmr=target,
        threshold=threshold,
        fmr=accepted / impostors,
        fmr_ci=_interval(accepted, impostors, fmr_draws),
        false_matches=accepted,
        impostor_pairs=impostors,
        fnmr=refused / genuine if genuine else None,
        fnmr_ci=_interval(refused, genuine, fnmr_draws) if genuine else None,
        false_non_matches=refused,
        genuine_pairs=genuine,
    )


def _interval(errors: int, trials: int, draws: NDArray[np.float64]) -> Interval:
    """The wider of the percentile interval of `draws` and the Clopper-Pearson interval, bound by bound."""
    from scipy.special import betaincinv  # scipy.stats takes a second to import

    tail = (1 - _CONFIDENCE) / 2
    low = float(betaincinv(errors, trials - errors + 1, tail)) if errors else 0.0
    high = float(betaincinv(errors + 1, trials - errors, 1 - tail)) if errors < trials else 1.0
    if len(draws):
        drawn_low, drawn_high = np.quantile(draws, [tail, 1 - tail])
        low, high = min(low, float(drawn_low)), max(high, float(drawn_high))
    return low, high


BINS_PER_UNIT = 1 << 19
_BINS = 2 * BINS_PER_UNIT


def bins_of(scores: NDArray[np.floating]) -> NDArray[np.intp]:
    """Return the bin of each cosine; values outside -1..1, by rounding, go to the outermost bin."""
    bins = np.multiply(scores, np.float32(BINS_PER_UNIT), dtype=np.float32)
    bins += np.float32(BINS_PER_UNIT)
    np.clip(bins, 0, _BINS - 1, out=bins)
    whole: NDArray[np.intp] = bins.astype(np.intp)
    return whole


@dataclass(slots=True)
class PairScores:
    """Score counts of genuine and impostor pairs, in fine bins.

    Attributes:
        genuine: `(2^20,)` int64 counts of pairs of one person per bin of -1..1.
        impostor: counts of pairs of different persons.
    """

    genuine: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    impostor: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))

    @staticmethod
    def of(genuine: NDArray[np.floating], impostor: NDArray[np.floating]) -> PairScores:
        """Count scores (cosines of any shape)."""
        return PairScores(
            np.bincount(bins_of(genuine.ravel()), minlength=_BINS),
            np.bincount(bins_of(impostor.ravel()), minlength=_BINS),
        )

    @staticmethod
    def between(query: EmbeddedCrops, gallery: EmbeddedCrops, *, height: int | None = None) -> PairScores:
        """Count all cross-camera pairs, in blocks of `height` rows, which does not change the counts."""
        scores = PairScores()
        for start, block in similarity_blocks(query.vectors, gallery.vectors, height=height):
            scores.add(query, gallery, start, block)
        return scores

    def add(
        self, query: EmbeddedCrops, gallery: EmbeddedCrops, start: int, block: NDArray[np.float32]
    ) -> None:
        """Count the pairs of the queries `start, start + 1, ...`; `block` is not changed."""
        rows = slice(start, start + len(block))
        bins = bins_of(block)
        same_person = query.pids[rows, None] == gallery.pids
        same_camera = query.camids[rows, None] == gallery.camids
        self.genuine += np.bincount(bins[same_person & ~same_camera], minlength=_BINS)
        bins[same_person | same_camera] = _BINS  # an extra bin, dropped below
        self.impostor += np.bincount(bins.ravel(), minlength=_BINS + 1)[:_BINS]

    @property
    def genuine_pairs(self) -> int:
        """Number of pairs of one person."""
        return int(self.genuine.sum())

    @property
    def impostor_pairs(self) -> int:
        """Number of pairs of different persons."""
        return int(self.impostor.sum())

    def false_matches(self, threshold: float) -> int:
        """Return the impostor pairs with score >= threshold; exact for thresholds on a bin's edge."""
        return int(self.impostor[edge_of(threshold) :].sum())

    def fmr(self, threshold: float) -> float:
        """Return the share of impostor pairs with score >= threshold; there must be some."""
        return self.false_matches(threshold) / self.impostor_pairs

    def false_non_matches(self, threshold: float) -> int:
        """Return the genuine pairs with score < threshold; exact for thresholds on a bin's edge."""
        return int(self.genuine[: edge_of(threshold)].sum())

    def histograms(self, bins: int = 100) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Return edges `(bins + 1,)` of the range in use, and counts `(bins,)` of genuine and impostor."""
        used = np.flatnonzero(self.genuine + self.impostor)
        if not len(used):
            return np.linspace(-1, 1, bins + 1), np.zeros(bins, np.int64), np.zeros(bins, np.int64)
        cuts = np.unique(np.linspace(used[0], used[-1] + 1, bins + 1).round().astype(int))
        edges = cuts / BINS_PER_UNIT - 1.0
        starts = cuts[:-1]
        genuine = np.add.reduceat(self.genuine[: cuts[-1]], starts)
        return edges, genuine, np.add.reduceat(self.impostor[: cuts[-1]], starts)

    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return thresholds `(2^20 + 1,)`, ascending, with FMR and FNMR; both kinds of pair must exist."""
        fmr = 1.0 - np.concatenate([[0], np.cumsum(self.impostor)]) / self.impostor_pairs
        fnmr = np.concatenate([[0], np.cumsum(self.genuine)]) / self.genuine_pairs
        return np.arange(_BINS + 1) / BINS_PER_UNIT - 1.0, fmr, fnmr

    def det(self, points: int = 120) -> list[tuple[float, float]]:
        """Return `(FMR, FNMR)` at FMR spaced evenly on a log scale, from 1 down to one impostor pair."""
        if not (self.genuine_pairs and self.impostor_pairs):
            return []
        _, fmr, fnmr = self.curve()
        wanted = np.geomspace(1.0, 1.0 / self.impostor_pairs, points)
        # FMR falls along the array: find the first threshold whose FMR is at most the wanted one
        index = np.searchsorted(-fmr, -wanted - 0.5 / self.impostor_pairs, side="left")
        found = dict.fromkeys((float(fmr[i]), float(fnmr[i])) for i in index)
        return list(found)


def edge_of(threshold: float) -> int:
    """Return the index of the first bin that a threshold accepts."""
    return min(_BINS, max(0, math.ceil((threshold + 1.0) * BINS_PER_UNIT)))


REPLICATES = 1000


class PersonBootstrap:
    """Error rates at some thresholds under resampled persons.

    Only accepted impostor pairs are stored, as a sparse person x person matrix for each threshold. The number
    of pairs for weights w follows from the crops per person and camera: all pairs minus pairs of one camera
    minus pairs of one person.
    """

    def __init__(self, query: EmbeddedCrops, gallery: EmbeddedCrops, thresholds: Sequence[float]) -> None:
        from scipy.sparse import csr_matrix

        people, codes = np.unique(np.concatenate([query.pids, gallery.pids]), return_inverse=True)
        self._people = len(people)
        self._query, self._gallery = codes[: len(query)], codes[len(query) :]
        cameras, camera_codes = np.unique(np.concatenate([query.camids, gallery.camids]), return_inverse=True)
        places = np.stack([codes, camera_codes])
        self._query_counts, self._gallery_counts = (  # crops of each person in each camera
            csr_matrix((np.ones(side.shape[1]), tuple(side)), shape=(len(people), len(cameras)))
            for side in (places[:, : len(query)], places[:, len(query) :])
        )
        self._edges = [edge_of(threshold) for threshold in thresholds]
        self._accepted: list[csr_matrix] = [csr_matrix((self._people, self._people)) for _ in thresholds]
        self._refused = np.zeros((len(thresholds), self._people))
        if thresholds:
            for start, block in similarity_blocks(query.vectors, gallery.vectors):
                self._count(query, gallery, start, block)

    def _count(
        self, query: EmbeddedCrops, gallery: EmbeddedCrops, start: int, block: NDArray[np.float32]
    ) -> None:
        """Add the errors of one block of scores."""
        from scipy.sparse import csr_matrix

        bins = bins_of(block).ravel()
        # flat positions of acceptable and of genuine pairs: both are few, unlike all pairs
        near = np.flatnonzero(bins >= min(self._edges))
        genuine = np.flatnonzero(query.pids[start : start + len(block), None] == gallery.pids)
        left, right = np.divmod(near, len(gallery))
        left += start
        wanted = (query.pids[left] != gallery.pids[right]) & (query.camids[left] != gallery.camids[right])
        near, left, right = near[wanted], left[wanted], right[wanted]
        own, other = np.divmod(genuine, len(gallery))
        own += start
        crossing = query.camids[own] != gallery.camids[other]
        genuine, own = genuine[crossing], own[crossing]
        for index, edge in enumerate(self._edges):
            over = bins[near] >= edge
            pairs = (self._query[left[over]], self._gallery[right[over]])
            counts = csr_matrix((np.ones(len(pairs[0])), pairs), shape=(self._people, self._people))
            self._accepted[index] = self._accepted[index] + counts
            missed = self._query[own[bins[genuine] < edge]]
            self._refused[index] += np.bincount(missed, minlength=self._people)

    def rates(self, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return FMR and FNMR of each replicate that has a pair of the kind."""
        index = self._edges.index(edge_of(threshold))
        random = np.random.default_rng(0)
        fmr: list[NDArray[np.float64]] = []
        fnmr: list[NDArray[np.float64]] = []
        height = max(1, (1 << 22) // self._people)  # replicates at a time: 32 MiB of weights
        for start in range(0, REPLICATES, height):
            weights = random.multinomial(
                self._people, np.full(self._people, 1 / self._people), size=min(height, REPLICATES - start)
            ).astype(np.float64)
            impostors, genuine = self._pairs(weights)
            accepted = np.sum((weights @ self._accepted[index]) * weights, axis=1)
            refused = weights @ self._refused[index]
            fmr.append(accepted[impostors > 0] / impostors[impostors > 0])
            fnmr.append(refused[genuine > 0] / genuine[genuine > 0])
        return np.concatenate(fmr), np.concatenate(fnmr)

    def _pairs(self, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Impostor and genuine cross-camera pairs under `(R, people)` weights.

        A person drawn w times would form w^2 impostor pairs with itself; these are pairs of one person and
        excluded. Genuine pairs count w times, as one person's contribution.
        """
        queries, galleries = self._query_counts, self._gallery_counts
        query_totals = np.asarray(queries.sum(axis=1)).ravel()
        gallery_totals = np.asarray(galleries.sum(axis=1)).ravel()
        own_camera = np.asarray(queries.multiply(galleries).sum(axis=1)).ravel()
        own = query_totals * gallery_totals - own_camera
        everything = (weights @ query_totals) * (weights @ gallery_totals)
        one_camera = np.sum((weights @ queries) * (weights @ galleries), axis=1)
        return everything - one_camera - weights**2 @ own, weights @ own
