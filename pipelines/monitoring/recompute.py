"""Logged answers computed again, by the code that serves, from the data set and the event table.

The state is made from the data set and the user's ratings up to the answer's `state_seq`, by the batch code and not by
the fold that the service uses; the item statistics from the events up to `statistics_seq`. The bundle that the answer
names then answers again, many users at a time. Feast is not asked.

Shapes: A answers of a batch, K candidates, F features.
"""

import time
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Final

import numpy as np
import pandas as pd

from pipelines.training_set import with_later_ratings
from recsys.arrays import IntArray
from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.data.tables import Tables
from recsys.events import RATING_KIND, EventTable
from recsys.features.histories import Histories
from recsys.features.item_stats import ItemStatsTimeline, day_of, snapshots
from recsys.features.state import StateBatch
from recsys.monitoring.prediction_log import NONE, filters_of
from recsys.recommender import Recommendations, Recommender, RequestContext

BATCH: Final = 256  # answers computed at once
REFRESH_S: Final = 600  # the service may take so long to read the statistics of a day that has begun
SEQ: Final = "seq"
# What a batch has in common: one call of `Recommender.recommend` has one of each.
TOGETHER: Final = ["bundle_id", "statistics_day", "statistics_seq", "list_length", "diversity", "filters"]

# Answers that no log could say enough of, however well the service does.
FURTHER_PAGE: Final = "a further page of a list"
EXPLORED: Final = "explored: in part drawn at random"
HISTORY_GIVEN: Final = "its history came with the request and is not kept"


class Recomputer:
    """`recommenders`: of the bundles that are still there, by their id."""

    def __init__(self, tables: Tables, events: EventTable, recommenders: Mapping[str, Recommender]) -> None:
        self._to_data = events.data_clock(tables.info.last_event_at, time.time()).to_data
        ratings = (event for event in events.read() if event.kind == RATING_KIND)
        rows = [(e.user_id, e.item_id, e.value, self._to_data(e.occurred_at), e.seq) for e in ratings]
        types = {USER_ID: np.int64, ITEM_ID: np.int64, RATING: np.float32, TIMESTAMP: np.int64, SEQ: np.int64}
        later = pd.DataFrame(rows, columns=list(types)).astype(types)
        self._tables, self._recommenders = tables, recommenders
        self._later = later[later[ITEM_ID].isin(tables.items[ITEM_ID])]
        events_and_later = pd.concat([tables.events.assign(**{SEQ: 0}), self._later])
        self._events = events_and_later.sort_values([USER_ID, SEQ], kind="stable", ignore_index=True)
        self._timeline = cache(self._make_timeline)

    def left_out(self, answers: pd.DataFrame) -> pd.Series:
        """For each answer, given by its first row, why it cannot be computed again; "" where it can."""
        without = answers["degraded"].str.get_dummies(",").reindex(columns=["retrieval", "user_state", "ranking"])
        without = without.fillna(0).astype(bool)
        reasons = {
            FURTHER_PAGE: answers["position"] > 1,
            HISTORY_GIVEN: answers[USER_ID] == NONE,
            EXPLORED: answers["propensity"] < 1,
            "the cold-start list, in place of an answer": without["retrieval"],
            "answered without the user's state, as it says": without["user_state"] | (answers["state_seq"] == NONE),
            "not ranked, as it says": without["ranking"],
            "its filters were too long to keep": answers["filters"].isna(),
            "its bundle is gone": ~answers["bundle_id"].isin(self._recommenders),
        }
        return pd.Series(np.select(list(reasons.values()), list(reasons), default=""), index=answers.index)

    def recompute(self, rows: pd.DataFrame, size: int = BATCH) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
        """Logged rows and what they should hold, `size` answers at a time. The column "answer" numbers the answers,
        which are whole and none of which is left out. The service makes one at a time: the last bit of a matrix product
        may depend on how many users it is for."""
        for _, alike in rows.drop_duplicates("answer").set_index("answer").groupby(TOGETHER, sort=False):
            for start in range(0, len(alike), size):
                answers = alike.iloc[start : start + size]
                logged = rows[rows["answer"].isin(answers.index)]
                yield logged, self._expected(logged, answers)

    def _expected(self, rows: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
        first = answers.iloc[0]
        recommender = self._recommenders[first["bundle_id"]]
        timeline = self._timeline(first["bundle_id"], int(first["statistics_seq"]))
        context = RequestContext(timeline.as_of(int(first["statistics_day"])))
        options = (int(first["list_length"]), filters_of(first["filters"]), float(first["diversity"]))
        states = self._states(recommender, answers)
        answer = answers.index.get_indexer(rows["answer"])
        expected = _shown(recommender, recommender.recommend(states, context, *options), rows, answer)
        return expected.assign(
            now=self._moments(states, answers)[answer], statistics_day=_days(answers, timeline.last_day)[answer]
        )

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

    def _moments(self, states: StateBatch, answers: pd.DataFrame) -> IntArray:
        """The moment that each answer was to be made for: its arrival, or a second after the user's last event; what
        was logged where it is within two seconds of it."""
        last = np.where(states.item_idx[:, -1] >= 0, states.timestamps[:, -1] + 1, 0)
        received = answers["received"].astype("int64").to_numpy() // 1_000_000
        logged = answers["now"].to_numpy(np.int64)
        right = np.maximum(np.array([self._to_data(moment) for moment in received.tolist()], dtype=np.int64), last)
        return np.where(np.abs(logged - right) <= 2, logged, right)

    def _make_timeline(self, bundle_id: str, through_seq: int) -> ItemStatsTimeline:
        later = self._later[self._later[SEQ] <= through_seq].drop(columns=SEQ)
        events = with_later_ratings(self._tables, later, through_seq).tables.events
        return ItemStatsTimeline(self._recommenders[bundle_id].catalogue, snapshots(events))


def _shown(recommender: Recommender, made: Recommendations, rows: pd.DataFrame, answer: IntArray) -> pd.DataFrame:
    """For each logged row: the item that stands at its position, and the features of its own item. `answer`: (rows,)
    its place in `made`."""
    position = rows.groupby("answer").cumcount().to_numpy()
    inside = position < made.item_ids.shape[1]
    place = (answer, np.where(inside, position, 0))
    values = {
        ITEM_ID: np.where(inside, made.item_ids[place], -1),
        "position": position + 1,
        "score": made.scores[place],
        "watch_probability": made.watch_probability[place],
        "like_probability": made.like_probability[place],
        "propensity": np.ones(len(rows), dtype=np.float32),
        "shown": np.minimum((made.item_ids >= 0).sum(axis=1)[answer], rows["k"].to_numpy()),
    }
    assert made.features is not None
    candidates = made.candidates.item_idx[:, : made.features.shape[1]][answer]  # (rows, K)
    same = candidates == recommender.catalogue.to_idx(rows[ITEM_ID].to_numpy(np.int64))[:, None]
    features = made.features[answer, same.argmax(axis=1)]
    features[~same.any(axis=1)] = np.nan
    values |= dict(zip(recommender.feature_names, features.T, strict=True))
    return pd.DataFrame(values, index=rows.index)


def _days(answers: pd.DataFrame, last_day: int) -> IntArray:
    """The day whose statistics each answer was to use: that of its moment, but none after the last that changes any."""
    logged, now = (answers[name].to_numpy(np.int64) for name in ("statistics_day", "now"))
    right, before = (np.minimum(day_of(moment), last_day) for moment in (now, now - REFRESH_S))
    return np.where(logged == before, logged, right)
