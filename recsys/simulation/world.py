"""The living world: day by day who visits, what they make of the lists they are shown, and how all of it changes.

A world is a function of truth, history, settings, start, seed and the lists. A person visits at most once a day, so one
call can answer all visits of a day.

Shapes: N items, P people of the world, B visits, k slots.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pandas as pd

from recsys.arrays import DoubleArray, IntArray
from recsys.columns import ITEM_ID, TIMESTAMP, USER_ID
from recsys.data.synthetic.size import DAY_S
from recsys.errors import ConfigError
from recsys.features.catalogue import positions_of
from recsys.simulation.sessions import FIRST_VISIT, GAP, SECOND_OF_DAY, Outcomes, Visits, attention, look, luck
from recsys.simulation.truth import DRIFT_DAYS, Truth, Utility

LATEST_S: Final = DAY_S - 3600  # when a visit may begin, so that it ends on its day
# Factors on the expected time to the next visit: for each liked item, in all at the least, where nothing was liked.
LIKE_SHORTENS, SHORTEST, NOTHING_LIKED = 0.8, 0.4, 1.3


@dataclass(frozen=True)
class WorldSettings:
    """n_people      of whom `share_new` are not in the data set, and arrive over `days`
    share_held_back  of the items, drawn at random: released evenly over the first four fifths of `days`
    trend_day        when `trend_share` of the items, alike in their factors, begin to gain `trend_logits`; None: never
    drift_days       tastes have gone 63 % of their way by then; fewer are faster
    """

    n_people: int = 500
    share_new: float = 0.3
    days: int = 60
    share_held_back: float = 0.1
    trend_day: int | None = 30
    trend_share: float = 0.1
    trend_logits: float = 1.5
    drift_days: float = DRIFT_DAYS

    def __post_init__(self) -> None:
        shares = (self.share_new, self.share_held_back, self.trend_share)
        if min(self.n_people, self.days) < 1 or self.drift_days <= 0 or not all(0 <= share < 1 for share in shares):
            raise ConfigError(f"world: n_people, days and drift_days are above 0, shares in [0, 1); got {self}")


def first_day_s(events: pd.DataFrame) -> int:
    """Midnight UTC after the last event, in seconds."""
    return (int(events[TIMESTAMP].max()) // DAY_S + 1) * DAY_S


class LivingWorld:
    """truth: with the releases and the trend of this world. people: its own P, known ones first, as of the start or
    their arrival. held_back: ids of the items that are released later. Not safe to share between threads."""

    def __init__(self, truth: Truth, history: pd.DataFrame, settings: WorldSettings, start_s: int, seed: int) -> None:
        """`history` (user_id, item_id): what known people have seen, except what is held back. Models must not learn of
        that either: train on `known(events)`. Raises ConfigError for more people than the truth has."""
        self.start_s, self.seed = start_s, seed
        n_new = round(settings.share_new * settings.n_people)
        n_old, n_to_come = settings.n_people - n_new, len(truth.people) - truth.n_known
        if n_old > truth.n_known or n_new > n_to_come:
            has = f"the truth has {truth.n_known} and {n_to_come}. Ask for fewer, or make it with more new ones."
            raise ConfigError(f"The world wants {n_old} known and {n_new} new people, {has}")
        rng = np.random.default_rng(seed)
        old = np.sort(rng.choice(truth.n_known, n_old, replace=False))
        people = truth.people.take(np.concatenate([old, truth.n_known + np.arange(n_new)]))
        self._newcomer = np.arange(len(people)) >= n_old
        arrivals = np.sort(rng.integers(settings.days, size=n_new))  # (n_new,) days
        taste = people.taste_at(np.where(self._newcomer, people.arrived_at_s, start_s))
        self.people = replace(
            people,
            taste=taste,
            drift=people.taste + people.drift - taste,  # the rest of the way
            arrived_at_s=start_s + DAY_S * np.concatenate([np.zeros(n_old, np.int64), arrivals]),
            drift_days=settings.drift_days,
        )
        waits = -np.log(luck(seed, FIRST_VISIT, people.user_ids[:n_old])) / people.visits_per_day[:n_old]
        self._next_day: IntArray = np.concatenate([waits.astype(np.int64), arrivals])  # (P,)
        self._n_visits: IntArray = np.zeros(len(people), np.int64)

        later = rng.permutation(len(truth.item_ids))[: round(settings.share_held_back * len(truth.item_ids))]
        days = 1 + np.arange(len(later)) * settings.days * 4 // 5 // max(len(later), 1)
        released_at_s = truth.released_at_s.copy()
        released_at_s[later] = start_s + DAY_S * days
        self.truth = replace(truth, released_at_s=released_at_s)
        if settings.trend_day is not None:
            trend_at_s = start_s + DAY_S * settings.trend_day
            like = truth.factors @ truth.factors[rng.choice(np.flatnonzero(released_at_s <= trend_at_s))]  # (N,)
            rank = np.argsort(np.argsort(-like, kind="stable"))
            trend = np.where(rank < settings.trend_share * len(like), settings.trend_logits, 0).astype(np.float32)
            self.truth = replace(self.truth, trend=trend, trend_at_s=trend_at_s)
        self.held_back: IntArray = np.sort(truth.item_ids[later])

        self._seen = np.zeros((len(people), len(truth.item_ids)), np.bool_)  # (P, N)
        person = positions_of(people.user_ids, history[USER_ID])  # the ids ascend, and newcomers' are the largest
        item = positions_of(truth.item_ids, history[ITEM_ID])
        ours = (person >= 0) & (item >= 0)
        self._seen[person[ours], item[ours]] = True
        self._seen[:, later] = False

    def known(self, events: pd.DataFrame) -> pd.DataFrame:
        """Those of a data set's events that are known at the start: none about an item held back."""
        return events[~events[ITEM_ID].isin(self.held_back)]

    def visits(self, day: int) -> Visits:
        """Who comes on a day, from 0. Somebody whose visit was not recorded comes again."""
        person = np.flatnonzero(self._next_day <= day)
        draws = luck(self.seed, SECOND_OF_DAY, self.people.user_ids[person], self._n_visits[person])
        second = (LATEST_S * draws).astype(np.int64)
        order = np.argsort(second, kind="stable")
        person, moment_s = person[order], self.start_s + DAY_S * day + second[order]
        return Visits(person, self.people.user_ids[person], self._n_visits[person], moment_s, self._newcomer[person])

    def utility(self, visits: Visits, lists: IntArray | None) -> Utility:
        """For each visitor, of item ids (B, k), or of all items, (B, N), where None. `watch` is 0 for what they have
        seen, what is not released, and an empty slot, -1. Raises ValueError for an unknown item, or one shown twice."""
        seen, item_idx = self._seen[visits.person_idx], None  # (B, N)
        if lists is not None:
            item_idx = positions_of(self.truth.item_ids, lists)
            ordered = np.sort(item_idx, axis=1)
            twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
            if twice.any() or ((item_idx < 0) & (lists != -1)).any():
                raise ValueError("a list shows an item twice, or one that the world does not have")
            seen = np.take_along_axis(seen, item_idx, axis=1) | (item_idx < 0)
        utility = self.truth.utility(self.people.take(visits.person_idx), item_idx, visits.occurred_at_s)
        return replace(utility, watch=np.where(seen, 0.0, utility.watch))

    def look(self, visits: Visits, lists: IntArray) -> Outcomes:
        """What the visitors make of their lists (B, k). Changes nothing: `record` does."""
        return look(visits, lists, self.utility(visits, lists), self.seed)

    def expected_likes(self, visits: Visits, lists: IntArray) -> DoubleArray:
        """(B,) liked items that lists (B, k) bring on average, by the truth: what outcomes estimate with noise."""
        utility = self.utility(visits, lists)
        return np.asarray((attention(lists.shape[1]) * utility.watch * utility.like).sum(axis=1))

    def oracle(self, visits: Visits, k: int) -> IntArray:
        """(B, min(k, N)) item ids, the list with the most `expected_likes`; -1 where nothing is left."""
        utility = self.utility(visits, None)
        value = utility.watch * utility.like  # (B, N)
        best = np.argsort(-value, axis=1)[:, :k]
        return np.where(np.take_along_axis(value, best, axis=1) > 0, self.truth.item_ids[best], -1)

    def record(self, visits: Visits, outcomes: Outcomes) -> None:
        """The visits have happened: what was watched is seen, and the pleased come back sooner."""
        person = visits.person_idx
        viewer = person[outcomes.visit_idx[outcomes.watched]]
        self._seen[viewer, positions_of(self.truth.item_ids, outcomes.item_id[outcomes.watched])] = True
        n_liked = np.bincount(outcomes.visit_idx[outcomes.liked], minlength=len(visits))
        factor = np.where(n_liked > 0, np.maximum(LIKE_SHORTENS**n_liked, SHORTEST), NOTHING_LIKED)
        draws = luck(self.seed, GAP, visits.user_id, visits.number)
        wait: DoubleArray = np.ceil(-np.log(draws) / self.people.visits_per_day[person] * factor)
        today = (visits.occurred_at_s - self.start_s) // DAY_S
        self._next_day[person] = today + np.maximum(wait, 1).astype(np.int64)
        self._n_visits[person] += 1
