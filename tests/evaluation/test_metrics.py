"""Exact values of the metrics, worked by hand, and refused ranks."""

import math

import numpy as np
import pytest

from recsys.evaluation.metrics import (
    LABELS,
    LIST_LENGTH,
    METRICS,
    check_rank,
    event_values,
    hit_at,
    ndcg_at,
    rank_in,
    recall_curve,
    reciprocal_rank,
)

RANK = np.array([1, 2, 3, 10, 11, 100, 101, 500, 0], dtype=np.int32)


def test_the_rank_in_a_list_is_that_of_plain_python() -> None:
    rng = np.random.default_rng(0)
    lists, target = rng.integers(0, 12, (200, 7)), rng.integers(0, 12, 200)
    expected = [row.index(t) + 1 if t in row else 0 for row, t in zip(lists.tolist(), target.tolist(), strict=True)]
    found = rank_in(lists, target)
    assert found.tolist() == expected
    assert set(expected) == set(range(8)), "every place and a miss"
    assert np.issubdtype(found.dtype, np.integer)
    assert rank_in(np.zeros((0, 5), dtype=np.int64), np.zeros(0, dtype=np.int64)).tolist() == []


def test_ndcg_agrees_with_the_textbook_sum() -> None:
    """DCG over the whole list divided by the ideal DCG, from relevance vectors, for every rank."""
    discount = 1 / np.log2(np.arange(2, 12))
    for rank in range(LIST_LENGTH + 1):
        relevance = np.zeros(LIST_LENGTH)
        if rank:
            relevance[rank - 1] = 1
        textbook = (relevance[:10] * discount).sum() / discount[0]
        assert ndcg_at(np.array([rank]), 10)[0] == pytest.approx(textbook, abs=1e-15)


def test_reciprocal_rank_counts_a_miss_as_zero() -> None:
    expected = [1, 1 / 2, 1 / 3, 1 / 10, 1 / 11, 1 / 100, 1 / 101, 1 / 500, 0]
    np.testing.assert_allclose(reciprocal_rank(RANK), expected, rtol=0, atol=1e-15)


def test_event_values_has_a_column_for_each_metric_in_order() -> None:
    values = event_values(np.array([2, 0]))
    assert values.shape == (2, len(METRICS))
    assert values[0].tolist() == pytest.approx([1 / math.log2(3), 1, 0.5, 1, 1])
    assert values[1].tolist() == [0, 0, 0, 0, 0]
    assert [*METRICS] == [*LABELS]


def test_recall_curve_equals_the_mean_of_hits() -> None:
    ks = [1, 10, 11, 100, 500]
    assert recall_curve(RANK, ks).tolist() == [hit_at(RANK, k).mean() for k in ks]


@pytest.mark.parametrize("rank", [np.array([1.0]), np.array([[1]]), np.array([True])])
def test_ranks_of_the_wrong_kind_are_refused(rank: np.ndarray) -> None:
    with pytest.raises(ValueError, match="one-dimensional array of whole numbers"):
        check_rank(rank)


@pytest.mark.parametrize("rank", [np.array([-1, 3]), np.array([3, 501])])
def test_ranks_outside_the_list_are_refused(rank: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must lie in 0\.\.500"):
        check_rank(rank)
