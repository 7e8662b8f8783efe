"""How sure we are of a mean over events: a percentile bootstrap whose unit is the user.

Stage: evaluate. In: a value for each event and the user it belongs to. Out: mean, 95 % interval, and for two
methods on the same events the interval of their difference. Absent: which metric it is about, p-values.

E  events      U  users      M  metrics      B  resamples

Events of one user resemble each other, so drawing events one by one would make the interval too narrow
(Efron and Tibshirani 1993, ch. 8). Whole users are drawn with replacement instead; the statistic stays the
mean over events, which for a resample is sum of the drawn users' sums / sum of their counts. Only those sums
are kept, so a resample costs O(U) time and memory, whatever E and B are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd

from recsys.arrays import DoubleArray, IntArray
from recsys.columns import ITEM_ID, RANK, TIMESTAMP, USER_ID
from recsys.evaluation.metrics import event_values

LEVEL: Final = 0.95
N_BOOT: Final = 1000
SEED: Final = 0
EVENT_KEY: Final = (USER_ID, TIMESTAMP, ITEM_ID)


@dataclass(frozen=True, eq=False)
class Intervals:
    """Means over events with their 95 % intervals.

    mean, low, high   float64 (M,)
    n_events, n_users what they rest on
    degenerate        True with one user: every resample is that user, so low = mean = high says nothing
    """

    mean: DoubleArray
    low: DoubleArray
    high: DoubleArray
    n_events: int
    n_users: int
    degenerate: bool


@dataclass(frozen=True)
class PairedDifference:
    """Mean over the same events of (a minus b), its 95 % interval, and how often a resample did not favour a.

    fraction_not_positive   share of resamples whose difference is <= 0; 0.5 where both are equally good, and
                            1.0 where they never differ (the difference is then exactly 0 each time)
    """

    mean: float
    low: float
    high: float
    fraction_not_positive: float
    n_events: int
    n_users: int
    degenerate: bool


def resampled_means(sums: DoubleArray, counts: IntArray, n_boot: int = N_BOOT, seed: int = SEED) -> DoubleArray:
    """(B, M) means over events, a row for each resample of users.

    sums (U, M) and counts (U,) are per user, counts >= 1. The draw depends on U, n_boot and seed alone, so two
    methods with the same users meet the same resamples. Raises ValueError on no user or no resample.
    """
    n_users, n_metrics = sums.shape
    if n_users < 1 or n_boot < 1:
        raise ValueError(f"A bootstrap needs at least one user and one resample, not {n_users} and {n_boot}.")
    rng = np.random.default_rng(seed)
    means = np.empty((n_boot, n_metrics))
    for b in range(n_boot):
        # How often each user was drawn: multinomial. `rng.multinomial` gives the same law by U binomial draws, which
        # is about nine times slower at a million users; all resamples at once would need B x U numbers.
        drawn = np.bincount(rng.integers(0, n_users, n_users), minlength=n_users)  # (U,)
        means[b] = (drawn @ sums) / (drawn @ counts)
    return means


def bootstrap_means(user_id: IntArray, values: DoubleArray, n_boot: int = N_BOOT, seed: int = SEED) -> Intervals:
    """The mean of each column of `values` (E, M) with its interval. Rows may come in any order.

    Raises ValueError where there is no event, the lengths differ, or a value is not finite.
    """
    return _intervals(*_per_user(user_id, values), n_boot, seed)[0]


def bootstrap_means_of_each(
    user_id: IntArray, values: Iterable[DoubleArray], n_boot: int = N_BOOT, seed: int = SEED
) -> list[Intervals]:
    """`bootstrap_means` of several methods on the same events, the users drawn once for all of them.

    values  (E, M) for each method, met one at a time: only sums per user are kept. The draw depends on the users
    alone, so the numbers are those of one call a method, up to rounding. Raises ValueError as `bootstrap_means` does,
    and where there is no method.
    """
    per_user = [_per_user(user_id, of_method) for of_method in values]
    if not per_user:
        raise ValueError("There is no method whose means could be bootstrapped.")
    found, _ = _intervals(np.hstack([sums for sums, _ in per_user]), per_user[0][1], n_boot, seed)
    ends = np.cumsum([sums.shape[1] for sums, _ in per_user])[:-1]
    parts = zip(*(np.split(part, ends) for part in (found.mean, found.low, found.high)), strict=True)
    return [replace(found, mean=mean, low=low, high=high) for mean, low, high in parts]


def paired_difference(
    a: pd.DataFrame, b: pd.DataFrame, metrics: Sequence[str] = ("ndcg@10",), n_boot: int = N_BOOT, seed: int = SEED
) -> dict[str, PairedDifference]:
    """For each metric, a minus b over the same events. Frames have columns user_id, timestamp, item_id, rank.

    Rows meet by (user_id, timestamp, item_id), never by position. Raises ValueError where a key is there twice
    or only in one of the two frames.
    """
    a, b = sorted_by_event(a), sorted_by_event(b)
    require_same_events(a, b)
    delta = event_values(a[RANK].to_numpy(), metrics) - event_values(b[RANK].to_numpy(), metrics)  # (E, M)
    found, resampled = _intervals(*_per_user(a[USER_ID].to_numpy(), delta), n_boot, seed)
    not_positive = (resampled <= 0).mean(axis=0)  # (M,)
    return {
        name: PairedDifference(
            mean=float(found.mean[m]),
            low=float(found.low[m]),
            high=float(found.high[m]),
            fraction_not_positive=float(not_positive[m]),
            n_events=found.n_events,
            n_users=found.n_users,
            degenerate=found.degenerate,
        )
        for m, name in enumerate(metrics)
    }


def sorted_by_event(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows by (user_id, timestamp, item_id). Raises ValueError where a column is missing or a key is doubled."""
    if missing := [name for name in (*EVENT_KEY, RANK) if name not in frame.columns]:
        raise ValueError(f"A frame of ranks lacks the columns {', '.join(missing)}.")
    keys = [frame[name].to_numpy() for name in EVENT_KEY]
    ordered = frame.iloc[np.lexsort(keys[::-1])].reset_index(drop=True)  # lexsort: the last key leads
    twice = ordered.duplicated(subset=list(EVENT_KEY))
    if twice.any():
        raise ValueError(f"{int(twice.sum())} events are there twice, the first: {_say(ordered[twice])}.")
    return ordered


def require_same_events(a: pd.DataFrame, b: pd.DataFrame) -> None:
    """Raise ValueError unless two frames of `sorted_by_event` hold the same keys."""
    key = list(EVENT_KEY)
    if len(a) == len(b) and all(np.array_equal(a[name].to_numpy(), b[name].to_numpy()) for name in key):
        return
    merged: Any = a[key].merge(b[key], on=key, how="outer", indicator="side")
    lone = merged[merged["side"] != "both"]
    n_a, n_b = int((lone["side"] == "left_only").sum()), int((lone["side"] == "right_only").sum())
    raise ValueError(
        f"The two methods were not asked about the same events: {n_a} only in the first, {n_b} only in the second, "
        f"such as {_say(lone)}."
    )


def _say(frame: pd.DataFrame) -> str:
    return ", ".join(f"{name} {int(frame[name].iloc[0])}" for name in EVENT_KEY)


def _per_user(user_id: IntArray, values: DoubleArray) -> tuple[DoubleArray, IntArray]:
    """sums (U, M) and counts (U,), users in ascending order of their id."""
    if values.ndim != 2 or len(user_id) != len(values):
        raise ValueError(f"values must be (E, M) with a row for each of {len(user_id)} user ids, not {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError("A value to be averaged is not finite.")
    users, user_idx = np.unique(user_id, return_inverse=True)
    sums = np.empty((users.size, values.shape[1]))
    for m in range(values.shape[1]):
        sums[:, m] = np.bincount(user_idx, weights=values[:, m], minlength=users.size)
    return sums, np.bincount(user_idx, minlength=users.size)


def _intervals(sums: DoubleArray, counts: IntArray, n_boot: int, seed: int) -> tuple[Intervals, DoubleArray]:
    resampled = resampled_means(sums, counts, n_boot, seed)  # (B, M)
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)  # linear between neighbours
    n_events = int(counts.sum())
    found = Intervals(sums.sum(axis=0) / n_events, low, high, n_events, len(counts), degenerate=len(counts) == 1)
    return found, resampled
