"""Metrics against plain Python and textbook sums, and refused ranks."""

import numpy as np
import pytest

from recsys.evaluation.metrics import LABELS, LIST_LENGTH, METRICS, check_rank, hit_at, ndcg_at, rank_in, recall_curve

RANK = np.array([1, 2, 3, 10, 11, 100, 101, 500, 0], dtype=np.int32)


def test_the_rank_in_a_list_is_that_of_plain_python() -> None:
    rng = np.random.default_rng(0)
    lists, target = rng.integers(0, 12, (200, 7)), rng.integers(0, 12, 200)
    expected = [row.index(t) + 1 if t in row else 0 for row, t in zip(lists.tolist(), target.tolist(), strict=True)]
    assert rank_in(lists, target).tolist() == expected
    assert set(expected) == set(range(8)), "every place and a miss"
    assert rank_in(np.zeros((0, 5), dtype=np.int64), np.zeros(0, dtype=np.int64)).tolist() == []


def test_ndcg_agrees_with_the_textbook_sum() -> None:
    """DCG over the whole list divided by the ideal DCG, from relevance vectors, for every rank."""
    discount = 1 / np.log2(np.arange(2, 12))
    for rank in range(LIST_LENGTH + 1):
        relevance = np.arange(1, LIST_LENGTH + 1) == rank
        textbook = (relevance[:10] * discount).sum() / discount[0]
        assert ndcg_at(np.array([rank]), 10)[0] == pytest.approx(textbook, abs=1e-15)


def test_recall_curve_equals_the_mean_of_hits() -> None:
    ks = [1, 10, 11, 100, 500]
    assert recall_curve(RANK, ks).tolist() == [hit_at(RANK, k).mean() for k in ks]


def test_every_metric_has_a_label() -> None:
    assert [*METRICS] == [*LABELS]


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (np.array([1.0]), "one-dimensional array of whole numbers"),
        (np.array([[1]]), "one-dimensional array of whole numbers"),
        (np.array([-1, 3]), r"must lie in 0\.\.500"),
        (np.array([3, 501]), r"must lie in 0\.\.500"),
    ],
)
def test_what_cannot_be_ranks_is_refused(rank: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_rank(rank)
