"""Item-kNN and co-visitation: sparse (N, N) tables of which a request adds up the rows of its history.

Row = item of the history, column = scored item; only the best entries of a row are kept.

Shapes: E events, N items, U users, B users of a request, L history length, K candidates.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import scipy.sparse as sp
from numba import njit
from safetensors.numpy import save_file

from recsys.arrays import FloatArray, IntArray
from recsys.columns import COVISITATION, ITEM_KNN
from recsys.errors import BundleError
from recsys.features.state import StateBatch
from recsys.retrieval.retriever import DenseScores, read_tensors, recency_weights

MAX_STEPS, MAX_NEIGHBOURS = 20, 300  # of co-visitation
ROWS_AT_ONCE = 500  # of the co-occurrence matrix: its rows are dense where items are popular, and not all fit memory


def interactions(user_idx: IntArray, item_idx: IntArray, n_items: int) -> sp.csr_matrix:
    """(U, N) ones from (E,) events; a row for each user who has one, and an item rated twice is one interaction.

    >>> interactions(np.array([7, 7, 7, 9]), np.array([0, 2, 2, 1]), 3).toarray().tolist()
    [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    users, row = np.unique(user_idx, return_inverse=True)
    x = sp.csr_matrix((np.ones(len(row), dtype=np.float32), (row, item_idx)), shape=(len(users), n_items))
    x.data[:] = 1.0
    return x


def best_of_rows(table: sp.csr_matrix, most: int) -> sp.csr_matrix:
    """Keep the `most` largest entries of each row, in the order of columns; ties go to the lower column.

    >>> best_of_rows(sp.csr_matrix([[1.0, 3.0, 2.0, 2.0]]), 2).toarray().tolist()
    [[0.0, 3.0, 2.0, 0.0]]
    """
    rows = np.repeat(np.arange(table.shape[0]), np.diff(table.indptr))
    order = np.lexsort((table.indices, -table.data, rows))
    kept = order[np.arange(len(order)) - table.indptr[rows] < most]
    best = sp.csr_matrix((table.data[kept], (rows[kept], table.indices[kept])), shape=table.shape)
    best.sort_indices()
    return best


def weighted_rows(table: sp.csr_matrix, item_idx: IntArray, weights: FloatArray) -> FloatArray:
    """(B, N) sum of the rows of (B, L) items, each times its weight; -1 is no item."""
    out = np.zeros((len(item_idx), table.shape[1]), dtype=np.float32)
    item_idx, weights = np.ascontiguousarray(item_idx), np.ascontiguousarray(weights)  # one type, compiled once
    _add_rows(table.indptr, table.indices, table.data, item_idx, weights, out)
    return out


@njit(cache=True, nogil=True)
def _add_rows(indptr, indices, data, item_idx, weights, out):  # type: ignore[no-untyped-def]
    """A loop because scipy's product of two sparse matrices costs 0.2 ms for one user; two tables read it, so it earns
    0.3 ms of an answer, and takes a third of the product's time for a batch."""
    for b in range(item_idx.shape[0]):
        for step in range(item_idx.shape[1]):
            item = item_idx[b, step]
            if item >= 0:
                for entry in range(indptr[item], indptr[item + 1]):
                    out[b, indices[entry]] += data[entry] * weights[b, step]


class TableRetriever(ABC):
    """What both tables share. `decay` says how fast the weight of an event falls with its age."""

    name: str
    decay_name: ClassVar[str]  # in the file

    def __init__(self, table: sp.csr_matrix, decay: float) -> None:
        self.table, self.decay = table, decay

    @abstractmethod
    def history_weights(self, states: StateBatch) -> FloatArray:
        """(B, up to L) weights of the last events."""

    def answer(self, states: StateBatch) -> DenseScores:
        weights = self.history_weights(states)
        return DenseScores(weighted_rows(self.table, states.item_idx[:, -weights.shape[1] :], weights), states.seen_idx)

    @property
    def n_items(self) -> int:
        return int(self.table.shape[0])

    def save(self, folder: Path) -> None:
        arrays = {
            "data": self.table.data.astype(np.float32),
            "indices": self.table.indices.astype(np.int32),
            "indptr": self.table.indptr.astype(np.int64),
            self.decay_name: np.array([self.decay], dtype=np.float64),
        }
        save_file(arrays, folder / f"{self.name}.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises BundleError for arrays that are no square table: `_add_rows` checks no row number."""
        path = folder / f"{cls.name}.safetensors"
        stored = read_tensors(path, {"data": (None,), "indices": (None,), "indptr": (None,), cls.decay_name: (1,)})
        data, indices, indptr = stored["data"], stored["indices"], stored["indptr"].astype(np.int32)
        try:
            table = sp.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, len(indptr) - 1))
            table.check_format(full_check=True)
        except ValueError as error:
            raise BundleError(f"{path}: the table of items against items is damaged ({error}); train again") from error
        return cls(table, float(stored[cls.decay_name][0]))


class ItemKnn(TableRetriever):
    """Items rated by the same users, by cosine with shrinkage; order and ratings play no part.

    Source: B. Sarwar et al., Item-based Collaborative Filtering Recommendation Algorithms, WWW 2001. The similarity of
    items i and j is n_ij / (sqrt(n_i n_j) + shrinkage): a pair seen by few users counts less. What differs here, as in
    `ease`: the history enters with weight (1 + s)^-power, s = steps back.
    """

    name = ITEM_KNN
    decay_name = "power"

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

    def history_weights(self, states: StateBatch) -> FloatArray:
        return recency_weights(states, self.decay)


class Covisitation(TableRetriever):
    """Which item follows which, within MAX_STEPS steps of the same user; within one second, both directions count.

    A pair d steps apart counts decay^(d - 1). A row is divided by its item's count to the power of `damping`, so that
    a popular predecessor does not drown a telling one. A request adds the rows of its last MAX_STEPS items, weighted
    history_decay^s for s steps back. MAX_NEIGHBOURS a row are kept.
    """

    name = COVISITATION
    decay_name = "history_decay"

    @classmethod
    def fit(
        cls,
        user_idx: IntArray,
        item_idx: IntArray,
        timestamps: IntArray,
        n_items: int,
        *,
        decay: float,
        damping: float,
        history_decay: float,
    ) -> "Covisitation":
        """From (E,) events in the order of (user, timestamp, item)."""
        total = sp.csr_matrix((n_items, n_items), dtype=np.float32)
        for step in range(1, MAX_STEPS + 1):
            same_user = user_idx[step:] == user_idx[:-step]
            before, after = item_idx[:-step][same_user], item_idx[step:][same_user]
            tied = (timestamps[step:] == timestamps[:-step])[same_user]
            rows, columns = np.concatenate([before, after[tied]]), np.concatenate([after, before[tied]])
            weight = np.full(len(rows), decay ** (step - 1), dtype=np.float32)
            total = total + sp.csr_matrix((weight, (rows, columns)), shape=(n_items, n_items))
        counts = np.bincount(item_idx, minlength=n_items).astype(np.float32)
        scaled = sp.diags(np.maximum(counts, 1.0) ** -damping).astype(np.float32) @ total
        return cls(best_of_rows(sp.csr_matrix(scaled), MAX_NEIGHBOURS), history_decay)

    def history_weights(self, states: StateBatch) -> FloatArray:
        steps = min(MAX_STEPS, states.item_idx.shape[1])
        by_step = (self.decay ** np.arange(steps - 1, -1, -1)).astype(np.float32)
        return np.broadcast_to(by_step, (len(states), steps))

    def after(self, last_idx: IntArray, item_idx: IntArray) -> FloatArray:
        """(B, K) table entries of the (B,) newest items for (B, K) candidates; 0 where either is -1."""
        out = np.zeros(item_idx.shape, dtype=np.float32)
        for row in np.flatnonzero(last_idx >= 0):
            entries = slice(*self.table.indptr[last_idx[row] : last_idx[row] + 2])
            dense = np.zeros(self.n_items + 1, dtype=np.float32)  # -1 reads the last place, which stays 0
            dense[self.table.indices[entries]] = self.table.data[entries]
            out[row] = dense[item_idx[row]]
        return out
