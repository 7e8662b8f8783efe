"""What a request reads, what a push changes, and what a materialisation leaves behind; on every store alike."""

import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recsys.columns import RETRIEVAL_SERVICE, TIMESTAMP, USER_ID, USER_SEEN_VIEW, USER_STATE_VIEW
from recsys.errors import StoreError
from recsys.feature_store import FeatureStore, write_feature_tables
from recsys.feature_store.tables import SEEN_COLUMN, states_from_columns
from recsys.features.histories import Histories
from recsys.features.state import Event, UserState, state_after

from .feature_worlds import T0, World, build

NO_CONTEXTS = pd.DataFrame({USER_ID: [], TIMESTAMP: []}, dtype=np.int64)


@pytest.fixture(scope="module")
def base(servers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    rows = [(1, 3, 4.0, T0), (1, 5, 2.5, T0 + 10), (2, 3, 5.0, T0 + 20)]
    world = build(tmp_path_factory.mktemp("online"), rows, servers=servers)
    yield world
    world.store.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[World]:
    """The same where the online store is a file, whatever servers there are."""
    world = build(tmp_path, [(1, 3, 4.0, T0), (1, 5, 2.5, T0 + 10)])
    yield world
    world.store.close()


def test_one_user_is_one_read_of_each_view(base: World, monkeypatch: pytest.MonkeyPatch) -> None:
    base.store.online_state(1)
    provider = base.store._feast_store._get_provider()
    asked: list[str] = []
    real = provider.online_read
    monkeypatch.setattr(provider, "online_read", lambda *given: asked.append(given[1].name) or real(*given))
    for name in ("get_feature_service", "get_feature_view", "get_online_features"):  # which would ask the registry
        monkeypatch.setattr(base.store._feast_store, name, None)
    found = base.store.online_state(1)
    assert asked == [USER_STATE_VIEW, USER_SEEN_VIEW]
    assert found is not None
    state, seen = found
    assert state == UserState(1, (3, 5), (4.0, 2.5), (T0, T0 + 10), 2, 1, 6.5, 22.25, "F", 18, "artist")
    assert seen.tolist() == [3, 5]
    assert seen.dtype == np.int64


def test_rows_are_what_feast_itself_reads(base: World) -> None:
    """For a known user, one without events and somebody unknown, in any order and twice."""
    user_ids = [2, 77, 1, 9, 2]
    feast_store = base.store._registered()
    answer = feast_store.get_online_features(
        features=feast_store.get_feature_service(RETRIEVAL_SERVICE),
        entity_rows=[{USER_ID: user_id} for user_id in user_ids],
    ).to_dict()
    expected = states_from_columns(user_ids, answer)
    for row, found in enumerate(base.store.online_states(user_ids)):
        if answer["n_events"][row] is None:
            assert found is None
        else:
            assert found is not None
            assert found[0] == expected[row]
            assert found[1].tolist() == (answer[SEEN_COLUMN][row] or [])


def test_somebody_unknown_is_none_and_somebody_without_events_is_not(base: World) -> None:
    assert base.store.online_state(77) is None
    found = base.store.online_state(9)
    assert found is not None
    assert found[0] == UserState(9)
    assert found[1].tolist() == []


def test_bulk_keeps_order_and_repeats(base: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.feature_store.store.ONLINE_CHUNK", 2)
    found = base.store.online_states([2, 77, 1, 2, 9])
    assert [None if row is None else row[0].user_id for row in found] == [2, None, 1, 2, 9]
    assert base.store.online_states([]) == []


def test_many_users_are_pushed_at_once(base: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.feature_store.store.ONLINE_CHUNK", 2)
    moved = [state_after(UserState(user), Event(user % 40, 3.5, T0 + user)) for user in range(700, 705)]
    rows = [*((state, np.array(state.item_ids)) for state in moved), (UserState(705), np.array([], dtype=np.int64))]
    base.store.push_states(rows)
    base.store.push_states([])
    found = base.store.online_states(range(700, 706))
    assert [row[0] for row in found if row] == [*moved, UserState(705)]
    assert [row[1].tolist() for row in found if row] == [*([user % 40] for user in range(700, 705)), []]


def test_a_push_is_what_the_next_read_shows_and_a_materialisation_takes_it_back(
    servers: dict[str, Any], tmp_path: Path
) -> None:
    world = build(tmp_path, [(1, 3, 4.0, T0), (2, 3, 5.0, T0)], servers=servers)
    store = world.store
    before = store.online_state(1)
    assert before is not None
    moved = state_after(before[0], Event(7, 4.5, T0 + 5))
    store.push_state(moved, [3, 7], stamped=T0 + 5)
    newcomer = state_after(UserState(500), Event(8, 1.0, T0 + 6))
    store.push_state(newcomer, np.array([8]), stamped=T0 + 6)
    store.push_state(UserState(501), [], stamped=T0)
    # A second event in the same second, and a push stamped earlier: the last write wins, here as in Redis.
    again = state_after(newcomer, Event(9, 2.0, T0 + 6))
    store.push_state(again, [8, 9], stamped=T0 - 100)

    found = store.online_states([1, 500, 501])
    assert [row[0] for row in found if row] == [moved, again, UserState(501)]
    assert [row[1].tolist() for row in found if row] == [[3, 7], [8, 9], []]

    # Tables without user 2 and 500, and older than the pushes: nothing of before may survive.
    users = pd.DataFrame({USER_ID: [1], "gender": ["F"], "age": [18], "occupation": ["artist"]})
    histories = Histories.from_tables(world.catalogue, world.events[world.events[USER_ID] == 1], users)
    write_feature_tables(world.home, histories, world.snapshots.iloc[:0], NO_CONTEXTS)
    another_process = FeatureStore(store.config)
    another_process.materialize()
    another_process.close()
    found = store.online_states([1, 2, 500])  # the store that was open all the time
    assert found[0] is not None
    assert found[0][0] == before[0]
    assert found[1:] == [None, None]
    assert store.last_snapshot_day() == 0
    assert not list(world.home.feast.glob("*.part*"))
    store.close()


def test_a_reader_never_sees_half_a_push(base: World) -> None:
    def state(k: int) -> UserState:
        return UserState(600, (k,), (float(k),), (k,), k, k, float(k), float(k))

    base.store.push_state(state(1), [1], stamped=T0)
    writing = threading.Thread(
        target=lambda: [base.store.push_state(state(k), [k], stamped=T0 + k) for k in range(1, 30)]
    )
    writing.start()
    try:
        while writing.is_alive():
            found = base.store.online_state(600)
            assert found is not None
            assert found[0] == state(found[0].n_events)
    finally:
        writing.join()


def test_a_file_is_read_while_a_push_waits_for_another_process(file: World) -> None:
    """A materialisation elsewhere holds the file's write lock; the push waits for it, and nobody who reads does."""
    before = file.store.online_state(1)
    assert before is not None
    moved = state_after(before[0], Event(7, 3.0, T0 + 30))
    with closing(sqlite3.connect(file.home.feast / "online.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        pushing = threading.Thread(target=file.store.push_state, args=(moved, [3, 5, 7]), kwargs={"stamped": T0 + 30})
        pushing.start()
        try:
            started = time.perf_counter()
            found = [file.store.online_state(1, at_once=True) for _ in range(20)]
            took = time.perf_counter() - started
            assert pushing.is_alive()
        finally:
            other.execute("ROLLBACK")
            pushing.join()
    assert [row[0] for row in found if row] == [before[0]] * 20
    assert took < 1.0  # the push itself would wait for five seconds
    now = file.store.online_state(1)
    assert now is not None
    assert now[0] == moved


def test_the_connection_that_reads_at_once_cannot_write(file: World) -> None:
    assert str(file.store.online_state(1, at_once=True)) == str(file.store.online_state(1))
    assert file.store._single is not None
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        file.store._single.write([(UserState(1), [], T0)])


@pytest.mark.parametrize("how", ["close", "apply"])
def test_the_connection_that_reads_at_once_is_closed_and_opened_again(how: str, file: World) -> None:
    found = file.store.online_state(1, at_once=True)
    assert file.store._single is not None
    connection = file.store._single._provider.online_store._conn
    getattr(file.store, how)()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")
    assert str(file.store.online_state(1, at_once=True)) == str(found)


def test_two_homes_that_share_process_and_servers_never_mix(
    base: World, servers: dict[str, Any], tmp_path: Path
) -> None:
    rows = [(1, 9, 1.0, T0 + 1_000), (4, 9, 1.0, T0 + 1_000)]
    other = build(tmp_path, rows, name=base.home.name, servers=servers)
    assert other.store.config.project != base.store.config.project
    assert [row[0].item_ids for row in other.store.online_states([1, 4]) if row] == [(9,), (9,)]
    assert [row[0].item_ids for row in base.store.online_states([1, 4]) if row] == [(3, 5), ()]
    assert other.store.historical_states([1], T0 + 2_000)[0].item_ids == (9,)
    assert base.store.historical_states([1], T0 + 2_000)[0].item_ids == (3, 5)
    other.store.push_state(UserState(1), [], stamped=T0)
    other.store.materialize()  # which deletes what its tables do not hold
    assert base.store.online_states([1])[0][0].n_events == 2  # type: ignore[index]
    other.store.close()


def test_close_and_read_again(base: World) -> None:
    base.store.close()
    base.store.close()
    assert base.store.online_state(1) is not None


def test_every_failure_says_what_to_do(
    base: World, servers: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = type(base.home)(tmp_path / "nowhere", "nowhere")
    empty = FeatureStore(replace(base.store.config, home=nowhere))
    for call in (empty.apply, empty.materialize, empty.last_snapshot_day, lambda: empty.historical_states([1], [1])):
        with pytest.raises(StoreError, match="Run `recsys train` first"):
            call()
    for call in (lambda: empty.online_state(1), lambda: empty.push_state(UserState(1), [], stamped=1)):
        with pytest.raises(StoreError, match="does not know project" if servers.get("registry_path") else "No feature"):
            call()
    empty.close()

    moved = type(base.home)(tmp_path / "moved", base.home.name)
    shutil.copytree(base.home.root, moved.root)
    elsewhere = FeatureStore(replace(base.store.config, home=moved))
    with pytest.raises(StoreError, match="is new, or was moved"):
        elsewhere.online_state(1)
    elsewhere.close()

    def broken(*_: Any) -> None:
        raise OSError("disk on fire")

    base.store.online_state(1)
    monkeypatch.setattr(base.store._feast_store._get_provider(), "online_read", broken)
    with pytest.raises(StoreError, match=r"states could not be read .*disk on fire.*Run `recsys train --only features"):
        base.store.online_state(1)
