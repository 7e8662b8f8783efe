"""The best of many scores against a stable sort, and the weights of a history against loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from recsys.retrieval.retriever import DenseScores, recency_weights, top_k
from tests.retrieval.histories import state

TIED = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, 1e-40, -1e-40, float(np.float32(3.4e38)), np.inf, -np.inf, np.nan])


@st.composite
def scores_and_hidden(draw: st.DrawFn) -> tuple[np.ndarray, list[np.ndarray], int]:
    """(B, N) scores with ties and without, hidden columns, and a k that may exceed N."""
    shape = draw(st.integers(0, 3)), draw(st.integers(0, 40))
    scores = draw(arrays(np.float32, shape, elements=draw(st.sampled_from([TIED, st.floats(width=32)]))))
    hidden = [np.flatnonzero(row) for row in draw(arrays(bool, shape))]
    return scores, hidden, draw(st.integers(1, 45))


@pytest.mark.parametrize("no_score", [0.0, -np.inf])
@settings(deadline=None)
@given(drawn=scores_and_hidden())
def test_the_best_are_those_of_a_stable_sort(no_score: float, drawn: tuple[np.ndarray, list[np.ndarray], int]) -> None:
    scores, hidden, k = drawn
    before = scores.copy()
    item_idx, best = top_k(scores, k, hidden, no_score)
    assert item_idx.shape == best.shape == (len(scores), k)
    for row, line in enumerate(scores):
        known = np.setdiff1d(np.flatnonzero((line != no_score) & ~np.isnan(line)), hidden[row])
        expected = known[np.argsort(-line[known], kind="stable")][:k]
        n = len(expected)
        assert item_idx[row].tolist() == expected.tolist() + [-1] * (k - n)
        assert best[row].tolist() == line[expected].tolist() + [-np.inf] * (k - n)
    np.testing.assert_array_equal(scores, before)


@pytest.mark.parametrize("k", [1, 300, 5_000])
@pytest.mark.parametrize("kind", ["normal", "of one binade", "equal"])
def test_the_best_of_many_rows(k: int, kind: str) -> None:
    """More rows than are looked at together; numbers of one binade share the first bits of their keys."""
    rng, shape = np.random.default_rng(k), (70, 4_000)
    made = {"normal": rng.standard_normal, "of one binade": lambda s: 1 + rng.random(s), "equal": np.ones}[kind](shape)
    scores = made.astype(np.float32)
    item_idx, best = top_k(scores, k, [np.arange(50)] * len(scores), 0.0)
    expected = 50 + np.argsort(-scores[:, 50:], axis=1, kind="stable")[:, :k]
    n = expected.shape[1]
    np.testing.assert_array_equal(item_idx[:, :n], expected)
    np.testing.assert_array_equal(best[:, :n], np.take_along_axis(scores, expected, axis=1))
    assert (item_idx[:, n:] == -1).all()


def test_a_score_of_zero_is_no_opinion_but_can_be_asked_for() -> None:
    scores = DenseScores(np.array([[0.0, -2.0, 3.0]], np.float32), [np.array([2])])
    assert scores.top(3)[0].tolist() == [[1, -1, -1]]
    assert scores.at(np.array([[2, -1, 0, 1]])).tolist() == [[3.0, 0.0, 0.0, -2.0]]


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 2))
def test_weights_fall_with_steps_back_and_one_second_shares_the_mean(seed: int, power: float) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 65))
    times = np.sort(rng.integers(1, 1 + max(count, 1), count))
    by_step = (1.0 + np.arange(count - 1, -1, -1)) ** -power
    expected = [by_step[times == time].mean() for time in times]
    weights = recency_weights(state(rng.integers(0, 9, count).tolist(), times.tolist()), power)[0]
    np.testing.assert_allclose(weights[len(weights) - count :], expected, rtol=1e-6)
    assert not weights[: len(weights) - count].any()


def test_an_event_at_time_zero_is_not_taken_for_padding() -> None:
    assert recency_weights(state([4, 5], [0, 0]), 1.0)[0, -3:].tolist() == [0.0, 0.75, 0.75]
