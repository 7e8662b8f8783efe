"""Pruning and storing sparse tables, against sorted lists."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file

from recsys.errors import BundleError
from recsys.retrieval.item_tables import ItemKnn, best_of_rows, weighted_rows


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


@pytest.mark.parametrize("most", [1, 7, 30, 99])
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
        ("indices", np.array([0, 2], dtype=np.int32)),
        ("indices", np.array([-1, 1], dtype=np.int32)),
        ("data", np.ones(1, dtype=np.float32)),
    ],
)
def test_arrays_that_are_no_table_are_refused(name: str, value: np.ndarray, tmp_path: Path) -> None:
    ItemKnn(sp.csr_matrix(np.array([[0, 1], [1, 0]], np.float32)), 1.0).save(tmp_path)
    assert ItemKnn.load(tmp_path).table.toarray().tolist() == [[0.0, 1.0], [1.0, 0.0]]
    path = tmp_path / "item_knn.safetensors"
    save_file({**load_file(path), name: value}, path)
    with pytest.raises(BundleError, match="damaged"):
        ItemKnn.load(tmp_path)
