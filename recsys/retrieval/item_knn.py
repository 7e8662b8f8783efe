"""Item-kNN: items rated by the same users, by cosine with shrinkage, applied to a recency-weighted history.

The model is a sparse (N, N) table of each item's nearest neighbours; order and ratings play no part.

Source: B. Sarwar et al., Item-based Collaborative Filtering Recommendation Algorithms, WWW 2001. The similarity of
items i and j is n_ij / (sqrt(n_i n_j) + shrinkage): a pair seen by few users counts less. Only the best `neighbours`
a row are kept. What differs here, as in `ease`: the history enters with weight (1 + s)^-power, s = steps back.

Shapes: N items, U users, B users of a request, L history length.
"""

from pathlib import Path

import numpy as np
import scipy.sparse as sp
from safetensors.numpy import save_file

from recsys.arrays import IntArray
from recsys.columns import ITEM_KNN
from recsys.features.state import StateBatch
from recsys.retrieval.retriever import DenseScores, recency_weights
from recsys.retrieval.sparse_table import best_of_rows, interactions, table_arrays, table_from_arrays, weighted_rows
from recsys.retrieval.tensor_file import read_tensors

ROWS_AT_ONCE = 500  # of the co-occurrence matrix: its rows are dense where items are popular, and not all fit memory


class ItemKnn:
    name = ITEM_KNN

    def __init__(self, table: sp.csr_matrix, power: float) -> None:
        """`table` (N, N), row = history item, column = scored item."""
        self.table = table
        self.power = power

    @classmethod
    def fit(
        cls, user_idx: IntArray, item_idx: IntArray, n_items: int, *, shrinkage: float, neighbours: int, power: float
    ) -> "ItemKnn":
        """From (E,) events."""
        x = interactions(user_idx, item_idx, n_items)
        by_item = sp.csr_matrix(x.T)
        norm = np.sqrt(np.asarray(x.sum(axis=0)).ravel())
        parts = []
        for low in range(0, n_items, ROWS_AT_ONCE):
            together = sp.csr_matrix(by_item[low : low + ROWS_AT_ONCE] @ x)
            row = np.repeat(np.arange(low, low + together.shape[0], dtype=np.int32), np.diff(together.indptr))
            together.data /= norm[row] * norm[together.indices] + shrinkage
            together.data[row == together.indices] = 0.0  # no item is its own neighbour
            together.eliminate_zeros()
            parts.append(best_of_rows(together, neighbours))
        return cls(sp.csr_matrix(sp.vstack(parts)), power)

    def answer(self, states: StateBatch) -> DenseScores:
        weights = recency_weights(states, self.power)
        return DenseScores(weighted_rows(self.table, states.item_idx, weights), states.seen_idx)

    @property
    def n_items(self) -> int:
        return int(self.table.shape[0])

    def save(self, folder: Path) -> None:
        arrays = {**table_arrays(self.table), "power": np.array([self.power], dtype=np.float64)}
        save_file(arrays, folder / "item_knn.safetensors")

    @classmethod
    def load(cls, folder: Path) -> "ItemKnn":
        stored = read_tensors(folder / "item_knn.safetensors", {"power": (1,)})
        return cls(table_from_arrays(stored), float(stored["power"][0]))
