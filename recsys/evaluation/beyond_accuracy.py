"""Beyond accuracy: how novel and diverse top tens are, and how much they lean on what is popular anyway.

Only how often each item was shown and two sums are kept, never the lists.

Shapes: N items, G genres, B lists of a batch, k places of a list.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.stats import rankdata

from recsys.arrays import DoubleArray, IntArray
from recsys.features.catalogue import Catalogue

# Of the fields of BeyondAccuracy, in order.
LABELS: Final = ("Coverage@10", "Novelty@10, bits", "Diversity@10", "Popularity@10, percentile", "Gini@10")


@dataclass(frozen=True)
class BeyondAccuracy:
    """Measures of top tens; None where nothing was shown, or no list had two items with genres.

    coverage     share of the catalogue that was in anybody's list
    novelty      mean self-information of everything shown, bits
    diversity    mean over lists of `list_diversity`
    popularity   mean percentile, by raters, of everything shown
    gini         of how often each item was shown
    """

    coverage: float
    novelty: float | None
    diversity: float | None
    popularity: float | None
    gini: float | None


def self_information(raters: IntArray, n_users: int) -> DoubleArray:
    """(N,) bits: -log2 of the share of users who rated the item, (raters + 1) / (n_users + 1) by add-one smoothing.

    Vargas and Castells 2011, https://doi.org/10.1145/2043932.2043955. Of 7 users, all, one and nobody rated:

    >>> self_information(np.array([7, 1, 0]), 7).tolist()
    [0.0, 2.0, 3.0]
    """
    bits: DoubleArray = np.log2(n_users + 1.0) - np.log2(raters + 1.0)
    return bits


def popularity_percentile(raters: IntArray) -> DoubleArray:
    """(N,) 0 to 100: share of the catalogue with fewer raters, plus half of the share with as many (itself included).

    >>> popularity_percentile(np.array([9, 0, 0, 4])).tolist()
    [87.5, 25.0, 25.0, 62.5]
    """
    percentile: DoubleArray = 100.0 * (rankdata(raters) - 0.5) / max(len(raters), 1)
    return percentile


def gini(shown: IntArray) -> float | None:
    """sum_i (2i - N - 1) x_i / (N sum_i x_i), x in ascending order, i from 1; None where nothing was shown.

    0 where all items are shown alike, 1 - 1/N where it is always the same one.
    For recommendations: Fleder and Hosanagar 2009, https://doi.org/10.1287/mnsc.1080.0974.

    >>> gini(np.array([3, 3])), gini(np.array([0, 0, 0, 8])), gini(np.array([0]))
    (0.0, 0.75, None)
    """
    ascending, n = np.sort(shown), len(shown)
    total = int(ascending.sum())
    if not total:
        return None
    return float((2 * np.arange(1, n + 1) - n - 1) @ ascending / (n * total))


def list_diversity(item_idx: IntArray, genres: DoubleArray) -> DoubleArray:
    """(B,) mean of 1 - cosine of genre vectors over all pairs of a list; NaN for a list without a pair.

    item_idx (B, k), -1 where a list has ended; genres as in `Items`. An item without genres takes part in no pair.
    Ziegler et al. 2005, https://doi.org/10.1145/1060745.1060754, with content instead of ratings, so that no model
    judges itself. For unit vectors the cosines of all ordered pairs sum to |sum of vectors|^2 - m.
    """
    vectors = genres[item_idx]  # (B, k, G)
    m = vectors.any(axis=2).sum(axis=1)  # (B,) items with genres
    total = vectors.sum(axis=1)  # (B, G)
    cosines = np.einsum("bg,bg->b", total, total) - m
    pairs = m * (m - 1)
    return np.where(pairs > 0, 1.0 - cosines / np.maximum(pairs, 1), np.nan)


class Items:
    """What the measures need of each item, as known up to T2.

    genres   (N + 1, G) of length 1; zeros for an item without genres, and in the last row, where -1 points
    """

    def __init__(self, catalogue: Catalogue, raters: IntArray, n_users: int) -> None:
        """raters (N,): users who rated each item up to T2; n_users: users with an event up to T2."""
        self.self_information = self_information(raters, n_users)
        self.percentile = popularity_percentile(raters)
        vectors = np.pad(catalogue.genres.astype(np.float64), ((0, 1), (0, 0)))
        self.genres: DoubleArray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1.0)


class Shown:
    """The top tens of one method, added up batch by batch."""

    def __init__(self, items: Items) -> None:
        self._items = items
        self._times = np.zeros(len(items.genres), dtype=np.int64)  # the last place counts -1
        self._diversity, self._diverse_lists = 0.0, 0

    def add(self, item_idx: IntArray) -> None:
        """(B, k) row numbers, a list for each context, -1 where it has ended."""
        np.add.at(self._times, item_idx.ravel(), 1)
        diversity = list_diversity(item_idx, self._items.genres)
        measured = diversity[~np.isnan(diversity)]
        self._diversity += float(measured.sum())
        self._diverse_lists += len(measured)

    def measure(self) -> BeyondAccuracy:
        times = self._times[:-1]
        shown = int(times.sum())
        return BeyondAccuracy(
            coverage=float((times > 0).mean()),
            novelty=float(times @ self._items.self_information) / shown if shown else None,
            diversity=self._diversity / self._diverse_lists if self._diverse_lists else None,
            popularity=float(times @ self._items.percentile) / shown if shown else None,
            gini=gini(times),
        )
