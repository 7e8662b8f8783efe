"""What a request reads, and what a materialisation does to a service that runs meanwhile; on every store alike."""

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
def base(servers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = build(tmp_path_factory.mktemp("online"), ROWS, servers=servers, through_seq=17)
    yield world
    world.store.close()


@pytest.fixture
def own(servers: dict[str, Any], tmp_path: Path) -> Iterator[World]:
    """One that a test may change."""
    world = build(tmp_path, random_events(3), servers=servers)
    yield world
    world.store.close()


def rewrite(world: World, through_seq: int) -> None:
    write_feature_tables(world.home, world.histories, world.snapshots, NO_CONTEXTS, through_seq)


def online(world: World, user_id: int) -> UserState:
    state = world.store.online_state(user_id)
    assert state is not None
    return state


def test_a_row_is_the_whole_state(base: World) -> None:
    expected = UserState(1, (3, 5), (4.0, 2.5), (T0, T0 + 10), 2, 1, 6.5, 22.25, gender="F", age=18)
    assert online(base, 1) == replace(expected, occupation="artist", through_seq=17)


def test_somebody_unknown_is_none_and_somebody_without_events_is_not(base: World) -> None:
    assert base.store.online_state(77) is None
    assert online(base, 9) == UserState(9, through_seq=17)


def test_many_are_read_in_the_order_given(base: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.feature_store.store.ONLINE_CHUNK", 2)
    found = base.store.online_states([2, 77, 1, 2, 9])
    assert [state and state.user_id for state in found] == [2, None, 1, 2, 9]
    assert base.store.online_states([]) == []


def test_a_materialisation_replaces_rows_of_equal_age_under_an_open_store(own: World) -> None:
    assert online(own, 1) == newest(own, 1)
    rewrite(own, through_seq=5)
    another_process = FeatureStore(own.store.config)
    another_process.materialize()
    another_process.close()
    assert online(own, 1) == replace(newest(own, 1), through_seq=5)


def test_a_running_service_never_sees_a_user_without_a_row_or_a_torn_one(own: World) -> None:
    expected = {user: newest(own, user) for user in range(1, 10)}
    online(own, 1)
    done = threading.Event()
    failures: list[BaseException] = []

    def materialize() -> None:
        try:
            for seq in range(1, 4):
                rewrite(own, seq)
                other = FeatureStore(own.store.config)
                other.materialize()
                other.close()
        except BaseException as error:
            failures.append(error)
        finally:
            done.set()

    writing = threading.Thread(target=materialize)
    writing.start()
    seen = set()
    while not done.is_set():
        for user, state in zip(expected, own.store.online_states(list(expected)), strict=True):
            assert state is not None
            assert replace(state, through_seq=0) == expected[user]
            seen.add(state.through_seq)
    writing.join()
    assert not failures
    assert online(own, 1).through_seq == 3
    assert len(seen) > 1


def test_two_homes_that_share_process_and_servers_never_mix(
    base: World, servers: dict[str, Any], tmp_path: Path
) -> None:
    rows = [(1, 9, 1.0, T0 + 1_000), (4, 9, 1.0, T0 + 1_000)]
    other = build(tmp_path, rows, name=base.home.name, servers=servers)
    assert [online(other, user).item_ids for user in (1, 4)] == [(9,), (9,)]
    assert [online(base, user).item_ids for user in (1, 4)] == [(3, 5), ()]
    assert other.store.historical_states([1], T0 + 2_000)[0].item_ids == (9,)
    assert base.store.historical_states([1], T0 + 2_000)[0].item_ids == (3, 5)
    other.store.close()


def test_the_rows_of_a_replaced_data_set_are_gone(own: World) -> None:
    own.store.close()
    write_json(own.home.data / "dataset.json", {"fingerprint": "of other files"})
    with pytest.raises(StoreError, match=r"does not know project .*prepared anew, or .*moved. Run `recsys train"):
        own.store.online_state(1)
    users = pd.DataFrame({USER_ID: [1], "gender": ["F"], "age": [18], "occupation": ["artist"]})
    none = own.histories.from_tables(own.catalogue, own.events.iloc[:0], users)
    write_feature_tables(own.home, none, own.snapshots.iloc[:0], NO_CONTEXTS)
    own.store.apply()
    own.store.materialize()
    assert online(own, 1) == UserState(1, gender="F", age=18, occupation="artist")
    assert own.store.online_state(2) is None
    assert own.store.last_snapshot_day() == 0


def test_homes_with_the_same_data_and_one_event_table_share_their_rows(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    servers = {"online_store": "redis", "redis_connection": redis_server.connection}
    shared = {**servers, "events_url": "postgresql+psycopg://u:secret@db/events"}
    first = build(tmp_path / "a", ROWS, servers=shared)
    second = build(tmp_path / "b", ROWS, servers={**shared, "events_url": "postgresql+psycopg://db/events"})
    rewrite(first, through_seq=9)
    first.store.materialize()
    assert online(second, 1).through_seq == 9
    for world in (first, second):
        world.store.close()


def test_a_copied_home_is_read_where_it_is(base: World, tmp_path: Path) -> None:
    moved = type(base.home)(tmp_path / "moved", base.home.name)
    shutil.copytree(base.home.root, moved.root)
    store = FeatureStore(replace(base.store.config, home=moved))
    if base.store.config.online_file is None:  # on a server the rows are those of another home
        with pytest.raises(StoreError, match=r"or the home was moved. Run `recsys train --only features --force`"):
            store.online_state(1)
    else:
        assert store.online_state(1) == online(base, 1)
        (moved.features / "user_state.parquet").unlink()
        with pytest.raises(StoreError, match=f"No feature table at {moved.root}"):
            store.historical_states([1], T0)
    store.close()


def test_close_and_read_again(base: World) -> None:
    base.store.close()
    base.store.close()
    assert online(base, 1).n_events == 2


@pytest.mark.parametrize("name", ["why?x", "a%41b", 'it\'s "so" #1 [x] ü'])
def test_a_path_may_hold_any_character(tmp_path: Path, name: str) -> None:
    world = build(tmp_path / name, ROWS, [(1, T0 + 10)])
    assert online(world, 1).item_ids == (3, 5)
    assert world.store.historical_states([1], T0 + 10)[0].item_ids == (3,)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    world.store.close()


def test_a_read_only_home_can_be_read(tmp_path: Path) -> None:
    world = build(tmp_path, ROWS, [(1, T0 + 10)])
    world.store.close()
    with read_only(world.home.root):
        assert online(world, 1).item_ids == (3, 5)
        assert world.store.historical_states([1], T0 + 10)[0].item_ids == (3,)
        world.store.close()


@pytest.mark.parametrize("name", ["online.db", "registry.db"])
def test_a_damaged_file_is_an_error_until_the_features_are_made_again(tmp_path: Path, name: str) -> None:
    world = build(tmp_path, ROWS)
    world.store.close()
    (world.home.feast / name).write_bytes(b"no database at all " * 1_000)
    with pytest.raises(StoreError, match=r"(?s)not a database.*Run `recsys train --only features --force`"):
        world.store.online_state(1)
    world.store.apply()
    world.store.materialize()
    assert online(world, 1).item_ids == (3, 5)
    assert (world.home.feast / f"{name}.damaged").exists()
    world.store.close()


def test_what_is_missing_is_named(base: World, servers: dict[str, Any], tmp_path: Path) -> None:
    nowhere = type(base.home)(tmp_path / "nowhere", "nowhere")
    empty = FeatureStore(replace(base.store.config, home=nowhere))
    for call in (empty.apply, empty.materialize, empty.last_snapshot_day, lambda: empty.historical_states([1], [1])):
        with pytest.raises(StoreError, match="Run `recsys train` first"):
            call()
    with pytest.raises(StoreError, match="does not know project" if servers.get("registry_path") else "No feature"):
        empty.online_state(1)
