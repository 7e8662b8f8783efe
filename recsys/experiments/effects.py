"""What a treatment did: differences of metrics between two groups of users, with intervals.

Users are what was assigned at random, so that they, and not their answers, are the independent units. A metric is a
ratio of two totals of each user, clicks and items shown for instance; its variance is that of the delta method (Deng,
Knoblich and Lu 2018, "Applying the delta method in metric analytics").

Shapes: n users of one arm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chisquare, norm

from recsys.arrays import DoubleArray
from recsys.errors import DataError

FEWEST_USERS = 20  # of an arm; the normal approximation needs some


@dataclass(frozen=True)
class UserTotals:
    """One arm: for each user the numerator and denominator of a metric, and the same user's metric before the
    experiment (0 where there is none) for CUPED. All (n,)."""

    numerator: DoubleArray
    denominator: DoubleArray
    before: DoubleArray | None = None


@dataclass(frozen=True)
class Effect:
    """difference: treatment minus control, with its 95 % interval and standard error; variance_reduction: the share of
    the variance that CUPED took away, 0 without it; p_value: of the fixed test, valid for one look that was planned."""

    control: float
    treatment: float
    difference: float
    low: float
    high: float
    standard_error: float
    p_value: float
    variance_reduction: float
    n_control: int
    n_treatment: int


def effect(control: UserTotals, treatment: UserTotals, alpha: float = 0.05) -> Effect:
    """The difference of a ratio metric. Users without a denominator add nothing and count as users.

    With `before` on both sides the difference is corrected by what the users differed in already: CUPED (Deng, Xu,
    Kohavi and Walker 2013, "Improving the sensitivity of online controlled experiments by utilizing pre-experiment
    data"). Raises DataError for fewer than FEWEST_USERS users in an arm, or where nothing was measured.
    """
    rate_c, z_c = _linear(control)
    rate_t, z_t = _linear(treatment)
    raw_variance = variance = _variance(z_c) + _variance(z_t)
    difference = rate_t - rate_c
    if control.before is not None and treatment.before is not None:
        pooled = np.concatenate([control.before, treatment.before])
        if (spread := float(pooled.var())) > 0:
            z = np.concatenate([z_c, z_t])
            slope = float(np.mean(z * (pooled - pooled.mean()))) / spread
            difference -= slope * float(treatment.before.mean() - control.before.mean())
            variance = _variance(z_c - slope * control.before) + _variance(z_t - slope * treatment.before)
    error = float(np.sqrt(variance))
    reach = float(norm.isf(alpha / 2)) * error
    p_value = float(2 * norm.sf(abs(difference) / error)) if error else 1.0
    reduction = 1 - variance / raw_variance if raw_variance else 0.0
    sizes = (len(z_c), len(z_t))
    return Effect(rate_c, rate_t, difference, difference - reach, difference + reach, error, p_value, reduction, *sizes)


def rate(arm: UserTotals, alpha: float = 0.05) -> tuple[float, float, float]:
    """A ratio metric and its interval, by users. Raises DataError as `effect` does."""
    ratio, z = _linear(arm)
    reach = float(norm.isf(alpha / 2) * np.sqrt(_variance(z)))
    return ratio, ratio - reach, ratio + reach


def sample_ratio_p(counts: Sequence[int], shares: Sequence[float]) -> float:
    """p-value that users fell into the arms as planned (chi-square). Below 0.001 the assignment or the logging is
    broken, and no difference should be believed (Fabijan et al. 2019, "Diagnosing sample ratio mismatch").

    >>> round(sample_ratio_p([500, 500], [0.5, 0.5]), 3), round(sample_ratio_p([450, 550], [0.5, 0.5]), 4)
    (1.0, 0.0016)
    """
    if not sum(counts):
        return 1.0
    return float(chisquare(counts, sum(counts) * np.asarray(shares)).pvalue)


def users_needed(standard_error: float, n_users: int, smallest_effect: float, power: float = 0.8) -> int:
    """Users of both arms together that find an effect of this size with this power at 5 %, two-sided, given the
    standard error that `n_users` gave.

    >>> users_needed(standard_error=0.01, n_users=1_000, smallest_effect=0.02)
    1963
    """
    factor = (norm.isf(0.025) + norm.isf(1 - power)) * standard_error / smallest_effect
    return int(np.ceil(n_users * factor**2))


def _linear(arm: UserTotals) -> tuple[float, DoubleArray]:
    """The ratio, and (n,) values of mean 0 whose mean varies as the ratio does."""
    n, shown = len(arm.denominator), float(arm.denominator.mean()) if len(arm.denominator) else 0.0
    if n < FEWEST_USERS or shown <= 0:
        raise DataError(f"an arm has {n} users; {FEWEST_USERS} with something to measure are needed.")
    rate = float(arm.numerator.mean()) / shown
    return rate, (arm.numerator - rate * arm.denominator) / shown


def _variance(z: DoubleArray) -> float:
    return float(z.var(ddof=1)) / len(z)
