"""What the log of one policy says of others, over two hundred simulated weeks whose truth is known."""

import numpy as np
import pytest

from recsys.errors import DataError
from recsys.experiments.exploration import explore, slot_probabilities, thompson_order
from recsys.experiments.off_policy import LoggedAnswers, OffPolicyEstimates, estimate

USERS, ITEMS, SLOTS, VISITS, SHARE, WEEKS = 300, 60, 10, 6, 0.2, 200
ATTENTION = 1 / (1 + 0.15 * np.arange(SLOTS))
NOISES = (0.5, 1.0, 4.0)  # of the three other policies; the logged one has 2


def exposure(order: np.ndarray) -> np.ndarray:
    """(U, N) of a policy that shows its first SLOTS items in their order."""
    out = np.zeros(order.shape)
    np.put_along_axis(out, order[:, :SLOTS], np.broadcast_to(ATTENTION, (USERS, SLOTS)), axis=1)
    return out


def week(seed: int) -> list[tuple[float, OffPolicyEstimates]]:
    """(truth, estimates) of each of the other policies."""
    rng = np.random.default_rng(seed)
    utility = rng.normal(0, 0.7, ITEMS) + rng.normal(0, 1, (USERS, ITEMS))
    likes = 1 / (1 + np.exp(2 - utility))
    logged, *others = (
        np.argsort(-(utility + noise * rng.standard_normal(utility.shape)), axis=1) for noise in (2.0, *NOISES)
    )
    mu = np.full((USERS, ITEMS), SHARE / (ITEMS - SLOTS) * ATTENTION.sum())
    ranked = slot_probabilities(SLOTS, ITEMS - SLOTS, SHARE, SLOTS) @ ATTENTION
    np.put_along_axis(mu, logged[:, :SLOTS], np.broadcast_to(ranked, (USERS, SLOTS)), axis=1)
    users = np.repeat(np.arange(USERS), VISITS)
    shown = np.stack([explore(logged[u, :SLOTS], logged[u, SLOTS:], SHARE, SLOTS, rng).item_idx for u in users])
    rows = users[:, None], shown
    reward = ((rng.random(shown.shape) < ATTENTION) & (rng.random(shown.shape) < likes[rows])).astype(float)
    looks = np.bincount(shown.ravel(), np.broadcast_to(ATTENTION, shown.shape).ravel(), ITEMS)
    model = (np.bincount(shown.ravel(), reward.ravel(), ITEMS) + 1) / (looks + 5)
    out = []
    for order in others:
        pi = exposure(order)
        answers = LoggedAnswers(
            user_id=users,
            attention=ATTENTION,
            reward=reward,
            logged=mu[rows],
            target=pi[rows],
            unsupported=np.zeros(len(users)),
            predicted=model[shown],
            expected=(pi @ model)[users],
        )
        out.append((float((pi * likes).sum(axis=1).mean()), estimate(answers)))
    return out


@pytest.fixture(scope="module")
def weeks() -> list[list[tuple[float, OffPolicyEstimates]]]:
    return [week(seed) for seed in range(WEEKS)]


@pytest.mark.parametrize("policy", range(len(NOISES)))
@pytest.mark.parametrize("estimator", ["snips", "doubly_robust"])
def test_intervals_cover_the_value_of_policies_never_shown(weeks, policy: int, estimator: str):
    found = [(truth, getattr(estimates, estimator)) for truth, estimates in (each[policy] for each in weeks)]
    assert np.mean([one.low <= truth <= one.high for truth, one in found]) >= 0.93


def answers(n: int, target: float, unsupported: float = 0.0) -> LoggedAnswers:
    """n answers of one slot; the other policy would have shown the item of the first alone."""
    exposures = np.zeros((n, 1))
    exposures[0] = target
    return LoggedAnswers(np.arange(n), np.ones(1), np.ones((n, 1)), np.ones((n, 1)), exposures, np.full(n, unsupported))


def test_a_policy_that_the_log_cannot_judge_is_refused():
    with pytest.raises(DataError, match=r"5.0% of what the other policy shows could not be shown"):
        estimate(answers(500, 1.0, unsupported=0.05))
    with pytest.raises(DataError, match="as much of the other policy as 1 answers"):
        estimate(answers(500, 500.0))


def test_propensities_are_how_often_an_item_stood_in_its_slot():
    rng = np.random.default_rng(3)
    ranking, pool = np.arange(8), np.arange(8, 14)
    counts, said = np.zeros((14, 5)), np.zeros((14, 5))
    for _ in range(20_000):
        shown = explore(ranking, pool, 0.3, 5, rng)
        counts[shown.item_idx, np.arange(5)] += 1
        said[shown.item_idx, np.arange(5)] = shown.propensity
    assert np.abs(counts / 20_000 - said).max() < 0.015
    assert said.sum(axis=0) == pytest.approx(np.ones(5))


def test_without_a_share_or_a_pool_the_ranking_is_shown():
    rng = np.random.default_rng(0)
    for share, pool in ((0.0, np.arange(10, 15)), (0.5, np.arange(0))):
        shown = explore(np.arange(10), pool, share, 4, rng)
        assert shown.item_idx.tolist() == [0, 1, 2, 3]
        assert shown.propensity.tolist() == [1, 1, 1, 1]


def test_thompson_sampling_tries_the_unknown_and_settles_on_the_best():
    rng = np.random.default_rng(4)
    likes, shown = np.array([50.0, 10.0, 0.0]), np.array([100.0, 100.0, 0.0])
    firsts = [int(thompson_order(likes, shown, rng)[0]) for _ in range(500)]
    assert firsts.count(0) > 450
    assert 0 < firsts.count(2) < 50
    assert firsts.count(1) == 0
