"""Which exemplars an identity keeps when it has more than it may."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["diverse_rows"]


def diverse_rows(vectors: NDArray[np.float32], qualities: NDArray[np.float32], most: int) -> NDArray[np.intp]:
    """Indices, rising, of at most `most` rows that differ from each other and show their person well.

    The rows are offered in order. Whenever there are more than `most`, the two that are most alike (highest
    cosine) are found, and the one of lower quality goes; of two equal ones, the later. So each view of
    a person is held by its best picture, a new view displaces a redundant one, and the outcome depends on
    nothing but the rows and their order.

    Args:
        vectors: `(N, D)` float32, rows of unit length, oldest first.
        qualities: `(N,)` float32, 0..1.
        most: at least 1.
    """
    kept = list(range(min(most, len(vectors))))
    alike = vectors @ vectors.T
    np.fill_diagonal(alike, -np.inf)
    for newcomer in range(most, len(vectors)):
        kept.append(newcomer)
        among = alike[np.ix_(kept, kept)]
        older, newer = sorted(divmod(int(among.argmax()), len(kept)))
        kept.pop(older if qualities[kept[older]] < qualities[kept[newer]] else newer)
    return np.asarray(kept, np.intp)
