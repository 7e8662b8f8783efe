"""What another policy would have earned, from the log of the one that was shown.

A person looks at slot s with a chance that depends on the slot alone, its attention (the position-based click model).
An item's exposure under a policy is the sum over slots of the probability to stand there times the attention; a
logged reward counts w times, the ratio of the item's exposures under the other policy and under the logged one (Li,
Abbasi-Yadkori, Kveton, Muthukrishnan, Vinay and Wen 2018, "Offline evaluation of ranking policies with click models").

Shapes: A answers, k slots.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from recsys.arrays import DoubleArray, IntArray
from recsys.errors import DataError

LARGEST_UNSUPPORTED = 0.02  # of the other policy's exposure that the log could never show
SMALLEST_SAMPLE = 100.0  # effective sample size, in answers


@dataclass(frozen=True)
class LoggedAnswers:
    """user_id      (A,) intervals treat the answers of one user as one unit
    attention    (k,) chance that a slot is looked at, up to a factor
    reward       (A, k) of what was shown, such as 1 where it was liked
    logged       (A, k) exposure of each shown item under the logged policy, above 0
    target       (A, k) exposure of the same item under the other policy
    unsupported  (A,) share of the other policy's exposure that falls on items which the log could not show
    predicted    (A, k) reward of an item for each unit of exposure, as a model expects it; None for no model
    expected     (A,) the model's value of the other policy's whole list
    """

    user_id: IntArray
    attention: DoubleArray
    reward: DoubleArray
    logged: DoubleArray
    target: DoubleArray
    unsupported: DoubleArray
    predicted: DoubleArray | None = None
    expected: DoubleArray | None = None


@dataclass(frozen=True)
class Estimate:
    """Reward of an answer under the other policy, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class OffPolicyEstimates:
    """doubly_robust is None without a model. effective_sample: answers of its own that would tell as much."""

    ips: Estimate
    snips: Estimate
    doubly_robust: Estimate | None
    effective_sample: float
    unsupported: float


def estimate(log: LoggedAnswers) -> OffPolicyEstimates:
    """Inverse propensity scores; the same divided by its weights (Swaminathan and Joachims 2015, "The self-normalized
    estimator for counterfactual learning"); and doubly robust (Dudík, Langford and Li 2011, "Doubly robust policy
    evaluation and learning").

    Raises DataError where the log cannot say: it could not show what the other policy shows, or too few answers count.
    """
    unsupported = float(log.unsupported.mean())
    if unsupported > LARGEST_UNSUPPORTED:
        raise DataError(
            f"{unsupported:.1%} of what the other policy shows could not be shown by the logged one"
            f" (at most {LARGEST_UNSUPPORTED:.0%}): the log says nothing of it. Explore more, or run an experiment."
        )
    w = log.target / log.logged
    weight = w @ log.attention / log.attention.sum()  # (A,), 1 on average
    sample = float(weight.sum() ** 2 / max(float((weight**2).sum()), 1e-12))
    if sample < SMALLEST_SAMPLE:
        raise DataError(
            f"the log tells as much of the other policy as {sample:.0f} answers of its own would; {SMALLEST_SAMPLE:.0f}"
            " are needed. Log for longer, explore more, or run an experiment."
        )
    earned = (w * log.reward).sum(axis=1)
    ratio = float(earned.mean() / weight.mean())
    robust = None
    if log.predicted is not None and log.expected is not None:
        residual = (w * (log.reward - log.attention * log.predicted)).sum(axis=1)
        robust = _interval(log.expected + residual, log.user_id)
    return OffPolicyEstimates(
        _interval(earned, log.user_id),
        _interval(ratio + (earned - ratio * weight) / weight.mean(), log.user_id),
        robust,
        sample,
        unsupported,
    )


def _interval(values: DoubleArray, user_id: IntArray) -> Estimate:
    """The mean over answers; its error is that of the sums of each user."""
    mean = float(values.mean())
    _, row = np.unique(user_id, return_inverse=True)
    sums = np.bincount(row, values - mean)
    reach = float(norm.isf(0.025)) * float(np.sqrt((sums**2).sum() * len(sums) / max(len(sums) - 1, 1))) / len(values)
    return Estimate(mean, mean - reach, mean + reach)
