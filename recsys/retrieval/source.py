"""The contract of every candidate source.

Stage: retrieval; both tracks. In: a `StateBatch`. Out: an `Answer` that names its best unseen movies and can score
any movie. Absent: how a source was fit (each source's own module) and how answers are merged (`merge`).

Everything is returned as `(item_idx, scores)`, best first; ties break by the lower row number; -1 and -inf fill up
where a source has nothing more to say. Shapes: B users, N movies, k asked for, K candidates.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from recsys.features.state import StateBatch

Idx = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


class Answer(Protocol):
    """What one source says about B users."""

    def top(self, k: int) -> tuple[Idx, Scores]:
        """(B, k) row numbers and scores of unseen movies, best first."""
        ...

    def at(self, item_idx: Idx) -> Scores:
        """(B, K) scores of given movies, whether or not the source would have found them; 0 where item_idx is -1."""
        ...


class Source(Protocol):
    """A fitted source. `save` writes into an existing empty folder; the class method `load` reads it back."""

    @property
    def name(self) -> str: ...

    def answer(self, states: StateBatch) -> Answer: ...

    def save(self, folder: Path) -> None: ...


def top_k(scores: Scores, k: int) -> tuple[Idx, Scores]:
    """(B, k) best columns of (B, N) scores, best first; -inf marks what may not be returned.

    >>> idx, _ = top_k(np.array([[1.0, 3.0, 3.0, -np.inf]], dtype=np.float32), 4)
    >>> idx.tolist()
    [[1, 2, 0, -1]]
    """
    size, n = scores.shape
    depth = min(k, n)
    if depth < n:
        best = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
        _lowest_at_the_cut(scores, best)
        best.sort(axis=1)  # ties inside the cut break by row number
    else:
        best = np.broadcast_to(np.arange(n), (size, n)).copy()
    values = np.take_along_axis(scores, best, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    item_idx = np.full((size, k), -1, dtype=np.int64)
    out = np.full((size, k), -np.inf, dtype=np.float32)
    item_idx[:, :depth] = np.take_along_axis(best, order, axis=1)
    out[:, :depth] = np.take_along_axis(values, order, axis=1)
    item_idx[np.isneginf(out)] = -1
    return item_idx, out


def _lowest_at_the_cut(scores: Scores, best: Idx) -> None:
    """Where movies inside and outside the cut tie for its last places, let the lower row numbers in; in place.
    `argpartition` picks among them at random."""
    worst = np.take_along_axis(scores, best, axis=1).min(axis=1, keepdims=True)
    crowded = ((scores >= worst).sum(axis=1) > best.shape[1]) & ~np.isneginf(worst[:, 0])
    for row in np.flatnonzero(crowded):
        above, level = np.flatnonzero(scores[row] > worst[row]), np.flatnonzero(scores[row] == worst[row])
        best[row] = np.concatenate([above, level[: best.shape[1] - len(above)]])


def mask_seen(scores: Scores, seen_idx: Sequence[Idx]) -> None:
    """Set what each user has seen to -inf, in place."""
    for row, seen in enumerate(seen_idx):
        scores[row, seen] = -np.inf


class DenseAnswer:
    """An answer that holds a score for every movie. A score of exactly 0 means "no opinion": `top` leaves it out."""

    def __init__(self, scores: Scores, seen_idx: Sequence[Idx]) -> None:
        """`scores` (B, N), finite."""
        self._scores = scores
        self._seen_idx = seen_idx

    def top(self, k: int) -> tuple[Idx, Scores]:
        masked = np.where(self._scores == 0, np.float32(-np.inf), self._scores)
        mask_seen(masked, self._seen_idx)
        return top_k(masked, k)

    def at(self, item_idx: Idx) -> Scores:
        values = np.take_along_axis(self._scores, np.maximum(item_idx, 0), axis=1)
        return np.where(item_idx >= 0, values, np.float32(0))


def recency_weights(states: StateBatch, power: float) -> npt.NDArray[np.float32]:
    """(B, L) weight (1 + s)^-power of each event, s = steps back from the newest; 0 where there is no event.

    Events of one second share the mean of their weights, because their order carries no meaning.
    """
    length = states.item_idx.shape[1]
    steps = np.arange(length - 1, -1, -1, dtype=np.float64)
    weights = np.where(states.item_idx >= 0, (1.0 + steps) ** -power, 0.0)
    starts = np.ones(weights.shape, dtype=bool)
    starts[:, 1:] = states.timestamps[:, 1:] != states.timestamps[:, :-1]
    group = np.cumsum(starts.ravel()) - 1
    valid = (states.item_idx >= 0).ravel()
    total = np.bincount(group, weights.ravel())
    count = np.bincount(group, valid)
    mean = total / np.maximum(count, 1)
    return np.where(valid, mean[group], 0.0).reshape(weights.shape).astype(np.float32)


def history_matrix(item_idx: Idx, weights: npt.NDArray[np.float32], n_items: int) -> sp.csr_matrix:
    """(B, N) sparse: the weight of every movie of (B, L) histories; -1 is no movie."""
    size, length = item_idx.shape
    return sp.csr_matrix(
        (weights.ravel(), np.maximum(item_idx, 0).ravel(), np.arange(size + 1) * length), shape=(size, n_items)
    )
