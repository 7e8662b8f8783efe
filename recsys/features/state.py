"""A user's state: what is stored per user, and the only function that moves it forward.

`UserState` is one user with raw ids: what Feast keeps. `StateBatch` is B users as arrays over row numbers: what models
read. A state as of time t holds the events with timestamp < t. Order within one second carries no meaning in MovieLens;
it is fixed as (timestamp, item_id) everywhere.

A user and an item count once, in states, histories and statistics alike: the rating with the latest timestamp stands,
of equally late ones the one received last (the later row of a table). When an item was first and last rated is about
the item, so every rating counts there.

Shapes: B users, L = HISTORY_LENGTH events, oldest first, right-aligned, -1 or 0 where there is none.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from recsys.arrays import BoolArray, DoubleArray, FloatArray, IntArray
from recsys.columns import LIKED_RATING
from recsys.features.catalogue import Catalogue

HISTORY_LENGTH = 64  # L; the last events that a state keeps whole


@dataclass(frozen=True)
class Event:
    """One rating. `timestamp` in whole seconds UTC."""

    item_id: int
    rating: float
    timestamp: int


@dataclass(frozen=True)
class UserState:
    """What is stored for one user. All ids are raw; unknown profile is "" or 0. A newest state knows every event so
    far; a past one, as of a moment, lacks `older_*`.

    item_ids, ratings, timestamps   the last L rated items, oldest first, ordered by (timestamp, item_id)
    n_events to rating_square_sum   over the whole history; exact, because ratings are half stars
    older_*       the rest of the history, in the same order; states as of a past moment leave it out
    through_seq   the last event of the table (`recsys.events`) that the state knows of
    """

    user_id: int
    item_ids: tuple[int, ...] = ()
    ratings: tuple[float, ...] = ()
    timestamps: tuple[int, ...] = ()
    n_events: int = 0
    n_liked: int = 0
    rating_sum: float = 0.0
    rating_square_sum: float = 0.0
    older_item_ids: tuple[int, ...] = ()
    older_ratings: tuple[float, ...] = ()
    older_timestamps: tuple[int, ...] = ()
    gender: str = ""
    age: int = 0
    occupation: str = ""
    through_seq: int = 0

    @property
    def seen_item_ids(self) -> tuple[int, ...]:
        """Every item of the whole history, of a newest state."""
        return self.older_item_ids + self.item_ids


def previous_of_pair(user_ids: IntArray, item_ids: IntArray) -> IntArray:
    """Of each row, in the order of time, the position of the row before it with the same user and item; -1 for none.

    >>> previous_of_pair(np.array([1, 1, 2, 1, 1]), np.array([7, 8, 7, 7, 7])).tolist()
    [-1, -1, -1, 0, 3]
    """
    order = np.lexsort((item_ids, user_ids))  # stable: the rows of a pair keep their order
    same = (user_ids[order[1:]] == user_ids[order[:-1]]) & (item_ids[order[1:]] == item_ids[order[:-1]])
    previous = np.full(len(order), -1, dtype=np.int64)
    previous[order[1:][same]] = order[:-1][same]
    return previous


def fold(state: UserState, events: Iterable[Event]) -> UserState:
    """The newest state after `events`, given in the order received. Nothing else adds events to a state.

    Exact for any events in any split: it equals the batch computation (`Histories`). `through_seq` stays as it is.
    """
    known = zip(
        state.seen_item_ids, state.older_timestamps + state.timestamps, state.older_ratings + state.ratings, strict=True
    )
    history = {item_id: (timestamp, rating) for item_id, timestamp, rating in known}
    changed = False
    for event in events:
        before = history.get(event.item_id)
        if before is None or event.timestamp >= before[0]:
            history[event.item_id] = (event.timestamp, event.rating)
            changed = True
    if not changed:
        return state
    ordered = sorted((timestamp, item_id, rating) for item_id, (timestamp, rating) in history.items())
    timestamps, item_ids, ratings = zip(*ordered, strict=True)
    split = max(len(ordered) - HISTORY_LENGTH, 0)
    return replace(
        state,
        item_ids=item_ids[split:],
        ratings=ratings[split:],
        timestamps=timestamps[split:],
        n_events=len(ordered),
        n_liked=sum(rating >= LIKED_RATING for rating in ratings),
        rating_sum=float(sum(ratings)),
        rating_square_sum=float(sum(rating**2 for rating in ratings)),
        older_item_ids=item_ids[:split],
        older_ratings=ratings[:split],
        older_timestamps=timestamps[:split],
    )


@dataclass(frozen=True)
class StateBatch:
    """B users at B moments, as models read them.

    now          (B,) int64, the moment of each prediction, seconds UTC
    item_idx     (B, L) int64, row numbers, right-aligned, -1 where there is no event
    ratings      (B, L) float32, stars, 0 where there is no event
    timestamps   (B, L) int64, seconds UTC, 0 where there is no event
    n_events, n_liked, rating_sum, rating_square_sum   (B,) float64, over the whole history
    profile      (B, 3) int64, indices of gender, age bracket, occupation; 0 is unknown
    seen_idx     B arrays of row numbers, ascending: every item of the whole history
    """

    now: IntArray
    item_idx: IntArray
    ratings: FloatArray
    timestamps: IntArray
    n_events: DoubleArray
    n_liked: DoubleArray
    rating_sum: DoubleArray
    rating_square_sum: DoubleArray
    profile: IntArray
    seen_idx: Sequence[IntArray]

    def __len__(self) -> int:
        return len(self.now)

    @property
    def cold(self) -> BoolArray:
        """(B,) True where the history is empty."""
        return np.asarray(self.n_events == 0)

    def rows(self, index: npt.NDArray[np.integer] | slice) -> "StateBatch":
        """The batch restricted to some rows, in the order given."""
        arrays = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "seen_idx"}
        return StateBatch(**arrays, seen_idx=[self.seen_idx[i] for i in np.arange(len(self))[index]])


def state_batch(catalogue: Catalogue, states: Sequence[UserState], now: npt.ArrayLike) -> StateBatch:
    """Newest states as the arrays that models read. `now` is one moment or B moments.

    Ids that the catalogue does not hold are left out of the window; they still count in the sums.
    """
    size = len(states)
    item_idx = np.full((size, HISTORY_LENGTH), -1, dtype=np.int64)
    ratings = np.zeros((size, HISTORY_LENGTH), dtype=np.float32)
    timestamps = np.zeros((size, HISTORY_LENGTH), dtype=np.int64)
    seen_idx: list[IntArray] = []
    for row, state in enumerate(states):
        seen = catalogue.to_idx(np.asarray(state.seen_item_ids, dtype=np.int64))
        seen_idx.append(np.sort(seen[seen >= 0]))
        idx = seen[len(state.older_item_ids) :]
        known = idx >= 0
        count = int(known.sum())
        if count:
            item_idx[row, -count:] = idx[known]
            ratings[row, -count:] = np.asarray(state.ratings, dtype=np.float32)[known]
            timestamps[row, -count:] = np.asarray(state.timestamps, dtype=np.int64)[known]
    sums = {
        name: np.array([getattr(state, name) for state in states], dtype=np.float64)
        for name in ("n_events", "n_liked", "rating_sum", "rating_square_sum")
    }
    ages = np.array([s.age for s in states], dtype=np.float64)
    return StateBatch(
        now=np.broadcast_to(np.asarray(now, dtype=np.int64), (size,)).copy(),
        item_idx=item_idx,
        ratings=ratings,
        timestamps=timestamps,
        **sums,
        profile=catalogue.encode_profiles([s.gender for s in states], ages, [s.occupation for s in states]),
        seen_idx=seen_idx,
    )
