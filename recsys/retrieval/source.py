"""The contract of every candidate source.

Stage: retrieval; both tracks. In: a `StateBatch`. Out: an `Answer` that names its best unseen movies and can score
any movie. Absent: how a source was fit (each source's own module) and how answers are merged (`merge`).

Everything is returned as `(item_idx, scores)`, best first; ties break by the lower row number; -1 and -inf fill up
where a source has nothing more to say. Shapes: B users, N movies, k asked for, K candidates.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

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
    return filled([(row, _best(row, k, -np.inf)) for row in scores], k)


def _best(scores: Scores, k: int, silent: float) -> Idx:
    """Up to k positions of (N,) scores, best first, none where the score is `silent`.

    Where enough scores are positive the rest need no look: many movies tie at 0, and equal values slow a partition
    down. The value at the cut comes from `partition`, because `argpartition` is slower and picks at random among those
    that tie there; here the lower row numbers get in.
    """
    said = np.flatnonzero(scores > 0)
    if len(said) < k:
        said = np.flatnonzero(scores != silent)
    values = scores[said]
    if len(values) > k:
        cut = np.partition(values, len(values) - k)[len(values) - k]
        kept = np.flatnonzero(values >= cut)
        if len(kept) > k:
            kept = np.delete(kept, np.flatnonzero(values[kept] == cut)[k - len(kept) :])
        said, values = said[kept], values[kept]
    return said[np.argsort(-values, kind="stable")]  # ascending before: ties break by row number


def filled(lists: Sequence[tuple[Scores, Idx]], k: int) -> tuple[Idx, Scores]:
    """(B, k) arrays from every user's (N,) scores and best movies, filled up with -1 and -inf."""
    item_idx = np.full((len(lists), k), -1, dtype=np.int64)
    out = np.full((len(lists), k), -np.inf, dtype=np.float32)
    for row, (scores, best) in enumerate(lists):
        item_idx[row, : len(best)] = best
        out[row, : len(best)] = scores[best]
    return item_idx, out


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
        lists = []
        for scores, seen in zip(self._scores, self._seen_idx, strict=True):
            unseen = scores.copy()
            unseen[seen] = 0.0
            lists.append((scores, _best(unseen, k, silent=0.0)))
        return filled(lists, k)

    def at(self, item_idx: Idx) -> Scores:
        out = np.empty(item_idx.shape, dtype=np.float32)
        for row, movies in enumerate(item_idx):
            out[row] = self._scores[row, movies]  # -1 reads the last movie
        out[item_idx < 0] = 0.0
        return out


def recency_weights(states: StateBatch, power: float) -> npt.NDArray[np.float32]:
    """(B, L) weight (1 + s)^-power of each event, s = steps back from the newest; 0 where there is no event.

    Events of one second share the mean of their weights, because their order carries no meaning.
    """
    length = states.item_idx.shape[1]
    by_step = _powers(length, power)
    weights = np.zeros(states.item_idx.shape, dtype=np.float32)
    for row in range(len(states)):
        first = length - np.count_nonzero(states.item_idx[row] >= 0)
        times = states.timestamps[row, first:]
        if len(times):
            second = np.zeros(len(times), dtype=np.int64)
            np.cumsum(times[1:] != times[:-1], out=second[1:])
            mean = np.bincount(second, by_step[first:]) / np.bincount(second)
            weights[row, first:] = mean[second]
    return weights


@lru_cache
def _powers(length: int, power: float) -> npt.NDArray[np.float64]:
    """(L,) weights of the steps back L - 1, .. 1, 0; whoever reads must not write."""
    weights = (1.0 + np.arange(length - 1, -1, -1, dtype=np.float64)) ** -power
    weights.flags.writeable = False
    return weights
