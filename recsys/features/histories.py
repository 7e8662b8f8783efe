"""Every user's state at any moment, computed in one go from the events table.

`states_at` equals the fold of the same events (`state.fold`), which a property test holds.

Shapes: E events, U users, B contexts, L = HISTORY_LENGTH.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from recsys.arrays import BoolArray, DoubleArray, FloatArray, IntArray
from recsys.columns import AGE, GENDER, ITEM_ID, LIKED_RATING, OCCUPATION, RATING, TIMESTAMP, USER_ID
from recsys.features.catalogue import Catalogue, positions_of
from recsys.features.state import HISTORY_LENGTH, StateBatch, UserState, previous_of_pair, state_batch


@dataclass(frozen=True)
class Histories:
    """All events grouped by user, oldest first; `offset[u]` to `offset[u + 1]` are user u's.

    user_ids  (U,) ascending; every user of the users table and of the events
    offset    (U + 1,)
    item_idx, item_ids, ratings, timestamps   (E,)
    next_of_pair  (E,) position at which the same user rates the same item again; E where that never happens
    repeats   (U,) True for users who rated an item again
    item_cumsum, rating_cumsum, square_cumsum, liked_cumsum   (E + 1,), exclusive: what each event adds to the user's
              sums; a repeat adds the difference to the rating that it replaces
    profile   (U + 1, 3), the last row for somebody unknown
    """

    catalogue: Catalogue
    users: pd.DataFrame
    user_ids: IntArray
    offset: IntArray
    item_idx: IntArray
    item_ids: IntArray
    ratings: FloatArray
    timestamps: IntArray
    next_of_pair: IntArray
    repeats: BoolArray
    item_cumsum: IntArray
    rating_cumsum: DoubleArray
    square_cumsum: DoubleArray
    liked_cumsum: DoubleArray
    profile: IntArray

    @classmethod
    def from_tables(cls, catalogue: Catalogue, events: pd.DataFrame, users: pd.DataFrame) -> "Histories":
        """Every event's item must be in the catalogue. Of equal (user, timestamp, item) the later row counts."""
        events = events.sort_values([USER_ID, TIMESTAMP, ITEM_ID], kind="stable")
        owners, item_ids = events[USER_ID].to_numpy(np.int64), events[ITEM_ID].to_numpy(np.int64)
        user_ids = np.union1d(users[USER_ID].to_numpy(np.int64), owners)
        ratings = events[RATING].to_numpy(np.float32)
        stars = ratings.astype(np.float64)
        previous = previous_of_pair(owners, item_ids)
        again = np.flatnonzero(previous >= 0)
        next_of_pair = np.full(len(events), len(events), dtype=np.int64)
        next_of_pair[previous[again]] = again
        profile = np.zeros((len(user_ids) + 1, 3), dtype=np.int64)
        profile[np.searchsorted(user_ids, users[USER_ID].to_numpy(np.int64))] = catalogue.encode_profiles(
            users[GENDER].fillna("").tolist(),
            users[AGE].to_numpy(np.float64, na_value=np.nan),
            users[OCCUPATION].fillna("").tolist(),
        )
        return cls(
            catalogue=catalogue,
            users=users.set_index(USER_ID),
            user_ids=user_ids,
            offset=np.append(np.searchsorted(owners, user_ids), len(events)),
            item_idx=catalogue.to_idx(item_ids),
            item_ids=item_ids,
            ratings=ratings,
            timestamps=events[TIMESTAMP].to_numpy(np.int64),
            next_of_pair=next_of_pair,
            repeats=np.isin(user_ids, owners[again]),
            item_cumsum=np.append(0, np.cumsum(previous < 0)),
            rating_cumsum=_cumsum_of_latest(stars, previous),
            square_cumsum=_cumsum_of_latest(stars**2, previous),
            liked_cumsum=_cumsum_of_latest((stars >= LIKED_RATING).astype(np.float64), previous),
            profile=profile,
        )

    def user_idx(self, user_ids: npt.ArrayLike) -> IntArray:
        """Row of each user; -1 for somebody unknown."""
        return positions_of(self.user_ids, user_ids)

    @cached_property
    def _order(self) -> tuple[IntArray, int, int]:
        """(E,) ascending numbers, user * span + time - earliest; the earliest timestamp; the span."""
        earliest, latest = (int(self.timestamps.min()), int(self.timestamps.max())) if len(self.timestamps) else (0, 0)
        span = latest - earliest + 2
        owner = np.repeat(np.arange(len(self.user_ids)), np.diff(self.offset))
        return owner * span + self.timestamps - earliest, earliest, span

    def ends_before(self, user_idx: IntArray, now: IntArray) -> IntArray:
        """(B,) position after each user's last event with timestamp < now (strict)."""
        order, earliest, span = self._order
        moment = np.clip(now, earliest, earliest + span - 1) - earliest
        return np.searchsorted(order, user_idx * span + moment, side="left")

    def window(self, start: int, end: int) -> IntArray:
        """Positions of what counts of a user's events from `start` to before `end`, oldest first."""
        positions = np.arange(start, end)
        return positions[self.next_of_pair[start:end] >= end]

    def states_at(self, user_ids: npt.ArrayLike, now: npt.ArrayLike) -> StateBatch:
        """States as of B moments: each knows its user's events with timestamp < now. Unknown users are cold."""
        user_idx = self.user_idx(user_ids)
        moments = np.broadcast_to(np.asarray(now, dtype=np.int64), user_idx.shape).copy()
        if len(self.timestamps) == 0:
            cold = state_batch(self.catalogue, [UserState(0)] * len(moments), moments)
            return replace(cold, profile=self.profile[user_idx])
        starts = self.offset[user_idx]  # of somebody unknown (-1): the end of all events
        ends = np.where(user_idx >= 0, self.ends_before(user_idx, moments), starts)
        positions = ends[:, None] - HISTORY_LENGTH + np.arange(HISTORY_LENGTH)[None, :]  # (B, L)
        valid = positions >= starts[:, None]
        gather = np.where(valid, positions, 0)
        for row in np.flatnonzero(self.repeats[user_idx]):
            window = self.window(starts[row], ends[row])[-HISTORY_LENGTH:]
            valid[row] = np.arange(HISTORY_LENGTH) >= HISTORY_LENGTH - len(window)
            gather[row, HISTORY_LENGTH - len(window) :] = window
        return StateBatch(
            now=moments,
            item_idx=np.where(valid, self.item_idx[gather], -1),
            ratings=np.where(valid, self.ratings[gather], np.float32(0)),
            timestamps=np.where(valid, self.timestamps[gather], 0),
            n_events=(self.item_cumsum[ends] - self.item_cumsum[starts]).astype(np.float64),
            n_liked=self.liked_cumsum[ends] - self.liked_cumsum[starts],
            rating_sum=self.rating_cumsum[ends] - self.rating_cumsum[starts],
            rating_square_sum=self.square_cumsum[ends] - self.square_cumsum[starts],
            profile=self.profile[user_idx],
            seen_idx=[np.unique(self.item_idx[a:b]) for a, b in zip(starts, ends, strict=True)],
        )


def _cumsum_of_latest(values: DoubleArray, previous: IntArray) -> DoubleArray:
    """(E + 1,) exclusive running sums in which a repeat adds its difference to the rating that it replaces."""
    replaced = np.where(previous >= 0, values[previous], 0.0) if len(values) else values
    return np.append(0.0, np.cumsum(values - replaced))
