"""What a training learns from: the data set and the ratings received since."""

from pathlib import Path

import pytest

from pipelines import training_set
from recsys.data.tables import save_tables
from recsys.events import EventTable, NewEvent, sqlite_url
from recsys.workspace import DatasetWorkspace, Workspace
from tests.planted import DAY, START, planted_tables

LATER = START + 400 * DAY


@pytest.fixture
def home(tmp_path: Path) -> DatasetWorkspace:
    made = Workspace(tmp_path).dataset("planted")
    save_tables(planted_tables(), made.data)
    return made


@pytest.fixture
def table(home: DatasetWorkspace) -> EventTable:
    return EventTable(sqlite_url(home.root / "events.db"))


def post(table: EventTable, user: int, item: int, value: float | None, moment: int, kind: str = "rating") -> None:
    number = table.safe_seq()
    table.append([NewEvent(f"event {number}", user, item, kind, value, moment, float(moment))])


def test_without_events_it_is_the_data_set(home: DatasetWorkspace, table: EventTable) -> None:
    for data in (training_set.load(home), training_set.take(home, table)):
        assert data.tables.info == planted_tables().info
        assert data.tables.events.equals(planted_tables().events)
        assert (data.through_seq, data.n_later, data.source) == (0, 0, planted_tables().info)


def test_ratings_of_old_and_new_users_are_taken_once_and_stay_what_they_were(
    home: DatasetWorkspace, table: EventTable
) -> None:
    plain = planted_tables()
    post(table, 101, 5, 4.5, LATER)
    post(table, 7, 8, 3.0, LATER + 1)
    post(table, 7, 11, None, LATER + 2, kind="watch")
    post(table, 7, 4, 5.0, LATER + 3)  # no item of the catalogue
    assert training_set.waiting(home, table) == 3
    taken = training_set.take(home, table)
    assert training_set.waiting(home, table) == 0
    assert (taken.through_seq, taken.n_later) == (4, 2)
    assert taken.tables.events.tail(2).to_numpy().tolist() == [[101, 5, 4.5, LATER], [7, 8, 3.0, LATER + 1]]
    assert taken.tables.info.n_users == plain.info.n_users + 1
    assert taken.tables.info.fingerprint != taken.source.fingerprint == plain.info.fingerprint
    assert 7 in taken.histories.user_ids

    post(table, 8, 8, 1.0, LATER + 4)
    again = training_set.load(home)
    assert again.tables.events.equals(taken.tables.events), "what comes later waits for the next training"
    assert again.tables.info == taken.tables.info
    assert training_set.take(home, table).n_later == 3


def test_a_repeat_replaces_and_impressions_change_nothing(home: DatasetWorkspace, table: EventTable) -> None:
    plain = planted_tables()
    user, item, _, moment = plain.events.iloc[10].tolist()
    post(table, int(user), int(item), 0.5, LATER)
    post(table, int(user), int(item), 1.5, LATER)
    post(table, int(user), int(item), 5.0, int(moment) - 1)
    taken = training_set.take(home, table)
    rows = taken.tables.events.query("user_id == @user and item_id == @item")
    assert rows[["rating", "timestamp"]].to_numpy().tolist() == [[1.5, LATER]]
    assert taken.tables.info.n_events == len(taken.tables.events) == plain.info.n_events
    post(table, 7, 8, None, LATER, kind="impression")
    assert training_set.take(home, table).tables.info == taken.tables.info
