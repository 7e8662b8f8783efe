"""How sure we are of a mean over events: a percentile bootstrap that draws whole users with replacement.

Events of one user resemble each other, so drawing events one by one would make the interval too narrow
(Efron and Tibshirani 1993, ch. 8). The statistic stays the mean over events. Fewer than MIN_USERS users give no
interval: below five even unanimous differences leave a sign test at p > 0.05 (0.5**4 = 0.0625).

E  events      U  users      M  metrics      B  resamples
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
import pandas as pd

from recsys.arrays import DoubleArray, IntArray
from recsys.columns import ITEM_ID, RANK, TIMESTAMP, USER_ID
from recsys.evaluation.metrics import event_values

LEVEL: Final = 0.95
N_BOOT: Final = 1000
SEED: Final = 0
MIN_USERS: Final = 5
EVENT_KEY: Final = (USER_ID, TIMESTAMP, ITEM_ID)


@dataclass(frozen=True)
class Bootstrap:
    """How the intervals of a report were drawn."""

    n_boot: int = N_BOOT
    seed: int = SEED
    level: float = LEVEL


@dataclass(frozen=True)
class Estimate:
    """A mean over events with its 95 % interval; `low` and `high` are None where there is none."""

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def above_zero(self) -> bool:
        return self.low is not None and self.low > 0

    @property
    def below_zero(self) -> bool:
        return self.high is not None and self.high < 0


@dataclass(frozen=True)
class PairedDifference(Estimate):
    """The mean of (a minus b) over the same events. fraction_not_positive: share of resamples whose difference is <= 0,
    1.0 where the two never differ, None where there is no interval."""

    fraction_not_positive: float | None = None
    n_events: int = 0
    n_users: int = 0


@dataclass(frozen=True)
class Means:
    """An estimate for each metric."""

    estimates: tuple[Estimate, ...]
    n_events: int
    n_users: int


def resampled_means(sums: DoubleArray, counts: IntArray, n_boot: int = N_BOOT, seed: int = SEED) -> DoubleArray:
    """(B, M) means over events, a row for each resample of users.

    sums (U, M) and counts (U,) are per user, counts >= 1. The draw depends on U, n_boot and seed alone. Raises
    ValueError on no user or no resample.
    """
    n_users, n_metrics = sums.shape
    if n_users < 1 or n_boot < 1:
        raise ValueError(f"A bootstrap needs at least one user and one resample, not {n_users} and {n_boot}.")
    rng = np.random.default_rng(seed)
    means = np.empty((n_boot, n_metrics))
    for b in range(n_boot):
        # How often each user was drawn. `rng.multinomial` is about nine times slower at a million users; all resamples
        # at once would need B x U numbers.
        drawn = np.bincount(rng.integers(0, n_users, n_users), minlength=n_users)  # (U,)
        means[b] = (drawn @ sums) / (drawn @ counts)
    return means


def bootstrap_means(user_id: IntArray, values: DoubleArray, n_boot: int = N_BOOT, seed: int = SEED) -> Means:
    """The mean of each column of `values` (E, M) with its interval.

    Raises ValueError where there is no event or a value is not finite.
    """
    return bootstrap_means_of_each(user_id, [values], n_boot, seed)[0]


def bootstrap_means_of_each(
    user_id: IntArray, values: Iterable[DoubleArray], n_boot: int = N_BOOT, seed: int = SEED
) -> list[Means]:
    """`bootstrap_means` of several methods, (E, M) each, on the same events; the users are drawn once for all."""
    per_user = [_per_user(user_id, of_method) for of_method in values]  # only sums per user are kept
    counts = per_user[0][1]
    estimates, _ = _estimates(np.hstack([sums for sums, _ in per_user]), counts, n_boot, seed)
    remaining = iter(estimates)
    return [Means(tuple(islice(remaining, sums.shape[1])), int(counts.sum()), len(counts)) for sums, _ in per_user]


def rank_difference(
    user_id: IntArray,
    a: IntArray,
    b: IntArray,
    metrics: Sequence[str] = ("ndcg@10",),
    n_boot: int = N_BOOT,
    seed: int = SEED,
) -> dict[str, PairedDifference]:
    """For each metric, that of the ranks `a` minus that of `b`, (E,) each, event by event."""
    sums, counts = _per_user(user_id, event_values(a, metrics) - event_values(b, metrics))
    estimates, resampled = _estimates(sums, counts, n_boot, seed)
    not_positive = (resampled <= 0).mean(axis=0)  # (M,)
    n_events, n_users = int(counts.sum()), len(counts)
    return {
        name: PairedDifference(e.mean, e.low, e.high, None if e.low is None else float(share), n_events, n_users)
        for name, e, share in zip(metrics, estimates, not_positive, strict=True)
    }


def paired_difference(
    a: pd.DataFrame, b: pd.DataFrame, metrics: Sequence[str] = ("ndcg@10",)
) -> dict[str, PairedDifference]:
    """`rank_difference` of two measurements, frames with columns user_id, timestamp, item_id, rank.

    Rows meet by (user_id, timestamp, item_id), never by position. Raises ValueError where an event is there twice or
    only in one of the two.
    """
    both = a.merge(b, on=[*EVENT_KEY], how="outer", validate="one_to_one", suffixes=("_a", "_b"), indicator="side")
    lone = both[both["side"] != "both"]
    if len(lone):
        n_a, n_b = (int((lone["side"] == side).sum()) for side in ("left_only", "right_only"))
        example = ", ".join(f"{name} {int(lone[name].iloc[0])}" for name in EVENT_KEY)
        raise ValueError(
            f"The two methods were not measured on the same events: {n_a} only in the first, {n_b} only in the second, "
            f"such as {example}."
        )
    ranks = both[f"{RANK}_a"].to_numpy(), both[f"{RANK}_b"].to_numpy()
    return rank_difference(both[USER_ID].to_numpy(), *ranks, metrics)


def _per_user(user_id: IntArray, values: DoubleArray) -> tuple[DoubleArray, IntArray]:
    """sums (U, M) and counts (U,), users in ascending order of their id."""
    if not np.isfinite(values).all():
        raise ValueError("A value to be averaged is not finite.")
    users, user_idx = np.unique(user_id, return_inverse=True)
    sums = np.column_stack([np.bincount(user_idx, weights=column, minlength=len(users)) for column in values.T])
    return np.asarray(sums, dtype=np.float64), np.bincount(user_idx)


def _estimates(sums: DoubleArray, counts: IntArray, n_boot: int, seed: int) -> tuple[list[Estimate], DoubleArray]:
    """An estimate for each column of `sums`, and the resampled means (B, M)."""
    resampled = resampled_means(sums, counts, n_boot, seed)
    ends = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)  # linear between neighbours
    means = sums.sum(axis=0) / int(counts.sum())
    enough = len(counts) >= MIN_USERS
    return [
        Estimate(float(mean), float(low) if enough else None, float(high) if enough else None)
        for mean, low, high in zip(means, *ends, strict=True)
    ], resampled
