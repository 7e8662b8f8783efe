"""The best of dense scores against a stable sort, with many ties. Stage: retrieval."""

import numpy as np
import pytest

from recsys.retrieval.popularity import Popularity
from recsys.retrieval.retriever import DenseScores, recency_weights
from tests.retrieval.histories import state

B, N = 40, 60


def scores() -> np.ndarray:
    """Few distinct values, positive, zero and negative; users with nothing but one sign, and with nothing at all."""
    rng = np.random.default_rng(6)
    values = rng.integers(-3, 4, (B, N)).astype(np.float32)
    values[0], values[1], values[2] = 0.0, 2.0, -1.0
    values[3, 5:] = 0.0
    return values


def seen() -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [np.flatnonzero(rng.random(N) < share) for share in np.linspace(0, 1, B)]


@pytest.mark.parametrize("k", [1, 2, 7, 30, N - 1, N, N + 5])
def test_the_best_by_score_then_by_row_number(k: int) -> None:
    item_idx, best = DenseScores(scores(), seen()).top(k)
    for row, values in enumerate(scores()):
        said = [i for i in range(N) if values[i] != 0 and i not in set(seen()[row].tolist())]
        expected = sorted(said, key=lambda i, values=values: (-values[i], i))[:k]
        missing = k - len(expected)
        assert item_idx[row].tolist() == expected + [-1] * missing
        assert best[row].tolist() == values[expected].tolist() + [-np.inf] * missing


def test_there_is_a_list_of_seen_items_for_every_user() -> None:
    with pytest.raises(ValueError, match="zip"):
        DenseScores(scores(), seen()[:-1]).top(3)


def test_asking_leaves_the_scores_alone() -> None:
    values = scores()
    DenseScores(values, seen()).top(9)
    np.testing.assert_array_equal(values, scores())


@pytest.mark.parametrize("k", [1, 7, 30, N + 5])
def test_popularity_answers_as_dense_scores_would(k: int) -> None:
    everybody = np.random.default_rng(8).integers(0, 4, N).astype(np.float32)
    fitted = Popularity(everybody)
    for hidden in seen():
        states = state([])
        states.seen_idx[0] = hidden  # type: ignore[index]
        got = fitted.answer(states)
        expected = DenseScores(everybody[None], [hidden])
        for first, second in zip(got.top(k), expected.top(k), strict=True):
            np.testing.assert_array_equal(first, second)
        asked = np.array([[3, -1, N - 1, 0]])
        np.testing.assert_array_equal(got.at(asked), expected.at(asked))


def test_weights_of_a_history_that_fills_the_state_and_of_shared_seconds() -> None:
    full = recency_weights(state(list(range(30)) + list(range(34))), 0.5)[0]
    np.testing.assert_array_equal(full, ((1.0 + np.arange(63, -1, -1)) ** -0.5).astype(np.float32))
    tied = recency_weights(state([1, 2, 3, 4], [5, 5, 5, 5]), 1.0)[0]
    np.testing.assert_allclose(tied[-4:], [25 / 48] * 4, rtol=1e-6)
    assert not recency_weights(state([]), 1.0).any()
