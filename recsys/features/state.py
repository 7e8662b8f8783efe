"""A user's state: what is stored per user, and the only function that moves it forward.

Stage: features; both tracks. In: events. Out: `UserState` (one user, raw ids: what Feast keeps) and
`StateBatch` (B users as arrays over row numbers: what models read). Absent: anything derived from state and
candidate together (`candidate`), and Feast itself (`recsys.feature_store`).

Time is strict: a state as of time t holds the events with timestamp < t. A state row stamped t *contains* the
event at t, so a reader that predicts at t must ask for rows stamped before t.

Order within one second carries no meaning in MovieLens; it is fixed as (timestamp, item_id) everywhere.

Shapes: B users, L = HISTORY_LENGTH events, oldest first, right-aligned, -1 or 0 where there is none.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

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
    """What is stored for one user. All ids are raw.

    item_ids, ratings, timestamps   the last L events, oldest first, ordered by (timestamp, item_id)
    n_events, n_liked               counts over the whole history
    rating_sum, rating_square_sum   sums over the whole history; exact, because ratings are half stars
    gender, age, occupation         static profile; "" and 0 where unknown
    """

    user_id: int
    item_ids: tuple[int, ...] = ()
    ratings: tuple[float, ...] = ()
    timestamps: tuple[int, ...] = ()
    n_events: int = 0
    n_liked: int = 0
    rating_sum: float = 0.0
    rating_square_sum: float = 0.0
    gender: str = ""
    age: int = 0
    occupation: str = ""


def state_after(state: UserState, event: Event) -> UserState:
    """The state once `event` is known; the only writer of state.

    Folding it over a history gives exactly what the batch computation gives. An event that is already in the
    window (same movie, same second) changes nothing. An event older than a full window counts in the sums only.
    """
    keys = list(zip(state.timestamps, state.item_ids, strict=True))
    key = (event.timestamp, event.item_id)
    at = bisect_left(keys, key)
    if at < len(keys) and keys[at] == key:
        return state
    items, ratings, times = list(state.item_ids), list(state.ratings), list(state.timestamps)
    items.insert(at, event.item_id)
    ratings.insert(at, event.rating)
    times.insert(at, event.timestamp)
    return replace(
        state,
        item_ids=tuple(items[-HISTORY_LENGTH:]),
        ratings=tuple(ratings[-HISTORY_LENGTH:]),
        timestamps=tuple(times[-HISTORY_LENGTH:]),
        n_events=state.n_events + 1,
        n_liked=state.n_liked + (event.rating >= LIKED_RATING),
        rating_sum=state.rating_sum + event.rating,
        rating_square_sum=state.rating_square_sum + event.rating**2,
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
    seen_idx     B arrays of row numbers, ascending: every movie of the whole history
    """

    now: npt.NDArray[np.int64]
    item_idx: npt.NDArray[np.int64]
    ratings: npt.NDArray[np.float32]
    timestamps: npt.NDArray[np.int64]
    n_events: npt.NDArray[np.float64]
    n_liked: npt.NDArray[np.float64]
    rating_sum: npt.NDArray[np.float64]
    rating_square_sum: npt.NDArray[np.float64]
    profile: npt.NDArray[np.int64]
    seen_idx: Sequence[npt.NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.now)

    @property
    def cold(self) -> npt.NDArray[np.bool_]:
        """(B,) True where the history is empty."""
        return np.asarray(self.n_events == 0)

    def rows(self, index: npt.NDArray[np.integer] | slice) -> "StateBatch":
        """The batch restricted to some rows, in the order given."""
        positions = np.arange(len(self))[index]
        return StateBatch(
            self.now[index],
            self.item_idx[index],
            self.ratings[index],
            self.timestamps[index],
            self.n_events[index],
            self.n_liked[index],
            self.rating_sum[index],
            self.rating_square_sum[index],
            self.profile[index],
            [self.seen_idx[i] for i in positions],
        )


def state_batch(
    catalogue: Catalogue,
    states: Sequence[UserState],
    seen_item_ids: Sequence[npt.ArrayLike],
    now: npt.ArrayLike,
) -> StateBatch:
    """Turn stored states into the arrays that models read.

    `seen_item_ids` holds, for each user, every movie of the whole history; the window's movies are added, so a
    store whose two writes were torn apart never shows a movie again. `now` is one moment or B moments. Ids that
    the catalogue does not hold are left out of the window (they still count in the sums).
    """
    size = len(states)
    item_idx = np.full((size, HISTORY_LENGTH), -1, dtype=np.int64)
    ratings = np.zeros((size, HISTORY_LENGTH), dtype=np.float32)
    timestamps = np.zeros((size, HISTORY_LENGTH), dtype=np.int64)
    seen_idx: list[npt.NDArray[np.int64]] = []
    for row, (state, seen) in enumerate(zip(states, seen_item_ids, strict=True)):
        window = len(state.item_ids)
        ids = np.asarray(state.item_ids, dtype=np.int64), np.asarray(seen, dtype=np.int64)
        both = catalogue.to_idx(np.concatenate(ids))
        seen_idx.append(_distinct(both))
        idx = both[:window]
        known = idx >= 0
        count = int(known.sum())
        if count:
            item_idx[row, -count:] = idx[known]
            ratings[row, -count:] = np.asarray(state.ratings, dtype=np.float32)[known]
            timestamps[row, -count:] = np.asarray(state.timestamps, dtype=np.int64)[known]
    profile = catalogue.profiles.encode(
        [s.gender for s in states],
        np.array([s.age for s in states], dtype=np.float64),
        [s.occupation for s in states],
    )
    return StateBatch(
        now=np.broadcast_to(np.asarray(now, dtype=np.int64), (size,)).copy(),
        item_idx=item_idx,
        ratings=ratings,
        timestamps=timestamps,
        n_events=np.array([s.n_events for s in states], dtype=np.float64),
        n_liked=np.array([s.n_liked for s in states], dtype=np.float64),
        rating_sum=np.array([s.rating_sum for s in states], dtype=np.float64),
        rating_square_sum=np.array([s.rating_square_sum for s in states], dtype=np.float64),
        profile=profile,
        seen_idx=seen_idx,
    )


def _distinct(item_idx: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The row numbers of any order that are not -1, ascending, each once. `np.unique` takes three times as long for a
    few hundred."""
    ordered = np.sort(item_idx)
    first = np.empty(len(ordered), dtype=bool)
    first[:1] = True
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    first &= ordered >= 0
    return ordered[first]
