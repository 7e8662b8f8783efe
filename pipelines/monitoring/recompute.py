"""Logged answers computed again, by the code that serves, from the data set and the event table.

The state is made from the data set and the user's ratings up to the answer's `state_seq`, by the batch code and not by
the fold that the service uses; the item statistics from the events up to `statistics_seq`. The bundle that the answer
names then answers again, many users at a time. Feast is not asked.

Shapes: A answers of a batch, K candidates, F features.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import pandas as pd

from pipelines.training_set import with_later_ratings
from recsys.arrays import IntArray
from recsys.bundle import Bundle
from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.data.tables import Tables
from recsys.errors import RecsysError
from recsys.events import RATING_KIND, EventTable
from recsys.features.histories import Histories
from recsys.features.item_stats import ItemStatsTimeline, day_of, snapshots
from recsys.features.state import StateBatch
from recsys.monitoring.prediction_log import NONE, filters_of
from recsys.recommender import Recommendations, Recommender, RequestContext

ANSWER: Final = ["request_id", USER_ID, "received"]  # columns that tell answers apart
BATCH: Final = 256  # answers computed at once
REFRESH_S: Final = 600  # the service may take so long to read the statistics of a day that has begun
SEQ: Final = "seq"
# What the batch has in common: one call of `Recommender.recommend` has one of each.
TOGETHER: Final = ["bundle_id", "statistics_day", "statistics_seq", "list_length", "diversity", "filters", "unranked"]

# Answers that no log could say enough of, however well the service does.
FURTHER_PAGE: Final = "a further page of a list"
HISTORY_GIVEN: Final = "its history came with the request and is not kept"
BY_DESIGN: Final = (FURTHER_PAGE, HISTORY_GIVEN)


@dataclass(frozen=True)
class Recomputed:
    """Some answers: `logged` and `expected` have the same rows and columns, one row for each item that was logged."""

    logged: pd.DataFrame
    expected: pd.DataFrame


class Recomputer:
    """Not for several threads. `load` gives a bundle by its id and raises RecsysError where there is none."""

    def __init__(self, tables: Tables, events: EventTable, load: Callable[[str], Bundle]) -> None:
        rows = [(e.user_id, e.item_id, e.value, e.occurred_at, e.seq) for e in events.read() if e.kind == RATING_KIND]
        columns = [USER_ID, ITEM_ID, RATING, TIMESTAMP, SEQ]
        later = pd.DataFrame(rows, columns=columns).astype({RATING: np.float32})
        self._tables = tables
        self._later = later[later[ITEM_ID].isin(tables.items[ITEM_ID])].astype(
            {name: np.int64 for name in columns if name != RATING}
        )
        known = pd.concat([tables.events[columns[:-1]].assign(**{SEQ: 0}), self._later])
        self._events = known.sort_values([USER_ID, SEQ], kind="stable", ignore_index=True)
        self._timeline = cache(self._make_timeline)
        self._load, self.recommender = load, cache(self._recommender)

    def left_out(self, answers: pd.DataFrame) -> pd.Series:
        """For each answer why it cannot be computed again; "" where it can."""
        degraded = answers["degraded"].str.split(",")
        without_state = degraded.map(lambda parts: "user_state" in parts)
        reasons = {
            FURTHER_PAGE: answers["first_position"] > 1,
            HISTORY_GIVEN: answers[USER_ID] == NONE,
            "the cold-start list, in place of an answer": degraded.map(lambda parts: "retrieval" in parts),
            "answered without the user's state, as it says": without_state | (answers["state_seq"] == NONE),
            "its filters were too long to keep": answers["filters"].isna(),
            "its bundle is gone": ~answers["bundle_id"]
            .map(lambda name: self.recommender(name) is not None)
            .astype(bool),
        }
        return pd.Series(np.select(list(reasons.values()), list(reasons), default=""), index=answers.index)

    def _recommender(self, bundle_id: str) -> Recommender | None:
        """None where the bundle is gone, or is none that this code reads."""
        try:
            return self._load(bundle_id).recommender
        except RecsysError:
            return None

    def recompute(self, rows: pd.DataFrame, size: int = BATCH) -> Iterator[Recomputed]:
        """The rows of whole answers, none of which is left out, `size` answers at a time. The service makes one at a
        time: the last bit of a matrix product may depend on how many users it is for."""
        rows = rows.assign(answer=rows.groupby(ANSWER, sort=False).ngroup())
        answers = rows.drop_duplicates("answer").set_index("answer")
        unranked = answers["degraded"].str.split(",").map(lambda parts: "ranking" in parts)
        for _, chosen in answers.assign(unranked=unranked).groupby(TOGETHER, sort=False, dropna=False):
            for start in range(0, len(chosen), size):
                batch = chosen.iloc[start : start + size]
                yield self._batch(rows[rows["answer"].isin(batch.index)], batch)

    def _batch(self, rows: pd.DataFrame, answers: pd.DataFrame) -> Recomputed:
        first = answers.iloc[0]
        recommender = self.recommender(first["bundle_id"])
        assert recommender is not None, first["bundle_id"]
        recommender = recommender.with_ranker(None) if first["unranked"] else recommender
        timeline = self._timeline(first["bundle_id"], int(first["statistics_seq"]))
        context = RequestContext(timeline.as_of(int(first["statistics_day"])))
        options = (int(first["list_length"]), filters_of(first["filters"]), float(first["diversity"]))
        states = self._states(recommender, answers)
        place = answers.index.get_indexer(rows["answer"])
        expected = _expected(recommender, recommender.recommend(states, context, *options), rows, place)
        expected = expected.assign(
            now=_moments(states, answers)[place],
            statistics_day=_days(answers, timeline.last_day)[place],
            position=rows.groupby("answer").cumcount() + 1,
        )
        return Recomputed(rows.assign(shown=rows.groupby("answer")[ITEM_ID].transform("size")), expected)

    def _states(self, recommender: Recommender, answers: pd.DataFrame) -> StateBatch:
        """What each answer knew: of a user and an item the latest rating, of equals the last received."""
        users = answers[USER_ID].to_numpy(np.int64)
        starts, ends = (np.searchsorted(self._events[USER_ID], users, side) for side in ("left", "right"))
        chosen = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)]).astype(np.int64)
        events = self._events.iloc[chosen].assign(row=np.repeat(np.arange(len(answers)), ends - starts))
        events = events[events[SEQ].to_numpy() <= answers["state_seq"].to_numpy(np.int64)[events["row"]]]
        events = events.sort_values([TIMESTAMP, SEQ], kind="stable").drop_duplicates(["row", ITEM_ID], keep="last")
        # Each answer becomes a user of its own: one user has another state in every answer.
        profiles = pd.DataFrame({USER_ID: users, "row": np.arange(len(answers))}).merge(self._tables.users, on=USER_ID)
        renamed = [frame.drop(columns=USER_ID).rename(columns={"row": USER_ID}) for frame in (events, profiles)]
        histories = Histories.from_tables(recommender.catalogue, *renamed)
        return histories.states_at(np.arange(len(answers)), answers["now"].to_numpy(np.int64))

    def _make_timeline(self, bundle_id: str, through_seq: int) -> ItemStatsTimeline:
        later = self._later[self._later[SEQ] <= through_seq].drop(columns=SEQ)
        events = with_later_ratings(self._tables, later, through_seq).tables.events
        recommender = self.recommender(bundle_id)
        assert recommender is not None, bundle_id
        return ItemStatsTimeline(recommender.catalogue, snapshots(events))


def _expected(recommender: Recommender, found: Recommendations, rows: pd.DataFrame, at: IntArray) -> pd.DataFrame:
    """For each logged row: the item that stands at its position, and the features of its own item. `at`: its answer in
    `found`."""
    position = rows.groupby("answer").cumcount().to_numpy()
    inside = position < found.item_ids.shape[1]
    position = np.where(inside, position, 0)
    values = {
        ITEM_ID: np.where(inside, found.item_ids[at, position], -1),
        "score": found.scores[at, position],
        "watch_probability": found.watch_probability[at, position],
        "like_probability": found.like_probability[at, position],
        "propensity": np.ones(len(rows), dtype=np.float32),
        "shown": np.minimum((found.item_ids >= 0).sum(axis=1)[at], rows["k"].to_numpy()),
    }
    if found.features is not None:
        item_idx = recommender.catalogue.to_idx(rows[ITEM_ID].to_numpy(np.int64))
        candidates = found.candidates.item_idx[:, : found.features.shape[1]][at]  # (rows, K)
        same = (candidates == item_idx[:, None]) & (item_idx >= 0)[:, None]
        features = found.features[at, same.argmax(axis=1)]
        features[~same.any(axis=1)] = np.nan
        values |= dict(zip(recommender.feature_names, features.T, strict=True))
    return pd.DataFrame(values, index=rows.index)


def _moments(states: StateBatch, answers: pd.DataFrame) -> IntArray:
    """The moment that each answer was to be made for: its arrival, or a second after the user's last event; what was
    logged where it is within two seconds of it."""
    last = np.where(states.item_idx[:, -1] >= 0, states.timestamps[:, -1] + 1, 0)
    received = answers["received"].astype("int64").to_numpy() // 1_000_000
    logged = answers["now"].to_numpy(np.int64)
    right = np.maximum(received, last)
    return np.where(np.abs(logged - right) <= 2, logged, right)


def _days(answers: pd.DataFrame, last_day: int) -> IntArray:
    """The day whose statistics each answer was to use: that of its moment, but none after the last that changes any."""
    logged, now = (answers[name].to_numpy(np.int64) for name in ("statistics_day", "now"))
    right, before = (np.minimum(day_of(moment), last_day) for moment in (now, now - REFRESH_S))
    return np.where(logged == before, logged, right)
