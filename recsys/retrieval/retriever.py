"""The contract of every retriever.

Stage: retrieval; both tracks. In: a `StateBatch`. Out: an `RetrieverScores` that names its best unseen items and can
score any item. Absent: how a retriever was fit (each retriever's own module) and how answers are merged (`merge`).

Everything is returned as `(item_idx, scores)`, best first; ties break by the lower row number; -1 and -inf fill up
where a retriever has nothing more to say. Shapes: B users, N items, k asked for, K candidates.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from recsys.arrays import DoubleArray, FloatArray, IntArray
from recsys.features.state import StateBatch
from recsys.retrieval.kernels import best_of_row, share_by_second


class RetrieverScores(Protocol):
    """What one retriever says about B users."""

    def top(self, k: int) -> tuple[IntArray, FloatArray]:
        """(B, k) row numbers and scores of unseen items, best first."""
        ...

    def at(self, item_idx: IntArray) -> FloatArray:
        """(B, K) scores of given items, whether or not the retriever would have found them; 0 where item_idx is -1."""
        ...


class Retriever(Protocol):
    """A fitted retriever. `save` writes into an existing empty folder; the class method `load` reads it back."""

    @property
    def name(self) -> str: ...

    @property
    def n_items(self) -> int:
        """N of the catalogue that it was fitted on; an answer is about those row numbers."""
        ...

    def answer(self, states: StateBatch) -> RetrieverScores: ...

    def save(self, folder: Path) -> None: ...


def top_k(
    scores: FloatArray, k: int, seen_idx: Sequence[IntArray], no_score: float = -np.inf
) -> tuple[IntArray, FloatArray]:
    """(B, k) best columns of (B, N) scores that a user has not seen, best first; none where the score is `no_score`.

    >>> idx, _ = top_k(np.array([[1.0, 3.0, 3.0, 9.0]], dtype=np.float32), 4, [np.array([3])])
    >>> idx.tolist()
    [[1, 2, 0, -1]]
    """
    item_idx, best = np.empty((len(scores), k), dtype=np.int64), np.empty((len(scores), k), dtype=np.float32)
    for line, seen, found, values in zip(scores, seen_idx, item_idx, best, strict=True):
        best_of_row(line, seen, no_score, found, values)
    return item_idx, best


class DenseScores:
    """An answer that holds a score for every item. A score of exactly 0 means "no opinion": `top` leaves it out."""

    def __init__(self, scores: FloatArray, seen_idx: Sequence[IntArray]) -> None:
        """`scores` (B, N), finite."""
        self._scores = scores
        self._seen_idx = seen_idx

    def top(self, k: int) -> tuple[IntArray, FloatArray]:
        return top_k(self._scores, k, self._seen_idx, no_score=0.0)

    def at(self, item_idx: IntArray) -> FloatArray:
        out = np.empty(item_idx.shape, dtype=np.float32)
        for row, items in enumerate(item_idx):
            out[row] = self._scores[row, items]  # -1 reads the last item
        out[item_idx < 0] = 0.0
        return out


def recency_weights(states: StateBatch, power: float) -> FloatArray:
    """(B, L) weight (1 + s)^-power of each event, s = steps back from the newest; 0 where there is no event.

    Events of one second share the mean of their weights, because their order carries no meaning.
    """
    weights = np.zeros(states.item_idx.shape, dtype=np.float32)
    share_by_second(states.item_idx, states.timestamps, _powers(states.item_idx.shape[1], power), weights)
    return weights


@lru_cache
def _powers(length: int, power: float) -> DoubleArray:
    """(L,) weights of the steps back L - 1, .. 1, 0; whoever reads must not write."""
    weights = (1.0 + np.arange(length - 1, -1, -1, dtype=np.float64)) ** -power
    weights.flags.writeable = False
    return weights
