"""EASE: item-to-item weights by closed-form regression, applied to a recency-weighted history.

The model is an item-by-item weight matrix over the head of the catalogue. The tail has weight 0; the two-tower model
covers it by content.

Source: H. Steck, Embarrassingly Shallow Autoencoders for Sparse Data, 2019. With G = X'X + lambda I and P = G^-1, the
weights are B = I - P diag(1 / diag P). What differs here: the history of a request enters with weight
(1 + s)^-power, s = steps back, because recent events say more about the next one.

Shapes: N items, M head items, U users.
"""

from pathlib import Path

import numpy as np
import scipy.linalg
from safetensors.numpy import save_file

from recsys.arrays import FloatArray, IntArray
from recsys.columns import EASE
from recsys.errors import BundleError
from recsys.features.state import StateBatch
from recsys.retrieval.item_tables import interactions
from recsys.retrieval.retriever import DenseScores, read_tensors, recency_weights

MAX_HEAD = 6_000  # the dense inverse of more costs minutes and gigabytes


class Ease:
    name = EASE

    def __init__(self, head: IntArray, weights: FloatArray, n_items: int, power: float) -> None:
        """`head` (M,) row numbers, ascending; `weights` (M, M), row = history item, column = scored item. They are
        not copied, and must be row-major: safetensors writes a buffer as it lies."""
        self.head = head
        self.weights = weights
        self.n_items = n_items
        self.power = power
        self._row_of = np.full(n_items + 1, -1, dtype=np.int64)  # tail items and, at the end, "no event" have none
        self._row_of[head] = np.arange(len(head))

    @classmethod
    def fit(
        cls,
        user_idx: IntArray,
        item_idx: IntArray,
        n_items: int,
        *,
        regularisation: float,
        power: float,
        min_ratings: int = 3,
    ) -> "Ease":
        """From (E,) events. The head is the most rated items: at least `min_ratings`, at most MAX_HEAD of them."""
        counts = np.bincount(item_idx, minlength=n_items)
        ranked = np.argsort(-counts, kind="stable")[:MAX_HEAD]
        head = np.sort(ranked[counts[ranked] >= min_ratings])
        position = np.full(n_items, -1, dtype=np.int64)
        position[head] = np.arange(len(head))
        kept = position[item_idx] >= 0
        x = interactions(user_idx[kept], position[item_idx[kept]], len(head))
        gram = np.asarray((x.T @ x).todense(), dtype=np.float32)
        gram[np.diag_indices_from(gram)] += regularisation
        inverse = scipy.linalg.inv(gram, overwrite_a=True, check_finite=False)
        weights = -inverse / np.diag(inverse)
        weights[np.diag_indices_from(weights)] = 0.0
        return cls(head, weights.astype(np.float32, order="C"), n_items, power)  # LAPACK's result is column-major

    def answer(self, states: StateBatch) -> DenseScores:
        weights = recency_weights(states, self.power)
        rows = self._row_of[states.item_idx]  # (B, L)
        scores = np.zeros((len(states), self.n_items), dtype=np.float32)
        for b, known in enumerate(rows >= 0):
            scores[b, self.head] = weights[b, known] @ self.weights[rows[b, known]]
        return DenseScores(scores, states.seen_idx)

    def save(self, folder: Path) -> None:
        save_file(
            {
                "head": self.head,
                "weights": self.weights,
                "n_items": np.array([self.n_items], dtype=np.int64),
                "power": np.array([self.power], dtype=np.float64),
            },
            folder / "ease.safetensors",
        )

    @classmethod
    def load(cls, folder: Path) -> "Ease":
        """Raises BundleError where the weights are not those of the items that they name."""
        shapes = {"head": (None,), "weights": (None, None), "n_items": (1,), "power": (1,)}
        stored = read_tensors(folder / "ease.safetensors", shapes)
        head, weights, n_items = stored["head"], stored["weights"], int(stored["n_items"][0])
        ascending = (np.diff(head) > 0).all() and (len(head) == 0 or 0 <= head[0] <= head[-1] < n_items)
        if weights.shape != (len(head), len(head)) or not ascending:
            raise BundleError(f"{folder}: the weights of EASE are not those of its items; train again")
        return cls(head, weights, n_items, float(stored["power"][0]))
