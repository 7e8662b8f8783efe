"""Showing items of which little is known: a stated share of the slots, and the propensity of all that is shown.

Each slot is, with probability `share`, given to an item drawn from a pool; the others take the ranking in its order.
What the log must know to be used for another policy is the probability with which an item was shown in its slot.

Shapes: k slots, n ranked items, m items of the pool.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import binom

from recsys.arrays import DoubleArray, IntArray


@dataclass(frozen=True)
class Shown:
    """item_idx, propensity  (k,) what is shown, and how likely it was to be shown in its slot."""

    item_idx: IntArray
    propensity: DoubleArray


def explore(ranking: IntArray, pool: IntArray, share: float, k: int, rng: np.random.Generator) -> Shown:
    """k items of `ranking` (n,) with some of `pool` (m,) between them; the two have no item in common, and together
    at least k. An empty pool, or a share of 0, shows the ranking."""
    k = min(k, len(ranking) + len(pool))
    if share <= 0 or not len(pool):
        return Shown(ranking[:k], np.ones(min(k, len(ranking))))
    drawn = rng.permutation(pool)
    explores = rng.random(k) < share
    # A slot whose own kind has run out takes the other kind; the ranking is long enough that this is rare.
    explores &= np.cumsum(explores) <= len(drawn)
    explores |= np.cumsum(~explores) > len(ranking)
    item_idx = np.empty(k, dtype=np.int64)
    item_idx[explores] = drawn[: explores.sum()]
    item_idx[~explores] = ranking[: (~explores).sum()]
    probabilities = slot_probabilities(len(ranking), len(pool), share, k)
    slots = np.arange(k)
    propensity = np.full(k, share / len(pool))
    propensity[~explores] = probabilities[np.cumsum(~explores)[~explores] - 1, slots[~explores]]
    return Shown(item_idx, propensity)


@lru_cache(maxsize=64)
def slot_probabilities(n: int, m: int, share: float, k: int) -> DoubleArray:
    """(min(n, k), k) probability that the ranked item r is shown in slot s: r of the s slots before it were not
    explored, and neither is this one. An item of the pool has share / m in every slot.

    >>> slot_probabilities(3, 5, 0.5, 2).round(3).tolist()
    [[0.5, 0.25], [0.0, 0.25]]
    """
    rank, slot = np.arange(min(n, k))[:, None], np.arange(k)[None, :]
    if share <= 0 or m == 0:
        return np.asarray((rank == slot).astype(np.float64))
    return np.asarray(binom.pmf(rank, slot, 1 - share) * (1 - share))


def thompson_order(likes: DoubleArray, shown: DoubleArray, rng: np.random.Generator) -> IntArray:
    """The items by one draw from the Beta posterior of each like rate, best first (Chapelle and Li 2011, "An empirical
    evaluation of Thompson sampling"); the prior is one like in ten."""
    draw = rng.beta(1 + likes, 9 + np.maximum(shown - likes, 0))
    return np.asarray(np.argsort(-draw, kind="stable"))
