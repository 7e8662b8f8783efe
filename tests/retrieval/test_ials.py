"""iALS against the equations that it solves, written as least squares, and against `implicit`."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recsys.errors import BundleError
from recsys.retrieval.ials import Ials
from recsys.retrieval.index import VectorIndex
from tests.retrieval.histories import every, state

N, USERS, DIM = 15, 40, 5
REGULARISATION, ALPHA = 2.0, 3.0
NOBODY = [4, 11]  # items without events


def events() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    user, item = np.nonzero(
        rng.random((USERS, N)) < np.where(np.arange(N) % 2 == np.arange(USERS)[:, None] % 2, 0.5, 0.1)
    )
    kept = ~np.isin(item, NOBODY)
    return user[kept], item[kept]


def fit(iterations: int = 15, power: float = 1.0, seed: int = 7, user_idx: np.ndarray | None = None) -> Ials:
    user, item = events()
    settings = {"dim": DIM, "regularisation": REGULARISATION, "alpha": ALPHA, "iterations": iterations}
    return Ials.fit(user if user_idx is None else user_idx, item, N, power=power, seed=seed, **settings)


def least_squares(vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The vector u that minimises REGULARISATION |u|^2 + sum_j c_j (p_j - y_j u)^2 over all rows y_j of `vectors`.

    A row of weight w is mixed of w parts "rated" (confidence 1 + ALPHA, target 1) and 1 - w parts "not rated"
    (confidence 1, target 0), so that c = 1 + ALPHA w and p = (1 + ALPHA) w / c."""
    confidence = 1.0 + ALPHA * weights
    target = (1.0 + ALPHA) * weights / confidence
    root = np.sqrt(confidence)
    rows = np.concatenate([root[:, None] * vectors, np.sqrt(REGULARISATION) * np.eye(DIM)])
    return np.linalg.lstsq(rows, np.append(root * target, np.zeros(DIM)), rcond=None)[0]


@pytest.mark.parametrize("power", [0.0, 0.8])
def test_the_folded_in_vector_is_the_least_squares_solution(power: float) -> None:
    """Steps back 3, 2, 1, 0, of which the middle two share a second and the mean of their weights."""
    fitted = fit(power=power)
    weight = (1.0 + np.arange(3, -1, -1)) ** -power
    weights = np.zeros(N)
    weights[[9, 2, 7, 0]] = [weight[0], weight[1:3].mean(), weight[1:3].mean(), weight[3]]
    states = state([9, 2, 7, 0], [10, 20, 20, 30])
    expected = least_squares(fitted.factors.astype(np.float64), weights)
    np.testing.assert_allclose(fitted.encode(states)[0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(every(fitted, states, N)[0], fitted.factors @ expected, rtol=1e-4, atol=1e-5)


def test_the_fit_stands_still_under_the_equations_of_the_fold_in() -> None:
    """After many rounds: an item's vector solves the same equation over the folded-in vectors of all users."""
    fitted, (user, item) = fit(iterations=300, power=0.0), events()
    users = np.array([fitted.encode(state(item[user == u].tolist()))[0] for u in range(USERS)], dtype=np.float64)
    for i in set(item.tolist()):
        weights = np.isin(np.arange(USERS), user[item == i]).astype(float)
        np.testing.assert_allclose(fitted.factors[i], least_squares(users, weights), rtol=5e-3, atol=5e-4)


def test_items_without_events_are_never_returned() -> None:
    fitted = fit()
    assert not fitted.factors[NOBODY].any()
    item_idx, _ = fitted.answer(state([1, 3])).top(N)
    assert set(item_idx[0].tolist()) == set(range(N)) - {1, 3, *NOBODY} | {-1}


def test_with_an_index_the_answer_is_the_same_and_so_it_is_saved_and_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of so few items every list is searched, so that the index is exact."""
    plain = fit()
    monkeypatch.setattr("recsys.retrieval.ials.EXACT_UP_TO", N - 1)
    monkeypatch.setattr("recsys.retrieval.index.EXACT_UP_TO", N - 1)
    indexed = fit()
    assert plain.index is None
    assert indexed.index is not None
    assert indexed.index.kind == "ivf"
    indexed.save(tmp_path)
    for states in (state([1, 3]), state([])):
        expected, scores = plain.answer(states).top(N)
        for retriever in (indexed, Ials.load(tmp_path)):
            found, found_scores = retriever.answer(states).top(N)
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_allclose(found_scores, scores, rtol=1e-5)
            np.testing.assert_allclose(
                retriever.answer(states).at(expected), plain.answer(states).at(expected), rtol=1e-5
            )
    (tmp_path / "index.ivf.faiss").unlink()
    assert Ials.load(tmp_path).index is None  # a bundle of before there was one
    VectorIndex.build(plain.factors[1:], "ivf").save(tmp_path)
    with pytest.raises(BundleError, match="is the index of other vectors"):
        Ials.load(tmp_path)


def test_items_without_events_take_no_place_in_the_index() -> None:
    """Their score is 0, better than all that is negative."""
    rng = np.random.default_rng(4)
    factors = rng.standard_normal((400, DIM)).astype(np.float32)
    factors[::3] = 0.0
    plain, indexed = (Ials(factors, 1.0, 2.0, 1.0, index) for index in (None, VectorIndex.build(factors, "ivf")))
    states = replace(state([1, 2]), seen_idx=[np.arange(300)])
    expected, scores = plain.answer(states).top(60)
    assert (scores[0, :50] < 0).any()
    assert expected[0].min() >= 300
    found, _ = indexed.answer(states).top(60)
    np.testing.assert_array_equal(found, expected)


def test_the_seed_decides_every_bit_and_the_row_numbers_of_users_none() -> None:
    """Row numbers have gaps where somebody rated only after the cutoff."""
    np.testing.assert_array_equal(fit().factors, fit().factors)
    assert (fit().factors != fit(seed=8).factors).any()
    np.testing.assert_array_equal(fit(user_idx=3 * events()[0] + 5).factors, fit().factors)


def test_a_service_does_without_the_library_that_fits() -> None:
    code = "import sys, recsys.bundle; print('recsys.retrieval.ials' in sys.modules, 'implicit' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "True False\n"
