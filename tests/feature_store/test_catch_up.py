"""Events logged behind the tables are on top of them, on every store, also while a service goes on writing."""

import random
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from recsys.event_log import read_log
from recsys.feature_store import FeatureStore
from recsys.feature_store.catch_up import moved
from recsys.feature_store.user_locks import BUCKETS, UserLocks
from recsys.features.state import HISTORY_LENGTH, Event, UserState
from recsys.features.state_merge import state_from_events

from .feature_worlds import T0, World, build
from .test_latest import LATER, log_events, tables_again

BASE = [(1, 1 + i % 40, 3.0, T0 + 10 * i) for i in range(HISTORY_LENGTH + 20)] + [(2, 3, 5.0, T0 + 20)]


def expected(world: World) -> dict[int, tuple[UserState, list[int]]]:
    """The state of everybody by definition: all events of data set and log, sorted, each key once."""
    events = defaultdict(list)
    for user, item, rating, timestamp in world.events.itertuples(index=False):
        events[user].append(Event(item, rating, timestamp))
    for e in read_log(world.home.events):
        events[e.user_id].append(Event(e.item_id, e.rating, e.timestamp))
    out = {}
    for user in {*events, *world.users["user_id"].tolist()}:
        profile = UserState(user)
        if user in world.histories.user_ids:
            stored = world.histories.stored_state(int(world.histories.user_idx(user)), 0)
            profile = UserState(user, gender=stored.gender, age=stored.age, occupation=stored.occupation)
        state, seen = state_from_events(profile, events[user])
        out[user] = state, seen.tolist()
    return out


def online(world: World) -> dict[int, tuple[UserState, list[int]]]:
    users = sorted(expected(world))
    return {
        user: (row[0], row[1].tolist())
        for user, row in zip(users, world.store.online_states(users), strict=True)
        if row is not None
    }


def test_later_events_are_on_top_of_a_materialisation(
    servers: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.feature_store.catch_up.BATCH", 2)
    world = build(tmp_path, BASE, servers=servers)
    log_events(world.home.events, [(1, 7, 5.0, LATER), (50, 2, 2.0, LATER)])
    tables_again(world)
    later = [
        (1, 8, 4.5, LATER + 1),
        (1, 2, 1.0, T0 - 7),  # older than the window, of an item seen: cannot be folded
        (1, 1, 3.0, T0),  # the same, but counted already
        (50, 2, 4.0, LATER),  # the same second with more stars
        (60, 9, 3.5, LATER),
        (8, 9, 3.5, LATER - 5),
    ]
    log_events(world.home.events, later, received=LATER + 86_400)
    world.store.materialize()
    assert online(world) == expected(world)
    assert world.store.catch_up() == 0
    log_events(world.home.events, [(2, 9, 4.0, LATER), (2, 9, 4.0, LATER)], received=LATER + 90_000)
    assert world.store.catch_up() == 1
    assert world.store.catch_up() == 0
    assert online(world) == expected(world)
    world.store.close()


def test_a_store_that_lost_its_rows_does_not_make_strangers_of_users(tmp_path: Path) -> None:
    """A Redis started again is empty. An event of a user whom the tables know then moves the whole state."""
    world = build(tmp_path, BASE)
    log_events(world.home.events, [(2, 9, 4.0, LATER)])
    state, seen = moved(None, 2, [Event(9, 4.0, LATER)], world.store.whole_state)
    assert (state.item_ids, state.gender, seen.tolist()) == ((3, 9), "M", [3, 9])
    state, seen = moved(None, 99, [Event(9, 4.0, LATER)], world.store.whole_state)
    assert (state.item_ids, state.gender, seen.tolist()) == ((9,), "", [9])
    world.store.close()


def test_a_materialisation_under_a_running_service_loses_nothing(servers: dict[str, Any], tmp_path: Path) -> None:
    """One thread records as the service does; another store writes the tables and materialises, three times or more."""
    world = build(tmp_path, BASE, servers=servers)
    done = threading.Event()
    failures: list[BaseException] = []
    rng = random.Random(4)

    def record() -> None:
        second = 0
        try:
            while not done.is_set():
                user, second = rng.choice([1, 2, 3, 9, 70]), second + 1
                row = (user, rng.randint(1, 40), rng.randint(1, 10) / 2, LATER + second)
                if rng.random() < 0.2:
                    row = (*row[:3], T0 + rng.randint(0, 900))
                with world.store.locks.held(user):
                    log_events(world.home.events, [row], received=LATER + second)
                    stored = world.store.online_state(user)
                    state, seen = moved(stored, user, [Event(*row[1:])], world.store.whole_state)
                    world.store.push_state(state, seen, stamped=state.timestamps[-1])
                time.sleep(0.002)
        except BaseException as error:
            failures.append(error)

    service = threading.Thread(target=record)
    service.start()
    batch = FeatureStore(world.store.config)
    try:
        rounds = 0
        while not failures and (rounds < 3 or len(list(read_log(world.home.events))) < 60):
            tables_again(world)
            batch.materialize()
            rounds += 1
    finally:
        done.set()
        service.join()
        batch.close()
    assert failures == []
    assert online(world) == expected(world)
    world.store.close()


def test_locks_hold_between_threads_and_in_any_order(tmp_path: Path) -> None:
    locks = UserLocks(tmp_path / "locks")
    inside, most = 0, 0

    def turn(*users: int) -> None:
        nonlocal inside, most
        for _ in range(30):
            with locks.held(*users):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0005)
                inside -= 1

    threads = [threading.Thread(target=turn, args=users) for users in ((1, 2), (2, 1), (1 + BUCKETS, 2), (2, 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert most == 1
    assert sorted(p.name for p in (tmp_path / "locks").iterdir()) == ["001.lock", "002.lock"]
    with locks.held(3), UserLocks(tmp_path / "locks").held(4):  # others go on
        pass


def test_a_lock_is_given_back_by_an_error(tmp_path: Path) -> None:
    locks = UserLocks(tmp_path)
    with pytest.raises(ValueError, match="inside"), locks.held(1):
        raise ValueError("inside")
    with locks.held(1):
        pass
