"""The bootstrap against a brute-force loop, its coverage of a known truth, and pairing by key."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from recsys.evaluation.bootstrap import (
    MIN_USERS,
    Estimate,
    PairedDifference,
    bootstrap_means,
    bootstrap_means_of_each,
    paired_difference,
    rank_difference,
)
from recsys.evaluation.metrics import ndcg_at, reciprocal_rank


def events(user_ids: list[int], ranks: list[int]) -> pd.DataFrame:
    n = len(user_ids)
    return pd.DataFrame(
        {"user_id": user_ids, "timestamp": np.arange(n) + 1000, "item_id": np.arange(n) * 7 % 13, "rank": ranks}
    )


def brute_force(user_id: np.ndarray, values: np.ndarray, n_boot: int, seed: int) -> np.ndarray:
    """(B, M): draw users, lay out all their events, average. No sums, no counts."""
    users = np.unique(user_id)
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(n_boot):
        rows = [values[user_id == users[drawn]] for drawn in rng.integers(0, users.size, users.size)]
        means.append(np.concatenate(rows).mean(axis=0))
    return np.array(means)


def assert_estimates(estimates: Sequence[Estimate], values: np.ndarray, oracle: np.ndarray) -> None:
    """Means of `values` (E, M) with the percentiles of the resampled means `oracle` (B, M)."""
    expected = np.vstack([values.mean(axis=0), np.percentile(oracle, [2.5, 97.5], axis=0)])
    np.testing.assert_allclose([[e.mean, e.low, e.high] for e in estimates], expected.T, rtol=1e-12, atol=1e-14)


def test_intervals_equal_brute_force_for_methods_that_share_draws() -> None:
    rng = np.random.default_rng(5)
    user_id = rng.integers(0, 17, 120) * 11 + 3  # sparse ids, unequal numbers of events, no order
    values = rng.random((120, 3))
    each = bootstrap_means_of_each(user_id, (v for v in (values[:, :2], values[:, 2:])), n_boot=200, seed=9)
    assert [len(means.estimates) for means in each] == [2, 1]
    oracle = brute_force(user_id, values, n_boot=200, seed=9)
    assert_estimates([e for means in each for e in means.estimates], values, oracle)
    assert {(m.n_events, m.n_users) for m in each} == {(120, np.unique(user_id).size)}


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """60 users whose events share a user effect, true mean 0. Of 200 worlds 95 % should be covered (±3 s.e.: 90 to
    99.6 %); the interval that ignores users covers far fewer."""
    rng = np.random.default_rng(3)
    user_id = np.repeat(np.arange(60), 8)
    covered = naive = 0
    for world in range(200):
        values = rng.normal(size=60)[user_id] + rng.normal(size=480)
        (estimate,) = bootstrap_means(user_id, values[:, None], n_boot=300, seed=world).estimates
        covered += not (estimate.above_zero or estimate.below_zero)
        (alone,) = bootstrap_means(np.arange(480), values[:, None], n_boot=300, seed=world).estimates
        naive += not (alone.above_zero or alone.below_zero)
    assert 180 <= covered <= 199
    assert naive < 150


@pytest.mark.parametrize("users", range(1, MIN_USERS))
def test_too_few_users_give_a_mean_and_no_claim(users: int) -> None:
    ids = np.array([*range(users), 0])
    (estimate,) = bootstrap_means(ids, np.arange(users + 1.0)[:, None]).estimates
    assert estimate == Estimate(users / 2, None, None)
    better = rank_difference(ids, np.full(len(ids), 1), np.full(len(ids), 3))["ndcg@10"]
    assert better == PairedDifference(0.5, None, None, None, users + 1, users)


def test_paired_difference_meets_by_key_not_by_position() -> None:
    """a has ranks 1, 3, 0 and b 3, 1, 7: NDCG differences 1/2, -1/2, -1/3, mean -1/9, in whatever row order."""
    a, b = events([1, 1, 2], [1, 3, 0]), events([1, 1, 2], [3, 1, 7])
    straight = paired_difference(a, b)["ndcg@10"]
    assert straight.mean == pytest.approx(-1 / 9, abs=1e-15)
    assert paired_difference(a.iloc[::-1], b.iloc[[1, 2, 0]])["ndcg@10"] == straight
    assert (straight.n_events, straight.n_users) == (3, 2)


def test_rank_difference_equals_brute_force() -> None:
    rng = np.random.default_rng(8)
    user_ids, (a, b) = rng.integers(0, 12, 90), rng.integers(0, 30, (2, 90))
    differences = rank_difference(user_ids, a, b, ["mrr", "ndcg@10"], n_boot=150, seed=4)
    assert list(differences) == ["mrr", "ndcg@10"]
    delta = np.column_stack([reciprocal_rank(a) - reciprocal_rank(b), ndcg_at(a, 10) - ndcg_at(b, 10)])
    oracle = brute_force(user_ids, delta, n_boot=150, seed=4)
    assert_estimates([*differences.values()], delta, oracle)
    assert [d.fraction_not_positive for d in differences.values()] == (oracle <= 0).mean(axis=0).tolist()


@pytest.mark.parametrize(("rank", "expected"), [(3, (0.0, 0.0, 0.0, 1.0)), (1, (0.5, 0.5, 0.5, 0.0))])
def test_equal_methods_never_differ_and_a_better_one_always_does(rank: int, expected: tuple[float, ...]) -> None:
    d = rank_difference(np.arange(5), np.full(5, rank), np.full(5, 3))["ndcg@10"]
    assert (d.mean, d.low, d.high, d.fraction_not_positive) == expected


def test_other_events_are_refused_with_an_example() -> None:
    a, b = events([1, 2, 3], [1, 1, 1]), events([1, 2, 4], [1, 1, 1])
    with pytest.raises(ValueError, match=r"1 only in the first, 1 only in the second.*user_id 3, timestamp 1002"):
        paired_difference(a, b)
    with pytest.raises(ValueError, match="1 only in the first, 0 only in the second"):
        paired_difference(a, a.iloc[:2])
    with pytest.raises(ValueError, match="one-to-one"):
        paired_difference(pd.concat([a, a.iloc[[1]]]), a)


def test_nothing_to_average_and_what_is_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one user and one resample, not 0 and 1000"):
        bootstrap_means(np.array([], dtype=np.int64), np.empty((0, 1)))
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_means(np.array([1, 2]), np.array([[1.0], [np.nan]]))
