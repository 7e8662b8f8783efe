"""Item-kNN against scikit-learn and loops."""

import numpy as np
import pytest

from recsys.retrieval import item_tables
from recsys.retrieval.item_tables import ItemKnn
from tests.retrieval.histories import every, state

N, USERS = 14, 25
NOBODY = 6  # an item without events


def events() -> tuple[np.ndarray, np.ndarray]:
    """Each user's items, some of them rated twice."""
    rng = np.random.default_rng(8)
    user, item = np.nonzero(rng.random((USERS, N)) < np.linspace(0.1, 0.7, N))
    user, item = user[item != NOBODY], item[item != NOBODY]
    twice = rng.integers(0, len(user), 20)
    return np.append(user, user[twice]), np.append(item, item[twice])


def interactions() -> np.ndarray:
    """(USERS, N) 1 where there is at least one event."""
    x = np.zeros((USERS, N))
    x[events()] = 1.0
    return x


def fit(shrinkage: float = 0.0, neighbours: int = N, power: float = 0.0) -> ItemKnn:
    return ItemKnn.fit(*events(), N, shrinkage=shrinkage, neighbours=neighbours, power=power)


def oracle(shrinkage: float) -> np.ndarray:
    """(N, N) by counting users, pair by pair."""
    fans = [set(np.flatnonzero(column).tolist()) for column in interactions().T]
    table = np.zeros((N, N))
    for i in range(N):
        for j in range(N):
            if i != j and fans[i] & fans[j]:
                table[i, j] = len(fans[i] & fans[j]) / (np.sqrt(len(fans[i]) * len(fans[j])) + shrinkage)
    return table


@pytest.mark.parametrize("shrinkage", [0.0, 1.0, 12.5])
def test_shrinkage_is_added_to_the_norm(shrinkage: float) -> None:
    np.testing.assert_allclose(fit(shrinkage).table.toarray(), oracle(shrinkage), rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 5, 99])
def test_the_table_does_not_depend_on_how_many_rows_are_made_at_once(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(2.0, 5).table
    monkeypatch.setattr(item_tables, "ROWS_AT_ONCE", rows)
    parts = fit(2.0, 5).table
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_a_history_adds_the_rows_of_its_items_recent_ones_more() -> None:
    """Steps back 3, 2, 1, 0; the two newest came in one second and share the mean of their weights."""
    fitted, table = fit(1.0, power=1.0), oracle(1.0)
    scores = every(fitted, state([2, 3, 5, 9], [10, 20, 30, 30]), N)[0]
    expected = table[2] / 4 + table[3] / 3 + 0.75 * table[5] + 0.75 * table[9]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert not every(fitted, state([]), N).any()
    assert not every(fitted, state([NOBODY]), N).any()
