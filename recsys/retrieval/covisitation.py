"""Recency-decayed co-visitation: which item follows which, within a few steps of the same user.

The model is a sparse (N, N) table: row = item seen, column = item that came within MAX_STEPS after it. Order within one
second means nothing, so such pairs count in both directions.

A pair d steps apart counts decay^(d - 1). A row is divided by its item's count to the power of `damping`, so that a
popular predecessor does not drown a telling one. A request adds the rows of its last items, weighted history_decay^s
for s steps back. Only the best MAX_NEIGHBOURS a row are kept.
"""

from pathlib import Path

import numpy as np
import scipy.sparse as sp
from safetensors.numpy import save_file

from recsys.arrays import FloatArray, IntArray
from recsys.columns import COVISITATION
from recsys.features.state import StateBatch
from recsys.retrieval.retriever import DenseScores
from recsys.retrieval.sparse_table import best_of_rows, table_arrays, table_from_arrays, weighted_rows
from recsys.retrieval.tensor_file import read_tensors

MAX_STEPS = 20
MAX_NEIGHBOURS = 300


class Covisitation:
    name = COVISITATION

    def __init__(self, table: sp.csr_matrix, history_decay: float) -> None:
        self.table = table
        self.history_decay = history_decay

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
            weight = np.full(len(before), decay ** (step - 1), dtype=np.float32)
            tied = (timestamps[step:] == timestamps[:-step])[same_user]
            total = total + sp.csr_matrix(
                (
                    np.concatenate([weight, weight[tied]]),
                    (np.concatenate([before, after[tied]]), np.concatenate([after, before[tied]])),
                ),
                shape=(n_items, n_items),
            )
        counts = np.bincount(item_idx, minlength=n_items).astype(np.float32)
        scaled = sp.diags(np.maximum(counts, 1.0) ** -damping).astype(np.float32) @ total
        return cls(best_of_rows(sp.csr_matrix(scaled), MAX_NEIGHBOURS), history_decay)

    def answer(self, states: StateBatch) -> DenseScores:
        recent = states.item_idx[:, -MAX_STEPS:]
        by_step = (self.history_decay ** np.arange(recent.shape[1] - 1, -1, -1)).astype(np.float32)
        weights = np.broadcast_to(by_step, recent.shape)
        return DenseScores(weighted_rows(self.table, recent, weights), states.seen_idx)

    def after(self, last_idx: IntArray, item_idx: IntArray) -> FloatArray:
        """(B, K) table entries of the (B,) newest items for (B, K) candidates; 0 where either is -1."""
        out = np.zeros(item_idx.shape, dtype=np.float32)
        for row in np.flatnonzero(last_idx >= 0):
            entries = slice(*self.table.indptr[last_idx[row] : last_idx[row] + 2])
            dense = np.zeros(self.n_items + 1, dtype=np.float32)  # -1 reads the last place, which stays 0
            dense[self.table.indices[entries]] = self.table.data[entries]
            out[row] = dense[item_idx[row]]
        return out

    @property
    def n_items(self) -> int:
        return int(self.table.shape[0])

    def save(self, folder: Path) -> None:
        arrays = {**table_arrays(self.table), "history_decay": np.array([self.history_decay], dtype=np.float64)}
        save_file(arrays, folder / "covisitation.safetensors")

    @classmethod
    def load(cls, folder: Path) -> "Covisitation":
        stored = read_tensors(folder / "covisitation.safetensors", {"history_decay": (1,)})
        return cls(table_from_arrays(stored), float(stored["history_decay"][0]))
