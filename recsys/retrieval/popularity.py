"""Time-decayed popularity: the simplest retriever, and the cold-start answer.

Stage: retrieval. In: events up to a cutoff. Out: one score an item, the same for everybody. Absent: personal taste.

A rating counts 2^(-age / half-life) as of the cutoff. A small share of the all-time count orders the long tail.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from recsys.arrays import FloatArray, IntArray
from recsys.columns import POPULARITY
from recsys.features.state import StateBatch
from recsys.retrieval.tensor_file import map_tensors

TAIL_SHARE = 1e-3  # weight of an old rating against a fresh one


class PopularityAnswer:
    """As `DenseScores` with one row of scores for all, whose order is known beforehand."""

    def __init__(self, scores: FloatArray, order: IntArray, seen_idx: Sequence[IntArray]) -> None:
        """`scores` (N,); `order` row numbers of those that are not 0, best first, ties by row number."""
        self._scores = scores
        self._order = order
        self._seen_idx = seen_idx

    def top(self, k: int) -> tuple[IntArray, FloatArray]:
        item_idx = np.full((len(self._seen_idx), k), -1, dtype=np.int64)
        scores = np.full(item_idx.shape, -np.inf, dtype=np.float32)
        for row, seen in enumerate(self._seen_idx):
            unseen = np.ones(len(self._scores), dtype=bool)
            unseen[seen] = False
            best = self._order[: k + len(seen)]
            best = best[unseen[best]][:k]
            item_idx[row, : len(best)], scores[row, : len(best)] = best, self._scores[best]
        return item_idx, scores

    def at(self, item_idx: IntArray) -> FloatArray:
        return np.where(item_idx >= 0, self._scores[item_idx], np.float32(0))  # -1 reads the last item


class Popularity:
    name = POPULARITY

    def __init__(self, scores: FloatArray) -> None:
        """`scores` (N,)"""
        self.scores = scores
        order = np.argsort(-scores, kind="stable")
        self._order = order[scores[order] != 0]

    @classmethod
    def fit(
        cls,
        item_idx: IntArray,
        timestamps: IntArray,
        n_items: int,
        *,
        cutoff: int,
        half_life_days: float,
    ) -> "Popularity":
        """From (E,) events with timestamp <= cutoff."""
        age_days = (cutoff - timestamps) / 86_400
        weights = np.exp2(-age_days / half_life_days) + TAIL_SHARE
        return cls(np.bincount(item_idx, weights, minlength=n_items).astype(np.float32))

    def answer(self, states: StateBatch) -> "PopularityAnswer":
        return PopularityAnswer(self.scores, self._order, states.seen_idx)

    @property
    def n_items(self) -> int:
        return len(self.scores)

    def save(self, folder: Path) -> None:
        save_file({"scores": self.scores}, folder / "popularity.safetensors")

    @classmethod
    def load(cls, folder: Path) -> "Popularity":
        return cls(map_tensors(folder / "popularity.safetensors")["scores"])
