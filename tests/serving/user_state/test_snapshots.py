"""A user's snapshot: the row of the store and the events after it, whatever of the two can be read."""

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.errors import StoreError
from recsys.events import RATING_KIND, DataClock, EventTable, NewEvent, sqlite_url
from recsys.features.state import Event, UserState, fold
from serving.user_state import snapshots as module
from serving.user_state.circuit_breaker import PAUSE_S, THRESHOLD
from serving.user_state.snapshots import UserSnapshot, UserSnapshots, usable_ratings
from tests.serving.in_memory_store import InMemoryStore


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def table(tmp_path: Path) -> Iterator[EventTable]:
    table = EventTable(sqlite_url(tmp_path / "events.db"))
    yield table
    table.close()


def rating(number: int, item_id: int, value: float | None = 4.0, occurred_at: int = 100, user_id: int = 1) -> NewEvent:
    return NewEvent(f"e{number}", user_id, item_id, RATING_KIND, value, occurred_at, 1.0)


def snapshots_of(table: EventTable, rows: dict[int, UserState], clock: Clock | None = None) -> UserSnapshots:
    return UserSnapshots(InMemoryStore(rows), table, clock=clock or time.monotonic)  # type: ignore[arg-type]


def read(snapshots: UserSnapshots, user_id: int = 1, limit_s: float = 5.0) -> UserSnapshot:
    return asyncio.run(snapshots.read(user_id, limit_s))


ITEMS_AND_TIMES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5), st.sampled_from([1.0, 4.5])), max_size=12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=ITEMS_AND_TIMES, data=st.data())
def test_any_row_with_its_tail_gives_the_state_of_all_events(
    tmp_path: Path, history: list[tuple[int, int, float]], data: st.DataObject
) -> None:
    """Whenever the features were made, and whenever the row was read: base and tail are the whole."""
    (tmp_path / "events.db").unlink(missing_ok=True)
    table = EventTable(sqlite_url(tmp_path / "events.db"))
    events = [Event(item_id, value, moment) for item_id, moment, value in history]
    stored = table.append([rating(n, e.item_id, e.rating, e.timestamp) for n, e in enumerate(events)])
    cut = data.draw(st.integers(0, len(events)))
    base = fold(UserState(1, gender="F"), events[:cut])
    row = UserState(**{**vars(base), "through_seq": stored[cut - 1].seq if cut else 0})
    state = read(snapshots_of(table, {1: row})).state
    assert UserState(**{**vars(state), "through_seq": 0}) == fold(UserState(1, gender="F"), events)
    table.close()


def test_a_row_is_read_again_after_a_while_and_kept_where_it_cannot_be(table: EventTable) -> None:
    clock = Clock()
    snapshots = snapshots_of(table, {1: UserState(1, age=20)}, clock)
    store = snapshots._store
    assert isinstance(store, InMemoryStore)
    assert read(snapshots).state.age == 20
    store.rows[1] = UserState(1, age=30)
    assert (read(snapshots).state.age, store.reads) == (20, 1)
    clock.now += module.ROW_AGE_S + 1
    assert (read(snapshots).state.age, store.reads) == (30, 2)
    store.failing = True
    clock.now += module.ROW_AGE_S + 1
    assert (read(snapshots).state.age, read(snapshots).failures) == (30, ())


def test_the_rows_in_memory_are_bounded(table: EventTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 2)
    snapshots = snapshots_of(table, {})
    for user_id in (1, 2, 3, 3, 2, 1):
        read(snapshots, user_id)
    assert snapshots._store.reads == 4  # type: ignore[attr-defined]


def test_a_store_that_hangs_is_given_up_then_left_alone_and_asked_again(table: EventTable) -> None:
    table.append([rating(1, 7)])
    clock = Clock()
    snapshots = snapshots_of(table, {1: UserState(1, age=20)})
    snapshots._online_store._clock = clock
    store = snapshots._store
    assert isinstance(store, InMemoryStore)
    store.delay_s = 0.2
    timed = []
    for _ in range(THRESHOLD + 3):
        began = time.perf_counter()
        snapshot = read(snapshots, limit_s=0.05)
        timed.append((time.perf_counter() - began, snapshot))
    assert all("did not answer" in str(snapshot.failures[0]) for _, snapshot in timed[:THRESHOLD])
    assert all("asked again shortly" in str(snapshot.failures[0]) for _, snapshot in timed[THRESHOLD:])
    assert max(seconds for seconds, _ in timed[THRESHOLD:]) < 0.05
    assert all(snapshot.state.item_ids == (7,) for _, snapshot in timed)
    store.delay_s, store.failing = 0.0, True
    clock.now += PAUSE_S + 0.1
    assert "away" in str(read(snapshots).failures[0]), "one is let through"
    assert "asked again shortly" in str(read(snapshots).failures[0])
    store.failing = False
    clock.now += PAUSE_S + 0.1
    assert (read(snapshots).failures, read(snapshots, 2).failures) == ((), ())


def test_a_read_that_came_in_time_counts_however_busy_the_loop_was(table: EventTable) -> None:
    snapshots = snapshots_of(table, {1: UserState(1, age=20)})

    async def busy() -> UserSnapshot:
        reading = asyncio.create_task(snapshots.read(1, 0.05))
        await asyncio.sleep(0)
        time.sleep(0.3)  # other answers are computed on this loop
        return await reading

    assert asyncio.run(busy()).failures == ()


def test_what_cannot_be_a_rating_is_left_out_and_named(table: EventTable, caplog: pytest.LogCaptureFixture) -> None:
    odd = [rating(1, 5, None), rating(2, 5, 77.0), rating(3, 5, -1.0), rating(4, 5, 4.0, -5), rating(5, 5, 4.0, 2**60)]
    stored = table.append([*odd, rating(6, 8)])
    with caplog.at_level(logging.WARNING):
        assert usable_ratings(stored, DataClock()) == [Event(8, 4.0, 100)]
    assert [f"'e{n}'" in record.getMessage() for n, record in zip(range(1, 6), caplog.records, strict=True)] == [
        True
    ] * 5
    assert read(snapshots_of(table, {})).state.item_ids == (8,)


def test_a_row_read_for_another_request_meanwhile_stands_in_for_a_failed_read(table: EventTable) -> None:
    class FailsSecond(InMemoryStore):
        reads = 0

        def online_state(self, user_id: int) -> UserState | None:
            FailsSecond.reads += 1
            if FailsSecond.reads == 1:  # begun first, ends last
                time.sleep(0.3)
                raise StoreError("away")
            return super().online_state(user_id)

    async def read_twice() -> list[UserSnapshot]:
        snapshots = UserSnapshots(FailsSecond({1: UserState(1, age=20)}), table)  # type: ignore[arg-type]
        both = await asyncio.gather(snapshots.read(1, 5.0), snapshots.read(1, 5.0))
        snapshots.close()
        return list(both)

    for snapshot in asyncio.run(read_twice()):
        assert (snapshot.state.age, snapshot.known, snapshot.failures) == (20, True, ())
