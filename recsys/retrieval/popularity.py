"""Time-decayed popularity: the simplest retriever, and the cold-start answer. Everybody gets the same scores.

A rating counts 2^(-age / half-life) as of the cutoff. A small share of the all-time count orders the long tail.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from recsys.arrays import FloatArray, IntArray
from recsys.columns import POPULARITY
from recsys.features.state import StateBatch
from recsys.retrieval.retriever import DenseScores, read_tensors

TAIL_SHARE = 1e-3  # weight of an old rating against a fresh one


class Popularity:
    name = POPULARITY

    def __init__(self, scores: FloatArray) -> None:
        """`scores` (N,)"""
        self.scores = scores

    @classmethod
    def fit(
        cls, item_idx: IntArray, timestamps: IntArray, n_items: int, *, cutoff: int, half_life_days: float
    ) -> "Popularity":
        """From (E,) events with timestamp <= cutoff."""
        age_days = (cutoff - timestamps) / 86_400
        weights = np.exp2(-age_days / half_life_days) + TAIL_SHARE
        return cls(np.bincount(item_idx, weights, minlength=n_items).astype(np.float32))

    def answer(self, states: StateBatch) -> DenseScores:
        return DenseScores(np.broadcast_to(self.scores, (len(states), self.n_items)), states.seen_idx)

    @property
    def n_items(self) -> int:
        return len(self.scores)

    def save(self, folder: Path) -> None:
        save_file({"scores": self.scores}, folder / "popularity.safetensors")

    @classmethod
    def load(cls, folder: Path) -> "Popularity":
        return cls(read_tensors(folder / "popularity.safetensors", {"scores": (None,)})["scores"])
