"""One visit: a list is shown, its slots are looked at with a position bias, items are watched and rated.

The click model is the position-based one (Craswell et al. 2008, "An experimental comparison of click position-bias
models"): the slot alone decides whether it is looked at, so `attention` is its exact propensity.

Every draw is a hash of who, which visit and what, not the next number of a generator: two worlds of one seed meet the
same luck whatever their recommenders show (common random numbers), which makes paired comparisons sharp. NumPy's keyed
generator, Philox, would need an object for each visit and item.

Shapes: B visits, k slots, M slots that showed an item.
"""

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from recsys.arrays import BoolArray, DoubleArray, FloatArray, IntArray
from recsys.columns import LIKED_RATING
from recsys.data.synthetic.people import NOISE_STARS
from recsys.simulation.truth import Utility

ATTENTION_FALL: Final = 0.15
SLOT_S: Final = 20  # from one slot to the next
FIRST_VISIT, GAP, SECOND_OF_DAY, LOOK, WATCH, STARS = range(6)  # what a draw decides


def attention(k: int) -> DoubleArray:
    """(k,) probability that a slot is looked at.

    >>> attention(3).round(3)
    array([1.   , 0.87 , 0.769])
    """
    return np.asarray(1.0 / (1.0 + ATTENTION_FALL * np.arange(k)))


def luck(seed: int, purpose: int, *keys: npt.NDArray[np.integer]) -> DoubleArray:
    """Uniform draws in (0, 1), in the shape to which the keys broadcast; equal keys, equal draws. Keys are folded in by
    splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators")."""
    state = np.zeros(1, np.uint64)
    for key in (np.array([seed]), np.array([purpose]), *keys):
        state = (state ^ key.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return np.asarray(((state >> np.uint64(11)) + np.float64(0.5)) * 2.0**-53)


@dataclass(frozen=True)
class Visits:
    """Who comes, in the order of time. All (B,). person_idx: row in the world's `people`; number: this person's visits
    before this one; occurred_at_s: seconds UTC; newcomer: not in the data set."""

    person_idx: IntArray
    user_id: IntArray
    number: IntArray
    occurred_at_s: IntArray
    newcomer: BoolArray

    def __len__(self) -> int:
        return len(self.user_id)

    def take(self, rows: IntArray | BoolArray) -> "Visits":
        """Some of them, such as those of one arm of an experiment."""
        return Visits(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class Outcomes:
    """What came of every slot that showed an item, visit by visit, down the list; `pandas.DataFrame(vars(outcomes))` is
    a table of it. All (M,). visit_idx: row in the visits; position: 0 is the first slot; only what was looked at is
    watched; rating: float32 stars 1..5, NaN where the item was not watched; occurred_at_s: seconds UTC."""

    visit_idx: IntArray
    user_id: IntArray
    item_id: IntArray
    position: IntArray
    looked: BoolArray
    watched: BoolArray
    rating: FloatArray
    occurred_at_s: IntArray

    @property
    def liked(self) -> BoolArray:
        """(M,)"""
        return self.rating >= LIKED_RATING


def look(visits: Visits, lists: IntArray, utility: Utility, seed: int) -> Outcomes:
    """What comes of lists (B, k) of item ids, -1 where a slot is empty; `utility` (B, k) of what they show.

    Pure: the same visits and lists have the same outcomes, and another item in one slot changes that slot alone.
    """
    user, visit = visits.user_id[:, None], visits.number[:, None]
    looked = luck(seed, LOOK, user, visit, lists) < attention(lists.shape[1])
    watched = looked & (luck(seed, WATCH, user, visit, lists) < utility.watch)
    # Without the visit: an opinion is the person's of the item, whenever the two meet.
    stars = np.clip(np.rint(utility.stars + NOISE_STARS * ndtri(luck(seed, STARS, user, lists))), 1, 5)
    rating = np.where(watched, stars, np.nan).astype(np.float32)
    row, slot = shown = np.nonzero(lists >= 0)
    at_s = visits.occurred_at_s[row] + SLOT_S * slot
    return Outcomes(row, visits.user_id[row], lists[shown], slot, looked[shown], watched[shown], rating[shown], at_s)
