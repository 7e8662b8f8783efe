"""100,000 random events, in any order and some of them twice: online equals offline for everybody, on both stores.

Half of the events are the data set. The rest arrive through the event log in an order without meaning, in parts; each
part is put on top of the store as the service does it when it starts. Then the tables are written from data set and
log together, and everything is compared: the definition, the online store, and Feast's point-in-time read.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest

from recsys.columns import AGE, GENDER, GENRES, ITEM_ID, OCCUPATION, RATING, TIMESTAMP, TITLE, USER_ID, YEAR
from recsys.event_log import LoggedEvent
from recsys.feature_store import FeatureStore, FeatureStoreConfig, Latest, write_feature_tables
from recsys.features.catalogue import Catalogue
from recsys.features.histories import Histories
from recsys.features.item_stats import STATS_COLUMNS, ItemStatsTimeline, snapshots
from recsys.features.state import HISTORY_LENGTH, UserState
from recsys.features.state_merge import distinct_rows
from recsys.workspace import DatasetWorkspace

REPO = Path(__file__).parents[2] / "feature_repo"
EVENTS, USERS, ITEMS, PARTS = 100_000, 600, 3_000, 8
T0, YEARS = 11_000 * 86_400, 3 * 365 * 86_400
NO_CONTEXTS = pd.DataFrame({USER_ID: [], TIMESTAMP: []}, dtype=np.int64)


@dataclass(frozen=True)
class Arrivals:
    """base: the data set, sorted. parts: what arrives, in order of arrival, duplicates of both among them."""

    catalogue: Catalogue
    users: pd.DataFrame
    base: pd.DataFrame
    parts: list[pd.DataFrame]


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
    base = distinct_rows(events[is_base])
    again = events.sample(5_000, random_state=1)
    contradicting = again.assign(**{RATING: (rng.integers(1, 11, len(again)) / 2).astype(np.float32)})
    arriving = pd.concat([events[~is_base], again, contradicting.iloc[:500]]).sample(frac=1, random_state=2)
    listed = np.arange(1, USERS - 20)  # twenty more rate than the users table knows
    users = pd.DataFrame(
        {
            USER_ID: listed,
            GENDER: np.where(listed % 2, "F", "M"),
            AGE: pd.array(18 + listed % 50, dtype="Int32"),
            OCCUPATION: np.where(listed % 3, "artist", "doctor"),
        }
    )
    items = pd.DataFrame(
        {
            ITEM_ID: np.arange(1, ITEMS + 1),
            TITLE: "Film",
            YEAR: pd.array([1999] * ITEMS, dtype="Int32"),
            GENRES: [["Drama"]] * ITEMS,
        }
    )
    cuts = np.linspace(0, len(arriving), PARTS + 1).astype(int)
    parts = [arriving.iloc[low:high] for low, high in pairwise(cuts)]
    return Arrivals(Catalogue.from_tables(items, users), users, base, parts)


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FeatureStore]:
    given: dict[str, Any] = {}
    if request.param == "redis":
        address = request.getfixturevalue("redis_server").connection
        given = {"online_store": "redis", "redis_connection": address}
    store = FeatureStore(FeatureStoreConfig(DatasetWorkspace(tmp_path / "random", "random"), REPO, **given))
    yield store
    store.close()


def append(folder: Path, part: pd.DataFrame, number: int) -> None:
    folder.mkdir(exist_ok=True)
    received = T0 + YEARS + number * 86_400
    with (folder / f"events-part{number}.jsonl").open("wb") as handle:
        for place, (user, item, rating, timestamp) in enumerate(part.itertuples(index=False)):
            event = LoggedEvent(f"{number}-{place}", user, item, rating, timestamp, received, "bundle")
            handle.write(orjson.dumps(asdict(event)) + b"\n")


def rows(store: FeatureStore, user_ids: list[int]) -> list[tuple[UserState, list[int]]]:
    found = store.online_states(user_ids)
    return [(row[0], row[1].tolist()) for row in found if row is not None]


def test_online_equals_offline_for_every_user_and_feature(
    arrivals: Arrivals, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = store.config.home
    made_anew: list[int] = []
    whole = store.whole_state
    monkeypatch.setattr(store, "whole_state", lambda profile: made_anew.append(profile.user_id) or whole(profile))
    histories = Histories.from_tables(arrivals.catalogue, arrivals.base, arrivals.users)
    write_feature_tables(home, histories, snapshots(arrivals.base), NO_CONTEXTS)
    store.apply()
    store.materialize()
    moved = 0
    for number, part in enumerate(arrivals.parts):
        append(home.events, part, number)
        moved += store.catch_up()
    assert USERS < len(made_anew) < moved - USERS, "both ways of moving a state were to be shown"

    # the definition: everything that arrived by either way, sorted, each key once
    everything = distinct_rows(pd.concat([arrivals.base, *arrivals.parts]))
    assert EVENTS * 0.99 < len(everything) <= EVENTS
    truth = Histories.from_tables(arrivals.catalogue, everything, arrivals.users)
    user_ids = truth.user_ids.tolist()
    ends = [int(end) for end in truth.offset[1:]]
    expected = [(truth.stored_state(u, end), truth.seen_ids(u, end).tolist()) for u, end in enumerate(ends)]
    assert max(state.n_events for state, _ in expected) > 10 * HISTORY_LENGTH
    assert rows(store, user_ids) == expected

    # the batch step, and with it Feast's reads as of a moment after everything
    latest = Latest.of(histories, arrivals.base, arrivals.users, home.events)
    write_feature_tables(home, histories, snapshots(latest.known), NO_CONTEXTS, latest)
    now = T0 + YEARS + (PARTS + 1) * 86_400
    assert store.historical_states(user_ids, now) == [state for state, _ in expected]
    store.materialize()
    assert rows(store, user_ids) == expected
    _same_statistics(store, arrivals.catalogue, latest, now // 86_400)


def _same_statistics(store: FeatureStore, catalogue: Catalogue, latest: Latest, day: int) -> None:
    """Items too: online, as of `day` through Feast, and from the events."""
    offline = store.historical_item_stats(pd.DataFrame({ITEM_ID: catalogue.item_ids, "day": day}))
    feast_store = store._registered()
    online = feast_store.get_online_features(
        features=feast_store.get_feature_service("ranking"),
        entity_rows=[{ITEM_ID: int(i)} for i in catalogue.item_ids],
    ).to_dict()
    for name in STATS_COLUMNS:
        np.testing.assert_array_equal(np.array(online[name], dtype=np.float64), offline[name].to_numpy(), name)
    dense = store.item_stats_as_of(catalogue, day)
    computed = ItemStatsTimeline(catalogue, snapshots(latest.known)).as_of(day)
    np.testing.assert_array_equal(dense.n_ratings, computed.n_ratings)
    np.testing.assert_array_equal(dense.rating_sum, computed.rating_sum)
    np.testing.assert_array_equal(dense.decayed, computed.decayed)
