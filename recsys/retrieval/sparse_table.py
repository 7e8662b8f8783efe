"""Sparse matrices: who rated what, and (N, N) tables of items against items, pruned and saved as plain arrays.

What the entries of a table mean is in `covisitation` and `item_knn`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from numba import njit

from recsys.arrays import FloatArray, IntArray
from recsys.errors import BundleError


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
    place = np.arange(len(order)) - table.indptr[rows]
    kept = order[place < most]
    best = sp.csr_matrix((table.data[kept], (rows[kept], table.indices[kept])), shape=table.shape)
    best.sort_indices()
    return best


def weighted_rows(table: sp.csr_matrix, item_idx: IntArray, weights: FloatArray) -> FloatArray:
    """(B, N) sum of the rows of (B, L) items, each times its weight; -1 is no item.

    >>> table = sp.csr_matrix(np.array([[0.0, 1.0], [4.0, 2.0]], dtype=np.float32))
    >>> weighted_rows(table, np.array([[-1, 1, 0]]), np.array([[9.0, 0.5, 1.0]], dtype=np.float32))
    array([[2., 2.]], dtype=float32)
    """
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


def table_arrays(table: sp.csr_matrix) -> dict[str, npt.NDArray[Any]]:
    """What safetensors writes."""
    return {
        "data": table.data.astype(np.float32),
        "indices": table.indices.astype(np.int32),
        "indptr": table.indptr.astype(np.int64),
    }


def table_from_arrays(stored: Mapping[str, npt.NDArray[Any]]) -> sp.csr_matrix:
    """What `table_arrays` gave, as a square matrix. Raises BundleError for arrays that are no such table: the loop
    above checks no row number."""
    try:
        data, indices, indptr = (stored[name] for name in ("data", "indices", "indptr"))
        table = sp.csr_matrix((data, indices, indptr.astype(np.int32)), shape=(len(indptr) - 1, len(indptr) - 1))
        table.check_format(full_check=True)
    except (KeyError, ValueError) as error:
        raise BundleError(f"a table of items against items is damaged ({error}); train again") from error
    return table
