"""Team-draft interleaving: two rankings share one list, and people choose (Radlinski, Kurup and Joachims 2008, "How
does clickthrough data reflect retrieval quality?").

Every user compares both rankings, so it needs a fraction of the sessions of an A/B test to say which is better; by how
much, only the A/B test says.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from recsys.arrays import DoubleArray, IntArray


def team_draft(a: Sequence[int], b: Sequence[int], k: int, rng: np.random.Generator) -> tuple[list[int], IntArray]:
    """Up to k items, best first, and (k,) the team of each: 0 for a, 1 for b. In each round a coin says which ranking
    puts its best item that is not there yet first, then the other follows.

    >>> items, team = team_draft([1, 2, 3], [1, 4, 5], 4, np.random.default_rng(0))
    >>> items, team.tolist()
    ([1, 2, 4, 3], [1, 0, 1, 0])
    """
    rankings, at = (list(a), list(b)), [0, 0]
    items: list[int] = []
    team: list[int] = []
    while len(items) < k:
        first = int(rng.integers(2))
        before = len(items)
        for side in (first, 1 - first):
            ranking = rankings[side]
            while at[side] < len(ranking) and ranking[at[side]] in items:
                at[side] += 1
            if at[side] < len(ranking) and len(items) < k:
                items.append(ranking[at[side]])
                team.append(side)
        if len(items) == before:
            break
    return items, np.array(team, dtype=np.int64)


@dataclass(frozen=True)
class Preference:
    """difference: (credits of b - credits of a) / all credits, from -1 to 1, with its 95 % interval."""

    difference: float
    low: float
    high: float
    p_value: float
    n_users: int


def preference(credits_a: DoubleArray, credits_b: DoubleArray) -> Preference:
    """From (n,) credits of each user, such as likes of items of each team; the error is that of a ratio of sums of
    users. Users without any credit say nothing; fewer than two prove nothing.

    >>> preference(np.array([1.0, 0, 2]), np.array([1.0, 0, 2])).difference
    0.0
    """
    total = credits_a + credits_b
    n = int((total > 0).sum())
    if n < 2:
        return Preference(0.0, -1.0, 1.0, 1.0, n)
    difference = float((credits_b - credits_a).sum() / total.sum())
    z = ((credits_b - credits_a) - difference * total)[total > 0] / total[total > 0].mean()
    error = float(z.std(ddof=1)) / n**0.5
    reach = float(norm.isf(0.025)) * error
    p_value = float(2 * norm.sf(abs(difference) / error)) if error else 1.0
    return Preference(difference, max(difference - reach, -1.0), min(difference + reach, 1.0), p_value, n)
