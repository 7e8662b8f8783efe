"""Two rankings in one list, and what people's choices say of them."""

from itertools import pairwise

import numpy as np
import pytest

from recsys.experiments.effects import UserTotals, effect
from recsys.experiments.interleaving import preference, team_draft

ITEMS, SLOTS, USERS, VISITS = 60, 10, 300, 8
NOISES = (0.3, 0.8, 1.4, 2.2, 3.5)  # of five policies, from the best to the worst
ATTENTION = 1 / (1 + 0.15 * np.arange(SLOTS))


def compare(seed: int, better: float, worse: float) -> tuple[float, float]:
    """How many standard errors the better policy is ahead, by interleaving and by an A/B test of as many sessions."""
    rng = np.random.default_rng(seed)
    generosity = rng.normal(0, 1, USERS)
    credits, likes = np.zeros((2, USERS)), np.zeros((2, USERS))
    for user in np.repeat(np.arange(USERS), VISITS):
        utility = rng.normal(0, 1, ITEMS)
        chance = 1 / (1 + np.exp(2 - utility - generosity[user]))
        orders = [np.argsort(-(utility + noise * rng.standard_normal(ITEMS))) for noise in (worse, better)]
        items, team = team_draft(*(order.tolist() for order in orders), SLOTS, rng)
        liked = rng.random(SLOTS) < ATTENTION * chance[items]
        credits[:, user] += [(liked & (team == side)).sum() for side in (0, 1)]
        likes[:, user] += [(rng.random(SLOTS) < ATTENTION * chance[order[:SLOTS]]).sum() for order in orders]
    leaning = preference(*credits)
    shown, half = np.full(USERS // 2, float(SLOTS * VISITS)), USERS // 2
    tested = effect(UserTotals(likes[0, :half], shown), UserTotals(likes[1, half:], shown))
    return leaning.difference / (leaning.high - leaning.low) * 3.92, tested.difference / tested.standard_error


@pytest.mark.parametrize(("better", "worse"), list(pairwise(NOISES)))
def test_interleaving_orders_policies_with_a_tenth_of_the_sessions_of_an_experiment(better: float, worse: float):
    found = np.array([compare(seed, better, worse) for seed in range(6)])
    assert (found[:, 0] > 0).all()
    interleaved, tested = found.mean(axis=0)
    assert (interleaved / tested) ** 2 > 10  # sessions needed fall with the square


def test_equal_policies_are_preferred_equally():
    found = [compare(seed, 1.0, 1.0)[0] for seed in range(20)]
    assert np.mean(np.abs(found) > 1.96) <= 0.15


def test_each_team_gets_every_other_item_and_none_twice():
    items, team = team_draft(range(20), range(19, -1, -1), 10, np.random.default_rng(0))
    assert len(set(items)) == 10
    assert team.sum() == 5
    assert team_draft([1, 2], [2, 1], 10, np.random.default_rng(0))[0] in ([1, 2], [2, 1])


def test_one_user_proves_nothing():
    found = preference(np.array([0.0, 5.0]), np.array([0.0, 0.0]))
    assert (found.low, found.high, found.p_value) == (-1, 1, 1)
    assert found.n_users == 1
    assert preference(np.array([1.0, 2, 1]), np.array([2.0, 1, 3])).difference == pytest.approx(1 / 5)
