"""EASE, co-visitation, popularity: their formulas by loops, and known answers."""

import numpy as np
import pytest

from recsys.columns import COVISITATION, EASE, IALS, ITEM_KNN, TWO_TOWER
from recsys.features.state import HISTORY_LENGTH
from recsys.retrieval import ease
from recsys.retrieval.ease import Ease
from recsys.retrieval.item_tables import MAX_STEPS, Covisitation
from recsys.retrieval.popularity import TAIL_SHARE, Popularity
from tests.planted import DAY, N_RATED, START, planted_histories, planted_retriever
from tests.retrieval.histories import every, state

N = 6


# --- the planted world


@pytest.mark.parametrize("name", [TWO_TOWER, EASE, IALS, ITEM_KNN, COVISITATION])
def test_nobody_is_recommended_the_other_taste(name: str) -> None:
    """Each user has rated 12 of the 18 items of one taste: the 6 best are the other 6. The two-tower model may name
    items that nobody rated."""
    h = planted_histories()
    states = h.states_at(h.user_ids[:60], START + 400 * DAY)
    item_idx, _ = planted_retriever(name).answer(states).top(4 if name == TWO_TOWER else 6)
    for user, found in enumerate(item_idx):
        assert (found % 2 == user % 2).all()
        if name != TWO_TOWER:
            rated = set(range(user % 2, N_RATED, 2))
            assert set(found[found >= 0].tolist()) <= rated - set(states.seen_idx[user].tolist())


# --- EASE

EASE_USERS = np.array([0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4])
EASE_ITEMS = np.array([0, 1, 2, 0, 1, 2, 3, 3, 3, 0, 1, 2, 5])


def test_ease_is_the_closed_form_over_the_head() -> None:
    """Item 4 has no rating and item 5 one: with min_ratings 2 the head is 0 to 3. The doubled rating counts once."""
    fitted = Ease.fit(EASE_USERS, EASE_ITEMS, N, regularisation=1.5, power=0.0, min_ratings=2)
    assert fitted.head.tolist() == [0, 1, 2, 3]
    x = np.zeros((5, 4))
    for user, item in zip(EASE_USERS, EASE_ITEMS, strict=True):
        if item < 4:
            x[user, item] = 1.0
    p = np.linalg.inv(x.T @ x + 1.5 * np.eye(4))
    b = np.eye(4) - p / np.diag(p)[None, :]
    np.testing.assert_allclose(fitted.weights, b, rtol=1e-4, atol=1e-6)
    assert np.diag(fitted.weights).tolist() == [0.0] * 4
    scores = every(fitted, state([1, 4, 5, 3]), N)[0]
    np.testing.assert_allclose(scores[:4], b[1] + b[3], rtol=1e-4, atol=1e-6)
    assert scores[4:].tolist() == [0.0, 0.0]


def test_recent_items_weigh_more_and_one_second_weighs_alike() -> None:
    fitted = Ease.fit(EASE_USERS, EASE_ITEMS, N, regularisation=1.0, power=1.0, min_ratings=2)
    b = fitted.weights
    scores = every(fitted, state([0, 1, 2], [10, 20, 30]), N)[0]
    np.testing.assert_allclose(scores[:4], b[0] / 3 + b[1] / 2 + b[2], rtol=1e-5, atol=1e-6)
    tied = every(fitted, state([0, 1, 2], [10, 30, 30]), N)[0]
    np.testing.assert_allclose(tied[:4], b[0] / 3 + 0.75 * b[1] + 0.75 * b[2], rtol=1e-5, atol=1e-6)


def test_the_head_is_the_most_rated_up_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease, "MAX_HEAD", 2)
    fitted = Ease.fit(EASE_USERS, EASE_ITEMS, N, regularisation=1.0, power=0.0, min_ratings=1)
    assert fitted.head.tolist() == [0, 1]


# --- co-visitation


def covisitation_oracle(
    users: np.ndarray, items: np.ndarray, times: np.ndarray, decay: float, damping: float
) -> np.ndarray:
    table = np.zeros((N, N))
    for a in range(len(items)):
        for b in range(a + 1, min(a + MAX_STEPS, len(items) - 1) + 1):
            if users[a] == users[b]:
                table[items[a], items[b]] += decay ** (b - a - 1)
                if times[a] == times[b]:
                    table[items[b], items[a]] += decay ** (b - a - 1)
    counts = np.array([max((items == i).sum(), 1) for i in range(N)])
    return table / counts[:, None] ** damping


def events(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three users, one of them longer than MAX_STEPS; some seconds are shared."""
    rng = np.random.default_rng(seed)
    users = np.repeat([0, 1, 2], [4, 30, 9])
    times = np.concatenate([np.sort(rng.integers(0, 15, n)) for n in (4, 30, 9)])
    return users, rng.integers(0, N - 1, len(users)), times


@pytest.mark.parametrize(("decay", "damping"), [(0.7, 0.5), (1.0, 0.0)])
def test_the_covisitation_table_equals_the_loop(decay: float, damping: float) -> None:
    users, items, times = events()
    fitted = Covisitation.fit(users, items, times, N, decay=decay, damping=damping, history_decay=0.8)
    expected = covisitation_oracle(users, items, times, decay, damping)
    np.testing.assert_allclose(fitted.table.toarray(), expected, rtol=1e-5, atol=1e-6)


def test_a_request_adds_the_rows_of_its_last_items() -> None:
    users, items, times = events()
    fitted = Covisitation.fit(users, items, times, N, decay=0.7, damping=0.5, history_decay=0.6)
    table = fitted.table.toarray()
    scores = every(fitted, state([3, 1, 2]), N)[0]
    np.testing.assert_allclose(scores, 0.36 * table[3] + 0.6 * table[1] + table[2], rtol=1e-5)
    long = state([4] + [0] * MAX_STEPS)
    weights = sum(0.6**s for s in range(MAX_STEPS))
    np.testing.assert_allclose(every(fitted, long, N)[0], weights * table[0], rtol=1e-5)
    assert long.item_idx.shape == (1, HISTORY_LENGTH)


def test_after_reads_single_entries() -> None:
    users, items, times = events()
    fitted = Covisitation.fit(users, items, times, N, decay=0.7, damping=0.5, history_decay=0.6)
    table = fitted.table.toarray()
    got = fitted.after(np.array([2, -1]), np.array([[0, -1, 4], [0, 1, 2]]))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.array([[table[2, 0], 0, table[2, 4]], [0, 0, 0]], np.float32))


# --- popularity


def test_popularity_halves_with_each_half_life() -> None:
    items = np.array([0, 0, 1, 3])
    times = np.array([100 * DAY, 90 * DAY, 80 * DAY, 70 * DAY])
    fitted = Popularity.fit(items, times, 5, cutoff=100 * DAY, half_life_days=10.0)
    expected = [1.5 + 2 * TAIL_SHARE, 0.25 + TAIL_SHARE, 0.0, 0.125 + TAIL_SHARE, 0.0]
    np.testing.assert_allclose(fitted.scores, expected, rtol=1e-6)
    item_idx, scores = fitted.answer(state([3])).top(5)
    assert item_idx.tolist() == [[0, 1, -1, -1, -1]]
    np.testing.assert_allclose(scores[0, :2], expected[:2], rtol=1e-6)
