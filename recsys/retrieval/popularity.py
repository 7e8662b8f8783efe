"""Time-decayed popularity: the simplest source, and the cold-start answer.

Stage: retrieval. In: events up to a cutoff. Out: one score a movie, the same for everybody. Absent: personal taste.

A rating counts 2^(-age / half-life) as of the cutoff. A small share of the all-time count orders the long tail.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from recsys.columns import POPULARITY
from recsys.features.state import StateBatch
from recsys.retrieval.source import DenseAnswer, Scores

TAIL_SHARE = 1e-3  # weight of an old rating against a fresh one


class Popularity:
    name = POPULARITY

    def __init__(self, scores: Scores) -> None:
        """`scores` (N,)"""
        self.scores = scores

    @classmethod
    def fit(
        cls,
        item_idx: npt.NDArray[np.int64],
        timestamps: npt.NDArray[np.int64],
        n_items: int,
        *,
        cutoff: int,
        half_life_days: float,
    ) -> "Popularity":
        """From (E,) events with timestamp <= cutoff."""
        age_days = (cutoff - timestamps) / 86_400
        weights = np.exp2(-age_days / half_life_days) + TAIL_SHARE
        return cls(np.bincount(item_idx, weights, minlength=n_items).astype(np.float32))

    def answer(self, states: StateBatch) -> DenseAnswer:
        return DenseAnswer(np.broadcast_to(self.scores, (len(states), len(self.scores))), states.seen_idx)

    def save(self, folder: Path) -> None:
        save_file({"scores": self.scores}, folder / "popularity.safetensors")

    @classmethod
    def load(cls, folder: Path) -> "Popularity":
        return cls(load_file(folder / "popularity.safetensors")["scores"])
