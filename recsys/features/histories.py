"""Every user's state at any moment, computed in one go from the events table.

Stage: features; training and replay. In: events, users, the catalogue. Out: `StateBatch`es as of B (user, moment)
pairs, and the rows of the tables that Feast keeps. Absent: the online fold (`state.state_after`); the two are held
equal by a property test.

Shapes: E events, B contexts, L = HISTORY_LENGTH.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from recsys.arrays import DoubleArray, FloatArray, IntArray
from recsys.columns import AGE, GENDER, ITEM_ID, LIKED_RATING, OCCUPATION, RATING, TIMESTAMP, USER_ID
from recsys.features.catalogue import Catalogue
from recsys.features.state import HISTORY_LENGTH, StateBatch, UserState


@dataclass(frozen=True)
class Histories:
    """All events grouped by user, oldest first; `offset[u]` to `offset[u + 1]` are user u's.

    user_ids  (U,) ascending; every user of the users table and of the events
    offset    (U + 1,)
    item_idx, item_ids, ratings, timestamps   (E,)
    rating_cumsum, square_cumsum, liked_cumsum   (E + 1,), exclusive
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
    rating_cumsum: DoubleArray
    square_cumsum: DoubleArray
    liked_cumsum: DoubleArray
    profile: IntArray

    @classmethod
    def from_tables(cls, catalogue: Catalogue, events: pd.DataFrame, users: pd.DataFrame) -> "Histories":
        """Every event's item must be in the catalogue (the data stage has seen to it)."""
        events = events.sort_values([USER_ID, TIMESTAMP, ITEM_ID], kind="stable")
        user_ids = np.union1d(users[USER_ID].to_numpy(np.int64), events[USER_ID].to_numpy(np.int64))
        ratings = events[RATING].to_numpy(np.float32)
        exact = ratings.astype(np.float64)
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
            offset=np.append(np.searchsorted(events[USER_ID].to_numpy(np.int64), user_ids), len(events)),
            item_idx=catalogue.to_idx(events[ITEM_ID].to_numpy(np.int64)),
            item_ids=events[ITEM_ID].to_numpy(np.int64),
            ratings=ratings,
            timestamps=events[TIMESTAMP].to_numpy(np.int64),
            rating_cumsum=np.append(0.0, np.cumsum(exact)),
            square_cumsum=np.append(0.0, np.cumsum(exact**2)),
            liked_cumsum=np.append(0.0, np.cumsum(exact >= LIKED_RATING)),
            profile=profile,
        )

    def user_idx(self, user_ids: npt.ArrayLike) -> IntArray:
        """Row of each user; -1 for somebody unknown."""
        ids = np.asarray(user_ids, dtype=np.int64)
        if len(self.user_ids) == 0:
            return np.full(ids.shape, -1, dtype=np.int64)
        position = np.minimum(np.searchsorted(self.user_ids, ids), len(self.user_ids) - 1)
        return np.where(self.user_ids[position] == ids, position, -1)

    def ends_before(self, user_idx: IntArray, now: IntArray) -> IntArray:
        """(B,) position after each user's last event with timestamp < now (strict)."""
        ends = np.empty(len(user_idx), dtype=np.int64)
        for row, (user, moment) in enumerate(zip(user_idx, now, strict=True)):
            low, high = self.offset[user], self.offset[user + 1]
            ends[row] = low + np.searchsorted(self.timestamps[low:high], moment, side="left")
        return ends

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
        if len(self.timestamps) == 0:
            return replace(_cold(moments), profile=np.where(known[:, None], self.profile[safe], 0))
        return StateBatch(
            now=moments,
            item_idx=np.where(valid, self.item_idx[gather], -1),
            ratings=np.where(valid, self.ratings[gather], np.float32(0)),
            timestamps=np.where(valid, self.timestamps[gather], 0),
            n_events=(ends - starts).astype(np.float64),
            n_liked=self.liked_cumsum[ends] - self.liked_cumsum[starts],
            rating_sum=self.rating_cumsum[ends] - self.rating_cumsum[starts],
            rating_square_sum=self.square_cumsum[ends] - self.square_cumsum[starts],
            profile=np.where(known[:, None], self.profile[safe], 0),
            seen_idx=[np.unique(self.item_idx[a:b]) for a, b in zip(starts, ends, strict=True)],
        )

    def stored_state(self, user_idx: int, end: int) -> UserState:
        """The row that Feast keeps for one user once the events before position `end` are known."""
        start = int(self.offset[user_idx])
        window = slice(max(start, end - HISTORY_LENGTH), end)
        user_id = int(self.user_ids[user_idx])
        row = self.users.loc[user_id] if user_id in self.users.index else None
        return UserState(
            user_id=user_id,
            item_ids=tuple(self.item_ids[window].tolist()),
            ratings=tuple(self.ratings[window].tolist()),
            timestamps=tuple(self.timestamps[window].tolist()),
            n_events=end - start,
            n_liked=int(self.liked_cumsum[end] - self.liked_cumsum[start]),
            rating_sum=float(self.rating_cumsum[end] - self.rating_cumsum[start]),
            rating_square_sum=float(self.square_cumsum[end] - self.square_cumsum[start]),
            gender="" if row is None or pd.isna(row[GENDER]) else str(row[GENDER]),
            age=0 if row is None or pd.isna(row[AGE]) else int(row[AGE]),
            occupation="" if row is None or pd.isna(row[OCCUPATION]) else str(row[OCCUPATION]),
        )

    def seen_ids(self, user_idx: int, end: int) -> IntArray:
        """Raw ids of every item that the user rated before position `end`, ascending."""
        return np.unique(self.item_ids[self.offset[user_idx] : end])


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
