"""Which exemplars an identity keeps when it has too many."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["diverse_rows"]


def diverse_rows(vectors: NDArray[np.float32], qualities: NDArray[np.float32], most: int) -> NDArray[np.intp]:
    """Return the rising indices of at most `most` rows that differ from each other and are of good quality.

    The rows are added in order. Whenever there are more than `most`, the two most similar (highest cosine)
    are found, and the one of lower quality is dropped; of two equal ones, the later. So each view of a person
    is represented by its best picture, a new view displaces a redundant one, and the result depends only on
    the rows and their order.

    Args:
        vectors: `(N, D)` float32, rows of unit length, oldest first.
        qualities: `(N,)` float32, 0..1.
        most: at least 1.
    """
    kept = list(range(min(most, len(vectors))))
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    for newcomer in range(most, len(vectors)):
        kept.append(newcomer)
        among = cosines[np.ix_(kept, kept)]
        older, newer = sorted(divmod(int(among.argmax()), len(kept)))
        kept.pop(older if qualities[kept[older]] < qualities[kept[newer]] else newer)
    return np.asarray(kept, np.intp)
