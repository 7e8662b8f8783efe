"""Sparse matrices: who rated what, and (N, N) tables of items against items, pruned and saved as plain arrays.

Stage: retrieval. In: events or scipy matrices. Out: scipy matrices or their arrays. Absent: what the entries of a table
mean (`covisitation`, `item_knn`).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from recsys.arrays import FloatArray, IntArray
from recsys.errors import BundleError
from recsys.retrieval.kernels import add_sparse_rows


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
    rows = []
    for row in range(table.shape[0]):
        low, high = table.indptr[row], table.indptr[row + 1]
        data, columns = table.data[low:high], table.indices[low:high]
        if len(data) > most:
            worst = np.partition(data, -most)[-most]
            above, level = np.flatnonzero(data > worst), np.flatnonzero(data == worst)
            level = level[np.argsort(columns[level])]
            best = np.concatenate([above, level[: most - len(above)]])
            data, columns = data[best], columns[best]
        rows.append((data, columns))
    indptr = np.append(0, np.cumsum([len(d) for d, _ in rows]))
    best_ones = sp.csr_matrix(
        (np.concatenate([d for d, _ in rows]), np.concatenate([c for _, c in rows]), indptr), shape=table.shape
    )
    best_ones.sort_indices()
    return best_ones


def weighted_rows(table: sp.csr_matrix, item_idx: IntArray, weights: FloatArray) -> FloatArray:
    """(B, N) sum of the rows of (B, L) items, each times its weight; -1 is no item.

    >>> table = sp.csr_matrix(np.array([[0.0, 1.0], [4.0, 2.0]], dtype=np.float32))
    >>> weighted_rows(table, np.array([[-1, 1, 0]]), np.array([[9.0, 0.5, 1.0]], dtype=np.float32))
    array([[2., 2.]], dtype=float32)
    """
    scores = np.zeros((len(item_idx), table.shape[1]), dtype=np.float32)
    add_sparse_rows(table.indptr, table.indices, table.data, item_idx, weights, scores)
    return scores


def table_arrays(table: sp.csr_matrix) -> dict[str, npt.NDArray[Any]]:
    """What safetensors writes."""
    return {
        "data": table.data.astype(np.float32),
        "indices": table.indices.astype(np.int32),
        "indptr": table.indptr.astype(np.int64),
    }


def table_from_arrays(stored: Mapping[str, npt.NDArray[Any]]) -> sp.csr_matrix:
    """What `table_arrays` gave, as a square matrix over the same memory. scipy's constructor would copy what is a view
    of a larger file. Raises BundleError for arrays that are no such table."""
    n_items = len(stored["indptr"]) - 1
    indptr, indices = stored["indptr"], stored["indices"]
    fits = indptr[0] == 0 and indptr[-1] == len(indices) == len(stored["data"]) and (np.diff(indptr) >= 0).all()
    if not fits or (len(indices) and not 0 <= indices.min() <= indices.max() < n_items):
        raise BundleError("a table of items against items is damaged; register the model again")
    table = sp.csr_matrix((n_items, n_items), dtype=np.float32)
    table.data, table.indices = stored["data"], stored["indices"]
    table.indptr = stored["indptr"].astype(np.int32)  # as scipy has it where the entries are fewer than 2^31
    return table
