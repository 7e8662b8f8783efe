"""Every user's state at any moment, computed in one go from the events table.

`states_at` gives `StateBatch`es as of B (user, moment) pairs to training and replay; `stored_state` one row of what
Feast keeps. Both equal the fold of the same events (`state.fold`), which a property test holds. Users who rated an item
again follow the rule of `repeats`; everybody else's window is a slice.

Shapes: E events, U users, B contexts, L = HISTORY_LENGTH.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from recsys.arrays import BoolArray, DoubleArray, FloatArray, IntArray
from recsys.columns import AGE, GENDER, ITEM_ID, LIKED_RATING, OCCUPATION, RATING, TIMESTAMP, USER_ID
from recsys.features.catalogue import Catalogue
from recsys.features.repeats import previous_of_pair
from recsys.features.state import HISTORY_LENGTH, StateBatch, UserState


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
    profile   (U, 3)
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
        encoded = catalogue.profiles.encode(
            users[GENDER].fillna("").tolist(),
            users[AGE].to_numpy(np.float64, na_value=np.nan),
            users[OCCUPATION].fillna("").tolist(),
        )
        profile = np.zeros((len(user_ids), 3), dtype=np.int64)
        profile[np.searchsorted(user_ids, users[USER_ID].to_numpy(np.int64))] = encoded
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
        ids = np.asarray(user_ids, dtype=np.int64)
        if len(self.user_ids) == 0:
            return np.full(ids.shape, -1, dtype=np.int64)
        position = np.minimum(np.searchsorted(self.user_ids, ids), len(self.user_ids) - 1)
        return np.where(self.user_ids[position] == ids, position, -1)

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
        ids = np.asarray(user_ids, dtype=np.int64)
        moments = np.broadcast_to(np.asarray(now, dtype=np.int64), ids.shape).copy()
        user_idx = self.user_idx(ids)
        known = user_idx >= 0
        safe = np.where(known, user_idx, 0)
        if len(self.user_ids) == 0:
            return _cold(moments)
        starts = self.offset[safe]
        ends = np.where(known, self.ends_before(safe, moments), starts)

        positions = ends[:, None] - HISTORY_LENGTH + np.arange(HISTORY_LENGTH)[None, :]  # (B, L)
        valid = positions >= starts[:, None]
        gather = np.where(valid, positions, 0)
        for row in np.flatnonzero(self.repeats[safe]):
            window = self.window(starts[row], ends[row])[-HISTORY_LENGTH:]
            valid[row] = np.arange(HISTORY_LENGTH) >= HISTORY_LENGTH - len(window)
            gather[row, HISTORY_LENGTH - len(window) :] = window
        if len(self.timestamps) == 0:
            return replace(_cold(moments), profile=np.where(known[:, None], self.profile[safe], 0))
        return StateBatch(
            now=moments,
            item_idx=np.where(valid, self.item_idx[gather], -1),
            ratings=np.where(valid, self.ratings[gather], np.float32(0)),
            timestamps=np.where(valid, self.timestamps[gather], 0),
            n_events=(self.item_cumsum[ends] - self.item_cumsum[starts]).astype(np.float64),
            n_liked=self.liked_cumsum[ends] - self.liked_cumsum[starts],
            rating_sum=self.rating_cumsum[ends] - self.rating_cumsum[starts],
            rating_square_sum=self.square_cumsum[ends] - self.square_cumsum[starts],
            profile=np.where(known[:, None], self.profile[safe], 0),
            seen_idx=[np.unique(self.item_idx[a:b]) for a, b in zip(starts, ends, strict=True)],
        )

    def stored_state(self, user_idx: int, end: int) -> UserState:
        """The newest state of one user once the events before position `end` are known."""
        start = int(self.offset[user_idx])
        known = self.window(start, end)
        split = max(len(known) - HISTORY_LENGTH, 0)
        older, window = known[:split], known[split:]
        user_id = int(self.user_ids[user_idx])
        row = self.users.loc[user_id] if user_id in self.users.index else None
        return UserState(
            user_id=user_id,
            item_ids=tuple(self.item_ids[window].tolist()),
            ratings=tuple(self.ratings[window].tolist()),
            timestamps=tuple(self.timestamps[window].tolist()),
            n_events=len(known),
            n_liked=int(self.liked_cumsum[end] - self.liked_cumsum[start]),
            rating_sum=float(self.rating_cumsum[end] - self.rating_cumsum[start]),
            rating_square_sum=float(self.square_cumsum[end] - self.square_cumsum[start]),
            older_item_ids=tuple(self.item_ids[older].tolist()),
            older_ratings=tuple(self.ratings[older].tolist()),
            older_timestamps=tuple(self.timestamps[older].tolist()),
            gender="" if row is None or pd.isna(row[GENDER]) else str(row[GENDER]),
            age=0 if row is None or pd.isna(row[AGE]) else int(row[AGE]),
            occupation="" if row is None or pd.isna(row[OCCUPATION]) else str(row[OCCUPATION]),
        )


def _cumsum_of_latest(values: DoubleArray, previous: IntArray) -> DoubleArray:
    """(E + 1,) exclusive running sums in which a repeat adds its difference to the rating that it replaces."""
    replaced = np.where(previous >= 0, values[previous], 0.0) if len(values) else values
    return np.append(0.0, np.cumsum(values - replaced))


def _cold(moments: IntArray) -> StateBatch:
    size = len(moments)
    zeros = np.zeros(size)
    return StateBatch(
        now=moments,
        item_idx=np.full((size, HISTORY_LENGTH), -1, dtype=np.int64),
        ratings=np.zeros((size, HISTORY_LENGTH), dtype=np.float32),
        timestamps=np.zeros((size, HISTORY_LENGTH), dtype=np.int64),
        n_events=zeros,
        n_liked=zeros,
        rating_sum=zeros,
        rating_square_sum=zeros,
        profile=np.zeros((size, 3), dtype=np.int64),
        seen_idx=[np.empty(0, dtype=np.int64)] * size,
    )
