"""Random events in any order, items rated again and events sent twice: online equals offline for everybody.

Half of the events are the data set. The rest arrives through the event table. At any time, the base row and the user's
later events fold to the state of all events; and after the feature tables are made again the base row alone is it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recsys.columns import AGE, GENDER, GENRES, ITEM_ID, OCCUPATION, RATING, TIMESTAMP, TITLE, USER_ID, YEAR
from recsys.events import RATING_KIND, EventTable, NewEvent, sqlite_url
from recsys.feature_store import FeatureStore, FeatureStoreConfig, write_feature_tables
from recsys.features.catalogue import Catalogue
from recsys.features.histories import Histories
from recsys.features.item_stats import ItemStatsTimeline, snapshots
from recsys.features.state import HISTORY_LENGTH, Event, UserState, fold
from recsys.workspace import DatasetWorkspace
from tests.planted import folded

REPO = Path(__file__).parents[2] / "feature_repo"
EVENTS, USERS, ITEMS = 20_000, 200, 700
T0, YEARS = 11_000 * 86_400, 3 * 365 * 86_400
NO_CONTEXTS = pd.DataFrame({USER_ID: [], TIMESTAMP: []}, dtype=np.int64)


@dataclass(frozen=True)
class Arrivals:
    """base: the data set. arriving: what the event table receives, in that order."""

    catalogue: Catalogue
    users: pd.DataFrame
    base: pd.DataFrame
    arriving: pd.DataFrame

    def histories(self, arrived: int) -> Histories:
        everything = pd.concat([self.base, self.arriving.iloc[:arrived]])
        return Histories.from_tables(self.catalogue, everything, self.users)


@pytest.fixture(scope="module")
def arrivals() -> Arrivals:
    rng = np.random.default_rng(7)
    activity = rng.dirichlet(np.full(USERS, 0.5))  # some users have a thousand events, some two
    events = pd.DataFrame(
        {
            USER_ID: 1 + rng.choice(USERS, EVENTS, p=activity),
            ITEM_ID: 1 + rng.choice(ITEMS, EVENTS),
            RATING: (rng.integers(1, 11, EVENTS) / 2).astype(np.float32),
            TIMESTAMP: T0 + rng.integers(0, YEARS // 600, EVENTS) * 600,  # whole bursts share a second
        }
    )
    is_base = rng.random(EVENTS) < 0.5
    again = events.sample(1_000, random_state=1)
    again[RATING] = (rng.integers(1, 11, len(again)) / 2).astype(np.float32)  # of the same second, with other stars
    listed = np.arange(1, USERS - 20)  # twenty more rate than the users table knows
    users = pd.DataFrame({USER_ID: listed, GENDER: "F", AGE: 30, OCCUPATION: np.where(listed % 3, "artist", "doctor")})
    items = pd.DataFrame({ITEM_ID: np.arange(1, ITEMS + 1), TITLE: "Film", YEAR: 1999, GENRES: [["Drama"]] * ITEMS})
    arriving = pd.concat([events[~is_base], again]).sample(frac=1, random_state=2)
    return Arrivals(Catalogue.from_tables(items, users), users, events[is_base], arriving)


@pytest.fixture(params=["sqlite", "redis and postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FeatureStore]:
    given: dict[str, Any] = {}
    if request.param != "sqlite":
        address = request.getfixturevalue("redis_server").connection
        events_url = request.getfixturevalue("postgres_server").database()
        given = {"online_store": "redis", "redis_connection": address, "events_url": events_url}
    store = FeatureStore(FeatureStoreConfig(DatasetWorkspace(tmp_path / "random", "random"), REPO, **given))
    yield store
    store.close()


@pytest.fixture
def table(store: FeatureStore) -> Iterator[EventTable]:
    table = EventTable(store.config.events_url or sqlite_url(store.config.home.event_file))
    yield table
    table.close()


def send(table: EventTable, rows: pd.DataFrame) -> None:
    events = [
        NewEvent(f"{n}-{u}", int(u), int(i), RATING_KIND, float(r), int(t), T0 + YEARS)
        for n, (u, i, r, t) in zip(rows.index, rows.itertuples(index=False), strict=True)
    ]
    for low in range(0, len(events), 500):
        table.append(events[low : low + 500])
        table.append(events[low : low + 100])  # whoever had no answer sends again


def present(store: FeatureStore, table: EventTable, user_ids: list[int]) -> list[UserState]:
    """As a request has them: the base row, and the user's later events."""
    out = []
    for user_id, base in zip(user_ids, store.online_states(user_ids), strict=True):
        state = base or UserState(user_id)
        later = table.after(user_id, state.through_seq)
        assert not later or base is None or later[0].seq > base.through_seq
        folded = fold(state, [Event(e.item_id, e.value or 0.0, e.occurred_at) for e in later])
        out.append(replace(folded, through_seq=0))
    return out


def test_online_equals_offline_for_every_user(arrivals: Arrivals, store: FeatureStore, table: EventTable) -> None:
    arriving, half = arrivals.arriving.reset_index(drop=True), len(arrivals.arriving) // 2
    home = store.config.home
    for taken, arrived in ((0, half), (half, len(arriving)), (len(arriving), len(arriving))):
        histories = arrivals.histories(taken)
        everything = pd.concat([arrivals.base, arriving.iloc[:taken]])
        write_feature_tables(home, histories, snapshots(everything), NO_CONTEXTS, table.safe_seq())
        store.apply()
        store.materialize()
        send(table, arriving.iloc[taken:arrived])
        truth = arrivals.histories(arrived)
        newest = [folded(truth, user_id) for user_id in truth.user_ids.tolist()]
        assert present(store, table, truth.user_ids.tolist()) == newest
    assert truth.repeats.sum() > USERS / 2
    assert max(state.n_events for state in newest) > 3 * HISTORY_LENGTH
    states = store.online_states(truth.user_ids.tolist())
    assert {state and state.through_seq for state in states} == {table.safe_seq()}

    # the offline reads as of a moment after everything say the same
    now = T0 + YEARS + 86_400
    past = store.historical_states(truth.user_ids, now)
    assert [(s.item_ids, s.rating_sum) for s in past] == [(s.item_ids, s.rating_sum) for s in newest]
    dense = store.item_stats_as_of(arrivals.catalogue, now // 86_400)
    computed = ItemStatsTimeline(arrivals.catalogue, snapshots(everything)).as_of(now // 86_400)
    for name in ("n_ratings", "rating_sum", "decayed", "first_rated", "last_rated"):
        np.testing.assert_array_equal(getattr(dense, name), getattr(computed, name), name)
