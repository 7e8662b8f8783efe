"""What a request reads, on every store alike; then what only files can suffer, on the embedded one."""

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recsys.atomic_io import write_json
from recsys.columns import TIMESTAMP, USER_ID
from recsys.errors import StoreError
from recsys.feature_store import FeatureStore, write_feature_tables
from recsys.features.state import UserState
from tests.mounts import read_only
from tests.stores.native import RedisServer

from .feature_worlds import T0, World, build, newest, random_events

NO_CONTEXTS = pd.DataFrame({USER_ID: [], TIMESTAMP: []}, dtype=np.int64)
ROWS = [(1, 3, 4.0, T0), (1, 5, 2.5, T0 + 10), (2, 3, 5.0, T0 + 20)]


@pytest.fixture(scope="module")
def shared(servers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = build(tmp_path_factory.mktemp("online"), ROWS, servers=servers, through_seq=17)
    yield world
    world.store.close()


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[World]:
    """One that a test may change, at a path with every awkward character."""
    world = build(tmp_path / 'it\'s a%41b "so" #1 [x] ü?', ROWS, [(1, T0 + 10)])
    yield world
    world.store.close()


def online(world: World, user_id: int) -> UserState:
    state = world.store.online_state(user_id)
    assert state is not None
    return state


def materialize_elsewhere(world: World, through_seq: int) -> None:
    """As the pipeline does while a service has the store open."""
    write_feature_tables(world.home, world.histories, world.snapshots, NO_CONTEXTS, through_seq)
    other = FeatureStore(world.store.config)
    other.materialize()
    other.close()


def test_a_row_is_the_whole_state_and_unknown_users_have_none(shared: World, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = UserState(1, (3, 5), (4.0, 2.5), (T0, T0 + 10), 2, 1, 6.5, 22.25, gender="F", age=18)
    assert online(shared, 1) == replace(expected, occupation="artist", through_seq=17)
    assert online(shared, 9) == UserState(9, through_seq=17)  # no events
    monkeypatch.setattr("recsys.feature_store.store.ONLINE_CHUNK", 2)
    states = shared.store.online_states([2, 77, 1, 2, 9])
    assert [state and state.user_id for state in states] == [2, None, 1, 2, 9]
    assert shared.store.online_states([]) == []
    shared.store.close()
    assert online(shared, 1).n_events == 2


def test_a_running_service_never_sees_a_user_without_a_row_or_a_torn_one(
    servers: dict[str, Any], tmp_path: Path
) -> None:
    world = build(tmp_path, random_events(3), servers=servers)
    expected = {user: newest(world, user) for user in range(1, 10)}
    online(world, 1)
    done = threading.Event()
    failures: list[BaseException] = []

    def materialize() -> None:
        try:
            for seq in range(1, 4):
                materialize_elsewhere(world, seq)
        except BaseException as error:
            failures.append(error)
        finally:
            done.set()

    writing = threading.Thread(target=materialize)
    writing.start()
    seen = set()
    while not done.is_set():
        for user, state in zip(expected, world.store.online_states(list(expected)), strict=True):
            assert state is not None
            assert replace(state, through_seq=0) == expected[user]
            seen.add(state.through_seq)
    writing.join()
    assert not failures
    assert online(world, 1).through_seq == 3
    assert len(seen) > 1
    world.store.close()


def test_two_homes_that_share_process_and_servers_never_mix(
    shared: World, servers: dict[str, Any], tmp_path: Path
) -> None:
    rows = [(1, 9, 1.0, T0 + 1_000), (4, 9, 1.0, T0 + 1_000)]
    other = build(tmp_path, rows, name=shared.home.name, servers=servers)
    assert [online(other, user).item_ids for user in (1, 4)] == [(9,), (9,)]
    assert [online(shared, user).item_ids for user in (1, 4)] == [(3, 5), ()]
    assert other.store.historical_states([1], T0 + 2_000)[0].item_ids == (9,)
    assert shared.store.historical_states([1], T0 + 2_000)[0].item_ids == (3, 5)
    other.store.close()


def test_a_copied_home_is_read_where_it_is(shared: World, tmp_path: Path) -> None:
    moved = type(shared.home)(tmp_path / "moved", shared.home.name)
    shutil.copytree(shared.home.root, moved.root)
    store = FeatureStore(replace(shared.store.config, home=moved))
    if shared.store.config.online_file is None:  # on a server the rows are those of another home
        with pytest.raises(StoreError, match=r"or the home was moved. Run `recsys train --only features --force`"):
            store.online_state(1)
    else:
        assert store.online_state(1) == online(shared, 1)
        (moved.features / "user_state.parquet").unlink()
        with pytest.raises(StoreError, match=f"No feature table at {moved.root}"):
            store.historical_states([1], T0)
    store.close()


def test_homes_with_the_same_data_and_one_event_table_share_their_rows(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    servers = {"online_store": "redis", "redis_connection": redis_server.connection}
    first, second = (
        build(tmp_path / user, ROWS, servers={**servers, "events_url": f"postgresql+psycopg://{user}@db/events"})
        for user in ("a:secret", "b:other")
    )
    materialize_elsewhere(first, through_seq=9)
    assert online(second, 1).through_seq == 9
    for world in (first, second):
        world.store.close()


def test_the_rows_of_a_replaced_data_set_are_gone(embedded: World) -> None:
    embedded.store.close()
    write_json(embedded.home.data / "dataset.json", {"fingerprint": "of other files"})
    with pytest.raises(StoreError, match=r"does not know project .*prepared anew, or .*moved. Run `recsys train"):
        embedded.store.online_state(1)
    users = pd.DataFrame({USER_ID: [1], "gender": ["F"], "age": [18], "occupation": ["artist"]})
    none = embedded.histories.from_tables(embedded.catalogue, embedded.events.iloc[:0], users)
    write_feature_tables(embedded.home, none, embedded.snapshots.iloc[:0], NO_CONTEXTS)
    embedded.store.apply()
    embedded.store.materialize()
    assert online(embedded, 1) == UserState(1, gender="F", age=18, occupation="artist")
    assert embedded.store.online_state(2) is None
    assert embedded.store.last_snapshot_day() == 0


def test_a_read_only_home_can_be_read(embedded: World) -> None:
    embedded.store.close()
    with read_only(embedded.home.root):
        assert online(embedded, 1).item_ids == (3, 5)
        assert embedded.store.historical_states([1], T0 + 10)[0].item_ids == (3,)
        embedded.store.close()


def test_damaged_files_are_an_error_until_the_features_are_made_again(embedded: World) -> None:
    embedded.store.close()
    for name in ("online.db", "registry.db"):
        (embedded.home.feast / name).write_bytes(b"no database at all " * 1_000)
        with pytest.raises(StoreError, match=r"(?s)not a database.*Run `recsys train --only features --force`"):
            embedded.store.online_state(1)
    embedded.store.apply()
    embedded.store.materialize()
    assert online(embedded, 1).item_ids == (3, 5)
    assert len(list(embedded.home.feast.glob("*.db.damaged"))) == 2


def test_what_is_missing_is_named(shared: World, servers: dict[str, Any], tmp_path: Path) -> None:
    nowhere = type(shared.home)(tmp_path / "nowhere", "nowhere")
    empty = FeatureStore(replace(shared.store.config, home=nowhere))
    for call in (empty.apply, empty.materialize, empty.last_snapshot_day, lambda: empty.historical_states([1], [1])):
        with pytest.raises(StoreError, match="Run `recsys train` first"):
            call()
    with pytest.raises(StoreError, match="does not know project" if servers else "No feature"):
        empty.online_state(1)
