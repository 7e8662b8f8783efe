"""States while the store fails, hangs and comes back: nobody waits twice, nothing is lost, everything is counted."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from recsys.errors import StoreError
from recsys.feature_store.online import Stored
from recsys.features.state import HISTORY_LENGTH
from serving.circuit import Circuit
from serving.event_log import EventLog
from serving.known import Known
from serving.observability.metrics import Metrics
from serving.states import STORE_THREADS, UserStates

from .fake_store import Clock, FakeStore, event


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FakeStore]:
    made = FakeStore(tmp_path)
    yield made
    made.going.set()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def states(store: FakeStore, tmp_path: Path, metrics: Metrics, clock: Clock) -> Iterator[UserStates]:
    circuit = Circuit(threshold=3, over_s=0.0, pause_s=1.0, clock=clock)
    made = UserStates(store, EventLog(tmp_path / "log"), metrics, circuit)  # type: ignore[arg-type]
    yield made
    made.close()


def test_a_store_that_is_known_to_be_away_is_not_waited_for(
    store: FakeStore, states: UserStates, metrics: Metrics, clock: Clock
) -> None:
    store.going.clear()
    for _ in range(3):
        with pytest.raises(StoreError, match=r"was not read within 0\.010 s"):
            states.read(1, 0.01)
    started = time.perf_counter()
    for _ in range(1_000):
        with pytest.raises(StoreError, match="the store failed 3 times and is asked again shortly"):
            states.read(1, 5.0)
    assert time.perf_counter() - started < 2.0
    assert store.reads == 3
    assert metrics.as_dict() == {"store.left_alone": 1, "store.not_asked": 1_000}
    clock.now = 1.0
    store.going.set()
    assert states.read(1, 5.0).stored is False  # the one that finds out
    assert states.read(1, 5.0).stored is False


def test_a_caller_without_time_is_no_failure_of_the_store(
    store: FakeStore, states: UserStates, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers after 20 ms, which is more than the callers have."""
    read = store.online_state

    def slowly(user_id: int) -> Stored | None:
        time.sleep(0.02)
        return read(user_id)

    store.online_state = slowly  # type: ignore[method-assign]
    for _ in range(10):
        with pytest.raises(StoreError, match="was not read within"):
            states.read(1, 0.001)
        time.sleep(0.04)
    assert states.read(1, 20.0).stored is False
    assert metrics.as_dict() == {}
    monkeypatch.setattr("serving.states.SLOW_S", 0.01)
    for _ in range(3):
        with pytest.raises(StoreError, match="was not read within"):
            states.read(1, 0.001)
        time.sleep(0.04)
    with pytest.raises(StoreError, match="is asked again shortly"):
        states.read(1, 20.0)


def names_of_readers(store: FakeStore, monkeypatch: pytest.MonkeyPatch, slow: list[float]) -> list[str]:
    """The threads that have read; each read takes as long as `slow` says, one after another, then no time."""
    names: list[str] = []
    read = store.online_state

    def told(user_id: int, at_once: bool = False) -> Stored | None:
        thread = threading.current_thread()
        assert at_once == (thread is threading.main_thread())
        names.append("here" if at_once else thread.name.rsplit("-", 1)[0])
        time.sleep(slow.pop(0) if slow else 0.0)
        return read(user_id)

    monkeypatch.setattr(store, "online_state", told)
    return names


def test_a_file_is_read_by_who_asks_unless_it_was_slow_or_has_failed(
    store: FakeStore, states: UserStates, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = "here"
    monkeypatch.setattr("serving.states.QUICK_S", 0.5)  # a busy machine is not slow
    names = names_of_readers(store, monkeypatch, slow=[0.0, 0.0, 1.0])
    store.local = True
    assert not states.at_hand  # nobody knows yet
    for _ in range(5):
        states.read(1, 5.0, at_once=True)
    assert names == ["store-read", here, here, "store-read", here]
    assert states.at_hand
    store.failing = True
    for _ in range(2):
        with pytest.raises(StoreError, match="the store is away"):
            states.read(1, 5.0, at_once=True)
    store.failing = False
    assert not states.at_hand
    for _ in range(2):
        states.read(1, 5.0, at_once=True)
    assert names[5:] == [here, "store-read", "store-read", here]
    states.read(1, 5.0)  # by who can wait
    store.local = False
    states.read(1, 5.0, at_once=True)
    assert names[9:] == ["store-read", "store-read"]


def test_once_opened_a_file_is_at_hand(store: FakeStore, states: UserStates) -> None:
    states.open()
    assert not states.at_hand
    store.local = True
    states.open()
    assert states.at_hand


def test_a_file_that_fails_opens_the_circuit_like_any_other_store(
    store: FakeStore, states: UserStates, metrics: Metrics
) -> None:
    store.local = True
    states.open()
    store.failing = True
    for _ in range(3):
        with pytest.raises(StoreError, match="the store is away"):
            states.read(1, 5.0, at_once=True)
    with pytest.raises(StoreError, match="the store failed 3 times and is asked again shortly"):
        states.read(1, 5.0)
    assert metrics.as_dict() == {"store.left_alone": 1, "store.not_asked": 1}


def test_an_event_loop_goes_on_while_a_store_is_waited_for(store: FakeStore, states: UserStates) -> None:
    states.record(event(1, 10, 100))

    async def scenario() -> tuple[Known, list[str]]:
        store.going.clear()
        reading = asyncio.create_task(states.read_soon(1, 20.0))
        ticks = []
        while not store.reads > 1:  # the first was that of the event
            await asyncio.sleep(0.001)
            ticks.append("tick")
        assert not reading.done()
        store.going.set()
        return await reading, ticks

    known, ticks = asyncio.run(scenario())
    assert ticks
    assert known.state.item_ids == (10,)
    assert known == states.read(1)


def test_a_store_that_hangs_is_not_waited_for_on_an_event_loop_either(
    store: FakeStore, states: UserStates, metrics: Metrics
) -> None:
    store.going.clear()

    async def scenario() -> None:
        for _ in range(3):
            with pytest.raises(StoreError, match=r"was not read within 0\.010 s"):
                await states.read_soon(1, 0.01)
        with pytest.raises(StoreError, match="the store failed 3 times and is asked again shortly"):
            await states.read_soon(1, 20.0)

    asyncio.run(scenario())
    assert metrics.as_dict() == {"store.left_alone": 1, "store.not_asked": 1}


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_read_that_came_in_time_counts_although_the_loop_was_busy(
    make_loop: Callable[[], asyncio.AbstractEventLoop], store: FakeStore, states: UserStates
) -> None:
    async def scenario() -> Known:
        store.going.clear()
        reading = asyncio.create_task(states.read_soon(1, 0.1))
        await asyncio.sleep(0.01)
        store.going.set()
        time.sleep(0.3)  # an answer is computed
        return await reading

    with asyncio.Runner(loop_factory=make_loop) as runner:
        assert runner.run(scenario()).stored is False


def test_a_request_that_is_given_up_is_no_failure_of_the_store(store: FakeStore, states: UserStates) -> None:
    store.going.clear()

    async def scenario() -> None:
        for _ in range(3):
            reading = asyncio.create_task(states.read_soon(1, 20.0))
            await asyncio.sleep(0.005)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading

    asyncio.run(scenario())
    store.going.set()
    assert states.read(1, 20.0).stored is False  # the circuit is closed


def test_a_store_that_hangs_holds_a_few_threads(store: FakeStore, states: UserStates, clock: Clock) -> None:
    before = threading.active_count()
    store.going.clear()
    for turn in range(50):
        clock.now += turn % 2  # also those who are let through to find out
        with pytest.raises(StoreError):
            states.read(turn, 0.002)
    assert threading.active_count() <= before + STORE_THREADS
    assert store.reads <= STORE_THREADS
    store.going.set()


def test_events_that_the_store_missed_reach_it_when_it_is_back(
    store: FakeStore, states: UserStates, clock: Clock
) -> None:
    states.record(event(1, 10, 100))
    store.failing = True
    recorded = [states.record(event(user, item, 200)) for user, item in ((1, 11), (2, 12), (3, 13), (1, 14))]
    assert [applied for _, applied in recorded] == [False] * 4
    assert recorded[3][0].state.item_ids == (10, 11, 14)  # what is known, all the same
    assert states.last_known(2).state.item_ids == (12,)
    assert sorted(store.rows) == [1]
    store.failing = False
    clock.now = 1.0
    assert states.read(9).stored is False  # anybody's read finds out
    until = time.monotonic() + 20
    while sorted(store.rows) != [1, 2, 3] or store.rows[1][0].n_events != 3:
        assert time.monotonic() < until
        time.sleep(0.005)
    assert store.rows[1][0].item_ids == (10, 11, 14)
    assert states.read(1).state == store.rows[1][0]


def test_one_more_failure_while_catching_up_loses_nothing(
    store: FakeStore, states: UserStates, caplog: pytest.LogCaptureFixture
) -> None:
    store.failing = True
    for user in (1, 2, 3):
        states.record(event(user, 10, 100))
    states._move_pending()
    assert "events of 3 user(s) wait for the store" in caplog.text
    store.failing = False
    states._move_pending()
    assert sorted(store.rows) == [1, 2, 3]
    assert len(states._pending) == 0


def test_an_event_given_up_on_is_applied_before_the_next_one_of_its_user(
    store: FakeStore, states: UserStates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The turn that hangs keeps the user's lock: a later event cannot be overtaken by an older state."""
    monkeypatch.setattr("serving.states.RECORD_LIMIT_S", 0.05)
    store.going.clear()
    known, applied = states.record(event(1, 10, 100))
    assert (known.state.item_ids, applied) == ((10,), False)
    store.going.set()
    monkeypatch.setattr("serving.states.RECORD_LIMIT_S", 20.0)
    known, applied = states.record(event(1, 11, 90))
    assert (known.state.item_ids, applied) == ((11, 10), True)
    assert store.rows[1][0] == known.state
    assert len(states._pending) == 0


def test_many_events_of_one_user_at_once_are_all_kept(store: FakeStore, states: UserStates) -> None:
    threads = [threading.Thread(target=states.record, args=(event(1, item, 100 + item),)) for item in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.rows[1][0].item_ids == tuple(range(40))
    assert store.rows[1][0].n_events == 40


def test_an_event_that_does_not_fold_is_shown_while_it_waits_and_exact_afterwards(
    store: FakeStore, states: UserStates
) -> None:
    """A second rating of an item, older than a full window: only all events tell what the state is."""
    for item in range(HISTORY_LENGTH + 5):
        states.record(event(1, item, 1_000 + item))
    late = event(1, 2, 10, rating=1.0)
    store.failing = True
    known, applied = states.record(late)
    assert applied is False
    assert set(known.seen_ids.tolist()) == set(range(HISTORY_LENGTH + 5))
    store.failing = False
    states._move_pending()
    assert store.rows[1][0].n_events == HISTORY_LENGTH + 6
    assert store.rows[1][0].rating_sum == 4.0 * (HISTORY_LENGTH + 5) + 1.0


def test_two_processes_share_the_turns_of_a_user(store: FakeStore, states: UserStates, tmp_path: Path) -> None:
    """Another process is another `UserStates` with locks of its own over the same files."""
    other = UserStates(store, EventLog(tmp_path / "log"))  # type: ignore[arg-type]
    read = store.online_state

    def slowly(user_id: int) -> Stored | None:
        found = read(user_id)
        time.sleep(0.002)
        return found

    store.online_state = slowly  # type: ignore[method-assign]
    threads = [
        threading.Thread(target=(states, other)[item % 2].record, args=(event(1, item, 100 + item),))
        for item in range(30)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.rows[1][0].n_events == 30
    other.close()


def test_a_worker_that_dies_in_the_middle_of_a_line_spoils_no_other_s(tmp_path: Path) -> None:
    """Both workers have written to the file before."""
    first, second = EventLog(tmp_path), EventLog(tmp_path)
    first.append(event(1, 10, 100))
    second.append(event(1, 11, 100))
    (path,) = tmp_path.iterdir()
    with path.open("a") as handle:
        handle.write('{"event_id":"torn"')
    first.append(event(1, 12, 100))
    assert [e.item_id for e in second.read()] == [10, 11, 12]
