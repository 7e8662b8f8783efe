"""What the event log adds to the tables: the newest states know it, the past does not change."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
import pyarrow.parquet as pq
import pytest

from recsys.columns import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, TIMESTAMP, USER_ID
from recsys.event_log import LoggedEvent, end_of
from recsys.feature_store import Latest, write_feature_tables
from recsys.feature_store.latest import history_position, whole_state
from recsys.features.item_stats import snapshots
from recsys.features.state import HISTORY_LENGTH, Event, UserState
from recsys.features.state_merge import state_from_events

from .feature_worlds import DAY, T0, EventRow, World, build

BASE = [(1, 3, 4.0, T0 + 100), (1, 5, 2.5, T0 + 200), (2, 3, 5.0, T0 + DAY)]
CONTEXTS = [(1, T0 + 200), (1, T0 + 201), (2, T0 + DAY)]
LATER = T0 + 30 * DAY  # when the service heard of everything below
LOGGED = [
    (1, 7, 5.0, LATER),  # an ordinary event
    (1, 9, 1.0, T0 + 150),  # told late: between the two of the data set
    (1, 5, 2.5, T0 + 200),  # in the data set already
    (1, 7, 5.0, LATER),  # sent twice
    (2, 4, 3.0, T0 + DAY),  # told late, of the second of the newest state
    (3, 8, 4.5, T0 - 5 * DAY),  # of somebody with a profile and no events, before all others
    (77, 8, 4.0, LATER + 5),  # of a new_user, with a clock that is ahead
]


def log_events(folder: Path, rows: Sequence[EventRow], received: int = LATER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    day = datetime.fromtimestamp(received, UTC).date()
    with (folder / f"events-{day}.jsonl").open("ab") as handle:
        for place, (user, item, rating, timestamp) in enumerate(rows):
            event = LoggedEvent(f"{received}-{place}", user, item, rating, timestamp, received, "bundle")
            handle.write(orjson.dumps(asdict(event)) + b"\n")


def tables_again(world: World) -> Latest:
    """What stage `features` does: all tables from the data set and the log."""
    latest = Latest.of(world.histories, world.events, world.users, world.home.events)
    contexts = pd.DataFrame(CONTEXTS, columns=[USER_ID, TIMESTAMP])
    write_feature_tables(world.home, world.histories, snapshots(latest.known), contexts, latest)
    return latest


@pytest.fixture
def world(tmp_path: Path) -> World:
    return build(tmp_path, BASE, CONTEXTS)


def test_the_newest_states_know_the_log_and_the_past_ones_do_not(world: World) -> None:
    users, nows = np.array(CONTEXTS).T
    before = world.store.historical_states(users, nows)
    log_events(world.home.events, LOGGED)
    tables_again(world)
    world.store.materialize()
    assert world.store.historical_states(users, nows) == before

    found = world.store.online_states([1, 2, 3, 4, 77, 78])
    states = [row[0] if row else None for row in found]
    assert states[0] == UserState(
        1,
        (3, 9, 5, 7),
        (4.0, 1.0, 2.5, 5.0),
        (T0 + 100, T0 + 150, T0 + 200, LATER),
        4,
        2,
        12.5,
        48.25,
        "F",
        18,
        "artist",
    )
    assert states[1] == UserState(2, (3, 4), (5.0, 3.0), (T0 + DAY,) * 2, 2, 1, 8.0, 34.0, "M", 25, "doctor")
    assert states[2] == UserState(3, (8,), (4.5,), (T0 - 5 * DAY,), 1, 1, 4.5, 20.25, "F", 35, "artist")
    assert states[3] == UserState(4, gender="M", age=45, occupation="doctor")
    assert states[4] == UserState(77, (8,), (4.0,), (LATER + 5,), 1, 1, 4.0, 16.0)
    assert states[5] is None
    assert [row[1].tolist() for row in found if row] == [[3, 5, 7, 9], [3, 4], [8], [], [8]]
    # offline, long after everything: the same states
    now = LATER + DAY
    assert world.store.historical_states([1, 2, 3, 4, 77], now) == states[:5]
    world.store.close()


def test_rows_say_when_they_were_known(world: World) -> None:
    log_events(world.home.events, LOGGED)
    tables_again(world)
    rows = pq.read_table(world.home.features / "user_state.parquet").to_pylist()
    stamps = {
        (r[USER_ID], int(r[EVENT_TIMESTAMP].timestamp()), r["n_events"]): int(r[CREATED_TIMESTAMP].timestamp())
        for r in rows
        if r[USER_ID] in (1, 2, 3, 77)
    }
    assert stamps == {
        (1, T0 + 99, 0): T0 + 99,
        (1, T0 + 100, 1): T0 + 100,
        (1, T0 + 200, 2): T0 + 200,  # the data set's newest: what was known between then and the logged events
        (1, LATER, 4): LATER,
        (2, T0 + DAY - 1, 0): T0 + DAY - 1,
        (2, T0 + DAY, 2): LATER,  # in place of the data set's, which has the same second
        (3, T0 - 5 * DAY - 1, 0): T0 - 5 * DAY - 1,
        (3, T0 - 5 * DAY, 1): LATER,
        (77, LATER + 4, 0): LATER + 4,
        (77, LATER + 5, 1): LATER + 5,
    }
    assert len(rows) == len({(r[USER_ID], r[EVENT_TIMESTAMP]) for r in rows})


def test_item_statistics_count_a_logged_event_from_the_day_on_which_it_was_received(world: World) -> None:
    before = world.store.historical_item_stats(pd.DataFrame({ITEM_ID: [9, 7, 8, 5], "day": T0 // DAY + 29}))
    log_events(world.home.events, LOGGED)
    tables_again(world)
    again = world.store.historical_item_stats(pd.DataFrame({ITEM_ID: [9, 7, 8, 5], "day": T0 // DAY + 29}))
    pd.testing.assert_frame_equal(again, before)
    after = world.store.historical_item_stats(pd.DataFrame({ITEM_ID: [9, 7, 8, 5], "day": T0 // DAY + 31}))
    assert after["n_ratings"].tolist() == [1, 1, 2, 1]
    assert after["rating_sum"].tolist() == [1.0, 5.0, 8.5, 2.5]
    assert after["decayed_7d"].tolist()[:3] == [1, 1, 2]
    world.store.close()


def test_without_a_log_the_data_set_is_all_there_is(world: World) -> None:
    latest = Latest.of(world.histories, world.events, world.users, world.home.events)
    assert latest.histories is world.histories
    assert latest.known is world.events
    assert (latest.received, latest.position) == ({}, {})


def test_the_whole_history_lies_in_one_file_with_its_position(world: World) -> None:
    assert history_position(world.home) == {}
    log_events(world.home.events, LOGGED[:4])
    latest = tables_again(world)
    assert history_position(world.home) == latest.position == end_of(world.home.events)
    table = pq.read_table(world.home.features / "history.parquet")
    rows = list(zip(*(table[name].to_pylist() for name in (USER_ID, ITEM_ID, "rating", TIMESTAMP)), strict=True))
    assert rows == [
        (1, 3, 4.0, T0 + 100),
        (1, 9, 1.0, T0 + 150),
        (1, 5, 2.5, T0 + 200),
        (1, 7, 5.0, LATER),
        (2, 3, 5.0, T0 + DAY),
    ]


def test_a_state_is_made_anew_from_the_table_and_the_log_behind_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.feature_store.latest.ROWS_PER_GROUP", 2)  # so that a user's rows span groups
    many = [(1, 1 + i % 40, 3.0, T0 + 1_000 + i) for i in range(HISTORY_LENGTH)]
    log_events(world.home.events, [*LOGGED, *many])
    tables_again(world)
    tail = [(1, 11, 5.0, T0 + 1), (2, 9, 4.0, LATER + 100), (1, 11, 5.0, T0 + 1), (78, 1, 2.0, LATER)]
    log_events(world.home.events, tail, received=LATER + DAY)
    rows = [*BASE, *LOGGED, *many, *tail]
    for user, profile in ((1, ("F", 18, "artist")), (2, ("M", 25, "doctor")), (77, ("", 0, "")), (9, ("", 0, ""))):
        own = [Event(i, r, t) for u, i, r, t in rows if u == user]
        gender, age, occupation = profile
        expected, seen = state_from_events(UserState(user, gender=gender, age=age, occupation=occupation), own)
        for given in (UserState(user), expected):
            state, found = world.store.whole_state(given)
            assert state == expected
            assert found.tolist() == seen.tolist()
    assert world.store.whole_state(UserState(78))[0].item_ids == (1,)
    assert world.store.whole_state(UserState(79))[0] == UserState(79)


def test_where_nothing_is_trained_yet_the_log_is_all_there_is(tmp_path: Path) -> None:
    home = type(build(tmp_path / "other", BASE).home)(tmp_path / "new", "new")
    log_events(home.events, [(5, 2, 3.0, T0)])
    assert whole_state(home, UserState(5))[0].item_ids == (2,)
    assert history_position(home) == {}
