"""Differences between two groups of people, over many simulated experiments whose truth is known."""

from dataclasses import dataclass

import numpy as np
import pytest

from recsys.errors import DataError
from recsys.experiments.effects import Effect, UserTotals, effect, rate, sample_ratio_p, users_needed
from recsys.experiments.sequential import SequentialTest

USERS, DAYS, RATE, SESSIONS = 1_000, 14, 0.25, 0.4  # SESSIONS: of a user and day, ten items each


@dataclass(frozen=True)
class Outcome:
    fixed: Effect
    p_value: float  # of the sequential test that was looked at every day
    covered: bool  # by its interval, at every look


def run(rng: np.random.Generator, lift: float) -> Outcome:
    """Two weeks of people who differ in how often they come and how much they like."""
    likes, active = rng.beta(12 * RATE, 12 * (1 - RATE), USERS), rng.gamma(2, SESSIONS / 2, USERS)
    treated = rng.random(USERS) < 0.5
    shown = 10 * rng.poisson(active * DAYS)
    before = np.where(shown > 0, rng.binomial(shown, likes) / np.maximum(shown, 1), 0.0)
    chance = np.clip(likes * (1 + lift * treated), 0, 1)
    numerator, denominator = np.zeros(USERS), np.zeros(USERS)
    test, p_value, covered = SequentialTest(expected=0.02), 1.0, True
    for _ in range(DAYS):
        shown = 10 * rng.poisson(active)
        numerator, denominator = numerator + rng.binomial(shown, chance), denominator + shown
        found = effect(
            UserTotals(numerator[~treated], denominator[~treated], before[~treated]),
            UserTotals(numerator[treated], denominator[treated], before[treated]),
        )
        p_value = test.p_value(found.difference, found.standard_error, p_value)
        covered &= abs(found.difference - lift * RATE) <= test.half_width(found.standard_error)
    return Outcome(found, p_value, covered)


@pytest.fixture(scope="module")
def without_effect() -> list[Outcome]:
    rng = np.random.default_rng(20)
    return [run(rng, lift=0.0) for _ in range(1_000)]


@pytest.fixture(scope="module")
def with_effect() -> list[Outcome]:
    rng = np.random.default_rng(21)
    return [run(rng, lift=0.1) for _ in range(1_000)]


def test_two_equal_arms_differ_in_five_percent_of_experiments(without_effect):
    assert np.mean([o.fixed.p_value < 0.05 for o in without_effect]) == pytest.approx(0.05, abs=0.014)


def test_looking_every_day_finds_no_more_than_five_percent(without_effect):
    assert np.mean([o.p_value < 0.05 for o in without_effect]) <= 0.05
    assert np.mean([o.covered for o in without_effect]) >= 0.95


def test_the_interval_covers_a_known_effect(with_effect):
    covered = [o.fixed.low <= 0.1 * RATE <= o.fixed.high for o in with_effect]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.014)
    assert np.mean([o.p_value < 0.05 for o in with_effect]) > 0.4


def test_the_interval_of_one_rate_covers_it_though_the_answers_of_a_user_hang_together():
    rng = np.random.default_rng(22)
    covered = []
    for _ in range(1_000):
        likes, shown = rng.beta(3, 9, 300), 10 * (1 + rng.poisson(2, 300))
        _, low, high = rate(UserTotals(rng.binomial(shown, likes).astype(float), shown.astype(float)))
        covered.append(low <= 0.25 <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.014)


def test_what_people_did_before_takes_variance_away(with_effect):
    assert np.mean([o.fixed.variance_reduction for o in with_effect]) == pytest.approx(0.33, abs=0.05)


def test_a_planted_sample_ratio_mismatch_is_found():
    rng = np.random.default_rng(0)
    even = [sample_ratio_p([n := int(rng.binomial(20_000, 0.5)), 20_000 - n], [0.5, 0.5]) for _ in range(1_000)]
    assert np.mean(np.array(even) < 0.001) < 0.005
    assert sample_ratio_p([9_600, 10_400], [0.5, 0.5]) < 0.001


def test_the_users_needed_give_the_power_they_promise():
    rng = np.random.default_rng(1)
    n = users_needed(standard_error=2 / np.sqrt(100), n_users=100, smallest_effect=0.2) // 2  # of unit variance
    difference = rng.standard_normal((2_000, n)).mean(axis=1) - rng.normal(0.2, 1, (2_000, n)).mean(axis=1)
    assert np.mean(np.abs(difference) > 1.96 * np.sqrt(2 / n)) == pytest.approx(0.8, abs=0.03)


def test_too_few_users_or_nothing_measured_are_refused():
    few = UserTotals(np.ones(5), np.ones(5))
    nothing = UserTotals(np.zeros(50), np.zeros(50))
    for arm in (few, nothing):
        with pytest.raises(DataError, match="are needed"):
            effect(arm, arm)
