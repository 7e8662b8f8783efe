"""What an answer should have been made from: state and statistics of its moment, from raw events alone.

Stage: monitoring. In: the events table, the service's event log, `Prediction`s. Out: `UserState`s with seen items, and
`ItemStats`. Absent: Feast and every table that it reads, the fold that the service uses, and models.

What was known at an answer: events with timestamp < `now` that are in the events table, or in the log and received
before the answer. An event that was received within RACE_S of the answer may have been on either side of the read;
there, and only there, the number of events that the answer says it used decides how many of them it knew.

Shapes: P predictions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
import pandas as pd

from recsys.arrays import IntArray
from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.data.tables import Tables
from recsys.features.catalogue import Catalogue
from recsys.features.histories import Histories
from recsys.features.item_stats import SECONDS_PER_DAY, ItemStats, ItemStatsTimeline, day_of, snapshots
from recsys.features.state import UserState
from recsys.features.state_merge import distinct_rows
from recsys.monitoring.events import RECEIVED_US, ratings_of
from recsys.monitoring.prediction_log import MICROSECONDS, Prediction

RACE_S: Final = 2
KNOWN: Final = "known"  # of a logged event, the second from which on statistics count it
COLUMNS: Final = [USER_ID, ITEM_ID, RATING, TIMESTAMP]


@dataclass(frozen=True)
class Used:
    """What one answer should have used. `seen_ids`: raw ids, ascending."""

    state: UserState
    seen_ids: IntArray


class RawEvents:
    """The events table and the log, each sorted by user."""

    def __init__(self, tables: Tables, logged: pd.DataFrame) -> None:
        """`logged` as `recsys.monitoring.events.logged_events` gives it."""
        self._users = tables.users
        self._catalogue = Catalogue.from_tables(tables.items, tables.users)
        self._table = tables.events.sort_values([USER_ID, TIMESTAMP, ITEM_ID], kind="stable", ignore_index=True)
        self._logged = ratings_of(logged).sort_values([USER_ID, RECEIVED_US], kind="stable", ignore_index=True)
        self._logged[KNOWN] = np.maximum(self._logged[TIMESTAMP], self._logged[RECEIVED_US] // MICROSECONDS)
        self._table_users = self._table[USER_ID].to_numpy(np.int64)
        self._logged_users = self._logged[USER_ID].to_numpy(np.int64)
        self._timelines: dict[tuple[str, int | None], ItemStatsTimeline] = {}

    def used_by(self, predictions: Sequence[Prediction], *, back: int = 0, rating_scale: float = 1.0) -> list[Used]:
        """For each answer. What would be wrong: `back` leaves out the newest so many events of a state, `rating_scale`
        multiplies every rating."""
        chosen = [self._known(p) for p in predictions]
        lengths = [len(frame) for frame in chosen]
        events = pd.concat(chosen, ignore_index=True) if chosen else self._table[COLUMNS].iloc[:0]
        events = events.assign(**{USER_ID: np.repeat(np.arange(len(predictions)), lengths)})
        if rating_scale != 1.0:
            events[RATING] = (events[RATING] * rating_scale).astype(np.float32)
        histories = Histories.from_tables(self._catalogue, events, self._profiles(predictions))
        out = []
        for row, prediction in enumerate(predictions):
            found = histories.user_idx([row])[0]
            user_id = int(prediction.user_id or 0)
            if found < 0:
                out.append(Used(UserState(user_id), np.empty(0, dtype=np.int64)))
                continue
            end = max(int(histories.offset[found]), int(histories.offset[found + 1]) - back)
            state = replace(histories.stored_state(int(found), end), user_id=user_id)
            out.append(Used(state, histories.seen_ids(int(found), end)))
        return out

    def day_for(self, prediction: Prediction) -> int:
        """The day whose statistics the answer should have used: that of its moment, but not beyond the last day that
        changes anything in the events table. Statistics refreshed from the log may be of a later day, up to what the
        log held at the answer; then the day that the answer names is right."""
        named = prediction.item_statistics_day
        expected = min(int(day_of(prediction.now)), self.last_day)
        return named if expected <= named <= self.newest_day_for(prediction) else expected

    def newest_day_for(self, prediction: Prediction) -> int:
        """The day that statistics refreshed from the log just before the answer would have been of."""
        moment = int(day_of(prediction.now))
        received = np.searchsorted(self._log_received, prediction.received_us)
        logged = int(self._log_last_day[received - 1]) if received else 0
        return min(moment, max(self.last_day, logged))

    def holds_log(self, day: int) -> bool:
        """Whether statistics of this day, where an answer rightly names it, were made with the logged events."""
        return day > self.last_day and len(self._logged) > 0

    def stats(self, bundle_id: str, catalogue: Catalogue, day: int, with_log: bool | None = None) -> ItemStats:
        """Statistics as of a day, from raw events; with the log's events where the day says so (`holds_log`).

        A logged event counts from the day after its reception on, and an event of the table that arrives again in the
        log, or twice in it, from where it came first."""
        with_log = self.holds_log(day) if with_log is None else with_log
        key = (bundle_id, day if with_log else None)
        if key not in self._timelines:
            events = self._table[COLUMNS]
            if with_log:
                before = self._logged[self._logged[KNOWN] < day * SECONDS_PER_DAY]
                before = before.sort_values(KNOWN, ascending=False, kind="stable")
                given = events.assign(**{KNOWN: events[TIMESTAMP]})
                kept = distinct_rows(pd.concat([before[given.columns], given], ignore_index=True))
                events = kept.assign(**{TIMESTAMP: kept[KNOWN]})[COLUMNS]
            self._timelines[key] = ItemStatsTimeline(catalogue, snapshots(events))
        return self._timelines[key].as_of(day)

    @cached_property
    def _log_received(self) -> IntArray:
        return np.sort(self._logged[RECEIVED_US].to_numpy(np.int64))

    @cached_property
    def _log_last_day(self) -> IntArray:
        """For each event in the order of reception: the day from which on what was received so far changes nothing."""
        in_order = self._logged.sort_values(RECEIVED_US, kind="stable")[KNOWN].to_numpy(np.int64)
        return np.asarray(np.maximum.accumulate(day_of(in_order) + 1))

    @cached_property
    def last_day(self) -> int:
        """From which on the events table changes no statistics."""
        return int(day_of(self._table[TIMESTAMP].max())) + 1 if len(self._table) else 0

    def _known(self, prediction: Prediction) -> pd.DataFrame:
        """The events of an answer's user that it knew, sorted and distinct."""
        if prediction.user_id is None:
            return self._table[COLUMNS].iloc[:0]
        low, high = np.searchsorted(self._table_users, [prediction.user_id, prediction.user_id + 1])
        table = self._table[COLUMNS].iloc[low:high]
        table = table[table[TIMESTAMP] < prediction.now]
        low, high = np.searchsorted(self._logged_users, [prediction.user_id, prediction.user_id + 1])
        if low == high:
            return table
        logged = self._logged.iloc[low:high]
        logged = logged[logged[TIMESTAMP] < prediction.now]
        apart = logged[RECEIVED_US].to_numpy() - prediction.received_us
        surely = int((apart < -RACE_S * MICROSECONDS).sum())  # of events in the order of reception
        perhaps = int((apart < RACE_S * MICROSECONDS).sum())
        candidates = [
            distinct_rows(pd.concat([table, logged[COLUMNS].iloc[:n]], ignore_index=True))
            for n in range(surely, perhaps + 1)
        ]
        for known in candidates:
            if len(known) == prediction.n_events:
                return known
        return candidates[int((apart < 0).sum()) - surely]

    def _profiles(self, predictions: Sequence[Prediction]) -> pd.DataFrame:
        """The users table of these answers, numbered by their place."""
        wanted = pd.DataFrame({USER_ID: [p.user_id for p in predictions], "place": np.arange(len(predictions))})
        found = wanted.dropna().astype({USER_ID: np.int64}).merge(self._users, on=USER_ID, how="inner")
        return found.drop(columns=USER_ID).rename(columns={"place": USER_ID})
