"""Contributions sum to the score that is served. Words for people are tested in tests/serving."""

import numpy as np
import pytest

from recsys.errors import ConfigError
from recsys.ranking.explain import Contributions, contributions
from recsys.ranking.ranker import BoostedRanker, LogisticRanker, Ranker
from tests.planted import planted_rankers, planted_training_table

ROWS = planted_training_table().features[::37]


def rankers() -> dict[str, Ranker]:
    boosted, logistic = planted_rankers()
    alone = BoostedRanker(boosted.booster)
    return {"both": boosted, "trees": alone, "logistic": logistic}


@pytest.mark.parametrize("name", ["both", "trees", "logistic"])
@pytest.mark.parametrize("n", [1, len(ROWS)])
def test_they_sum_to_the_score(name: str, n: int) -> None:
    ranker = rankers()[name]
    found = contributions(ranker, ROWS[:n])
    assert found.names == ranker.feature_names
    assert found.values.shape == (n, len(found.names))
    scores = ranker.score(ROWS[:n])
    np.testing.assert_allclose(found.values.sum(axis=1) + found.bias, scores, atol=1e-4, rtol=0)


def test_the_ranker_is_its_trees_and_its_logistic_part() -> None:
    boosted, _ = planted_rankers()
    assert boosted.base is not None
    whole, base = contributions(boosted, ROWS), contributions(boosted.base, ROWS)
    trees = contributions(BoostedRanker(boosted.booster), ROWS)
    np.testing.assert_array_equal(whole.values, trees.values + base.values)
    assert whole.bias == trees.bias + base.bias
    assert base.values.any()
    assert trees.values.any()


def test_a_logistic_score_by_hand() -> None:
    """(3 - 1) / 2 * 0.5 = 0.5; a missing value is at the mean and adds nothing; bias -1."""
    ranker = LogisticRanker(("a", "b"), np.array([1, 9], "f4"), np.array([2, 3], "f4"), np.array([0.5, 4], "f4"), -1.0)
    found = contributions(ranker, np.array([[3, np.nan], [1, 12]], dtype=np.float32))
    assert found.values.tolist() == [[0.5, 0.0], [0.0, 4.0]]
    assert found.bias == -1.0


def test_the_strongest_come_first_whatever_their_sign() -> None:
    found = Contributions(("a", "b", "c", "d"), np.array([[0.1, -0.7, 0.3, -0.3]]), 2.0)
    assert found.strongest(0, 3) == [("b", -0.7), ("c", 0.3), ("d", -0.3)]
    assert found.strongest(0, 9)[3:] == [("a", 0.1)]


def test_no_row_and_another_kind_of_ranker_are_refused() -> None:
    class Fixed:
        feature_names = ("a",)

        def score(self, rows: np.ndarray) -> np.ndarray:
            return np.zeros(len(rows), dtype=np.float32)

    with pytest.raises(ValueError, match="at least one row"):
        contributions(planted_rankers()[0], ROWS[:0])
    with pytest.raises(ConfigError, match="the scores of a Fixed cannot be taken apart"):
        contributions(Fixed(), ROWS[:1])
