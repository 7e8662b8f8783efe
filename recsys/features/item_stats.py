"""Statistics of each item at day ends.

`snapshots` makes the sparse table that Feast keeps, a row for each item and day on which it was rated. `ItemStats` are
the dense arrays as of one day that models and service read.

A snapshot stamped D 00:00 UTC holds the events before. A prediction at t reads the last snapshot at or before the start
of t's day, so it never sees its own day. Decayed counts are stored as of their snapshot and decayed further on reading.
A user counts once for an item (`state`): a repeated rating moves that user's contribution to the new day.

Shapes: N items, H = len(HALF_LIVES_DAYS).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from recsys.arrays import DoubleArray, FloatArray, IntArray
from recsys.columns import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, LIKED_RATING, RATING, TIMESTAMP, USER_ID
from recsys.features.catalogue import Catalogue
from recsys.features.state import previous_of_pair

SECONDS_PER_DAY = 86_400
HALF_LIVES_DAYS = (7, 30, 365)
DECAYED = tuple(f"decayed_{h}d" for h in HALF_LIVES_DAYS)
STATS_COLUMNS = ("snapshot_day", "n_ratings", "n_liked", "rating_sum", *DECAYED, "first_rated", "last_rated")

_DENSE: Final[dict[str, type]] = {
    **dict.fromkeys(("n_ratings", "n_liked", "rating_sum"), np.float32),
    **dict.fromkeys(("first_rated", "last_rated"), np.int64),
}
PRIOR_RATINGS, PRIOR_MEAN = 5.0, 3.5  # an item's mean rating is shrunk as if it had five ratings of 3.5

# The ranking features that depend on the item and the day alone, in the order of `ItemStats.columns`.
ITEM_FEATURES: Final = (
    *("popularity_7d", "popularity_30d", "popularity_365d", "popularity_all", "popularity_trend"),
    *("mean_rating", "liked_share", "days_since_first_rated", "days_since_last_rated"),
)
POPULARITY_ALL: Final = ITEM_FEATURES.index("popularity_all")  # log(1 + ratings so far)


def day_of(timestamp: npt.ArrayLike) -> IntArray:
    """Number of the UTC day that holds each moment; also the stamp of the last snapshot that a prediction reads.

    >>> int(day_of(86_400))
    1
    """
    return np.asarray(timestamp, dtype=np.int64) // SECONDS_PER_DAY


def snapshots(events: pd.DataFrame) -> pd.DataFrame:
    """One row for each item and day with ratings, as of the end of that day, sorted by (item_id, day).

    STATS_COLUMNS are `snapshot_day` (the day that starts where this one ends), counts and sums since the beginning,
    `decayed_*d` (ratings counted with weight 2^(-age / half-life), age in whole days), `first_rated` and `last_rated`
    (seconds UTC, of any rating).
    """
    events = events.sort_values(TIMESTAMP, kind="stable")
    users, items, times = (events[name].to_numpy(np.int64) for name in (USER_ID, ITEM_ID, TIMESTAMP))
    day, stars = day_of(times) + 1, events[RATING].to_numpy(np.float64)
    liked = (stars >= LIKED_RATING).astype(np.int64)
    frame = pd.DataFrame(
        {ITEM_ID: items, "snapshot_day": day, "n": 1, "liked": liked, "stars": stars, "first": times, "last": times}
    )
    previous = previous_of_pair(users, items)
    again = np.flatnonzero(previous >= 0)
    replaced = previous[again]
    frame.loc[again, "n"] = 0
    frame.loc[again, "liked"] -= liked[replaced]
    frame.loc[again, "stars"] -= stars[replaced]
    half_lives = np.asarray(HALF_LIVES_DAYS, dtype=np.float64)
    weight = np.ones((len(frame), len(HALF_LIVES_DAYS)))
    weight[again] -= np.exp2(-(day[again] - day[replaced])[:, None] / half_lives)
    frame[list(DECAYED)] = weight
    sums = dict.fromkeys(("n", "liked", "stars", *DECAYED), "sum")
    daily = frame.groupby([ITEM_ID, "snapshot_day"], as_index=False).agg({**sums, "first": "min", "last": "max"})
    by_item = daily.groupby(ITEM_ID, sort=False)
    stamp = pd.to_datetime(daily["snapshot_day"] * SECONDS_PER_DAY, unit="s", utc=True).astype("datetime64[us, UTC]")
    out = daily[[ITEM_ID, "snapshot_day"]].assign(**{EVENT_TIMESTAMP: stamp, CREATED_TIMESTAMP: stamp})
    out[["n_ratings", "n_liked", "rating_sum"]] = by_item[["n", "liked", "stars"]].cumsum()
    out["first_rated"], out["last_rated"] = by_item["first"].cummin(), by_item["last"].cummax()
    out[list(DECAYED)] = _decayed_counts(daily)
    return out[[ITEM_ID, EVENT_TIMESTAMP, CREATED_TIMESTAMP, *STATS_COLUMNS]]


def _decayed_counts(daily: pd.DataFrame) -> DoubleArray:
    """(rows, H) running decayed counts, from what each day adds, for rows sorted by (item, day)."""
    items, days = (daily[name].to_numpy(np.int64) for name in (ITEM_ID, "snapshot_day"))
    out = daily[list(DECAYED)].to_numpy(copy=True)
    same_item = np.append(False, items[1:] == items[:-1])
    passed = np.where(same_item, np.diff(days, prepend=0), 0)
    decay = np.exp2(-passed[:, None] / np.asarray(HALF_LIVES_DAYS, dtype=np.float64))
    for row in np.flatnonzero(same_item):
        out[row] += out[row - 1] * decay[row]
    return out


@dataclass(frozen=True)
class ItemStats:
    """Dense statistics of all N items as of the start of one day.

    day           the as-of day: nothing that happened on it or later is known
    n_ratings, n_liked, rating_sum   (N,) float32
    decayed       (N, H) float32, decayed to the start of `day`
    first_rated, last_rated          (N,) int64 seconds UTC, 0 where the item has never been rated
    through_seq   the last event of the event table that may be in them; None where they were not read from the store
    """

    day: int
    n_ratings: FloatArray
    n_liked: FloatArray
    rating_sum: FloatArray
    decayed: FloatArray
    first_rated: IntArray
    last_rated: IntArray
    through_seq: int | None = None

    def __len__(self) -> int:
        return len(self.n_ratings)

    @cached_property
    def columns(self) -> FloatArray:
        """(N, len(ITEM_FEATURES)), made once for a day; NaN for days since a rating where there has been none."""
        popularity = np.log1p(self.decayed)  # (N, H)
        n, now = self.n_ratings, self.day * SECONDS_PER_DAY
        out = np.empty((len(self), len(ITEM_FEATURES)), dtype=np.float32)
        out[:, :3] = popularity
        out[:, POPULARITY_ALL] = np.log1p(n)
        out[:, 4] = popularity[:, 0] - popularity[:, 1]
        out[:, 5] = (self.rating_sum + PRIOR_RATINGS * PRIOR_MEAN) / (n + PRIOR_RATINGS)
        out[:, 6] = (self.n_liked + 0.5 * PRIOR_RATINGS) / (n + PRIOR_RATINGS)
        for column, moment in ((7, self.first_rated), (8, self.last_rated)):
            days = np.where(n > 0, (now - moment) / SECONDS_PER_DAY, np.nan)
            out[:, column] = np.log1p(np.maximum(days, 0.0))
        return out

    @classmethod
    def from_rows(cls, catalogue: Catalogue, rows: pd.DataFrame, day: int) -> "ItemStats":
        """From at most one snapshot row an item; items without a row, or whose row is null, have zeros.

        Raises ValueError for a snapshot after `day` or an item given twice: a leak, or a broken join.
        """
        rows = rows[rows["snapshot_day"].notna()]
        idx = catalogue.to_idx(rows[ITEM_ID].to_numpy(np.int64))
        known = idx >= 0
        rows, idx = rows[known], idx[known]
        snapshot_day = rows["snapshot_day"].to_numpy(np.int64)
        if len(snapshot_day) and snapshot_day.max() > day:
            raise ValueError(f"item statistics of day {snapshot_day.max()} were given for a prediction on day {day}")
        if len(np.unique(idx)) != len(idx):
            raise ValueError("item statistics hold the same item twice")
        size = len(catalogue)

        dense: dict[str, Any] = {}
        for name, kind in _DENSE.items():
            dense[name] = np.zeros(size, dtype=kind)
            dense[name][idx] = rows[name].to_numpy(kind)
        age = (day - snapshot_day)[:, None] / np.asarray(HALF_LIVES_DAYS, dtype=np.float64)
        decayed = np.zeros((size, len(HALF_LIVES_DAYS)), dtype=np.float32)
        decayed[idx] = rows[list(DECAYED)].to_numpy(np.float64) * np.exp2(-age)
        return cls(day=day, decayed=decayed, **dense)


class ItemStatsTimeline:
    """`ItemStats` as of any day from the whole snapshot table, as Feast's point-in-time join would give them."""

    def __init__(self, catalogue: Catalogue, snapshot_table: pd.DataFrame) -> None:
        self._catalogue = catalogue
        self._table = snapshot_table.sort_values("snapshot_day", kind="stable")
        self._days = self._table["snapshot_day"].to_numpy(np.int64)

    @property
    def last_day(self) -> int:
        """The day from which on nothing changes any more; 0 for an empty table."""
        return int(self._days[-1]) if len(self._days) else 0

    def as_of(self, day: int) -> ItemStats:
        """Statistics that a prediction on `day` may read."""
        known = self._table.iloc[: int(np.searchsorted(self._days, day, side="right"))]
        return ItemStats.from_rows(self._catalogue, known.drop_duplicates(ITEM_ID, keep="last"), day)
