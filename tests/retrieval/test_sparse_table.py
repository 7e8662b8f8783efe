"""Pruning and storing sparse tables, against sorted lists."""

import numpy as np
import pytest
import scipy.sparse as sp
from recsys.retrieval.sparse_table import best_of_rows, table_arrays, table_from_arrays, weighted_rows
from safetensors.numpy import load, save

from recsys.errors import BundleError


def random_table(n: int = 30) -> sp.csr_matrix:
    """Few distinct values, so that ties stand at every cut; rows of every length, the first empty, columns unsorted."""
    rng = np.random.default_rng(4)
    dense = rng.integers(1, 4, (n, n)) * (rng.random((n, n)) < np.linspace(0, 1, n)[:, None])
    table = sp.csr_matrix(dense.astype(np.float32))
    for row in range(n):
        part = slice(table.indptr[row], table.indptr[row + 1])
        order = rng.permutation(table.indptr[row + 1] - table.indptr[row])
        table.data[part], table.indices[part] = table.data[part][order], table.indices[part][order]
    table.has_sorted_indices = False
    assert table.toarray().tolist() == dense.tolist()
    return table


@pytest.mark.parametrize("most", [1, 2, 7, 29, 30, 99])
def test_the_largest_of_each_row_ties_to_the_lower_column(most: int) -> None:
    table = random_table()
    kept = best_of_rows(table, most)
    assert kept.shape == table.shape
    assert kept.dtype == np.float32
    for row, whole in enumerate(table.toarray()):
        best = sorted(np.flatnonzero(whole).tolist(), key=lambda c, whole=whole: (-whole[c], c))[:most]
        part = slice(kept.indptr[row], kept.indptr[row + 1])
        assert kept.indices[part].tolist() == sorted(best)
        assert kept.data[part].tolist() == whole[sorted(best)].tolist()


@pytest.mark.parametrize("table", [random_table(), sp.csr_matrix((5, 5), dtype=np.float32)], ids=["full", "empty"])
def test_stored_and_read_it_is_the_same(table: sp.csr_matrix) -> None:
    """Through the bytes of a safetensors file."""
    read = table_from_arrays(load(save(table_arrays(table))))
    assert read.shape == table.shape
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read.toarray(), table.toarray())


def test_weighted_rows_are_the_product_with_the_dense_table() -> None:
    """Items named twice, rows without entries, users without events, -1 anywhere."""
    rng = np.random.default_rng(1)
    table = random_table()
    item_idx = rng.integers(-1, 30, (20, 12))
    item_idx[0], item_idx[1] = -1, 0  # row 0 of the table is empty
    weights = rng.random((20, 12)).astype(np.float32)
    expected = np.zeros((20, 30))
    for user, item in zip(*np.nonzero(item_idx >= 0), strict=True):
        expected[user] += weights[user, item] * table.toarray()[item_idx[user, item]]
    got = weighted_rows(table, item_idx, weights)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert not got[:2].any()
    for user in range(20):
        np.testing.assert_array_equal(
            weighted_rows(table, item_idx[user : user + 1], weights[user : user + 1])[0], got[user]
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("indptr", np.array([1, 1, 2])),
        ("indptr", np.array([0, 2, 1])),
        ("indptr", np.array([0, 1, 3])),
        ("indices", np.array([0, 2], dtype=np.int32)),
        ("indices", np.array([-1, 1], dtype=np.int32)),
        ("data", np.ones(1, dtype=np.float32)),
    ],
)
def test_arrays_that_are_no_table_are_refused(name: str, value: np.ndarray) -> None:
    whole = {"data": np.ones(2, np.float32), "indices": np.array([1, 0], np.int32), "indptr": np.array([0, 1, 2])}
    assert table_from_arrays(whole).toarray().tolist() == [[0.0, 1.0], [1.0, 0.0]]
    with pytest.raises(BundleError, match="damaged"):
        table_from_arrays({**whole, name: value})
