"""States while the store lacks what was acknowledged: too many events are pending, it lost some, or a read is slow.

Kept: an answer either knows every acknowledged event, or is refused, so that the caller says what is missing; and the
store comes to hold all of them without the user's doing.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from recsys.errors import StoreError
from recsys.feature_store.online import Stored
from recsys.features import state_merge
from recsys.features.state import Event
from serving import known
from serving import states as module
from serving.circuit import Circuit
from serving.event_log import EventLog
from serving.observability.metrics import Metrics
from serving.pending import Pending
from serving.states import UserStates

from .fake_store import Clock, FakeStore, event

Make = Callable[..., UserStates]


@pytest.fixture
def store(tmp_path: Path) -> FakeStore:
    return FakeStore(tmp_path)


@pytest.fixture
def make(store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """`UserStates` over the store; what failed is tried again at once."""
    monkeypatch.setattr(module, "AGAIN_S", 0.0)
    made: list[UserStates] = []

    def one(
        pending: Pending | None = None, circuit: Circuit | None = None, metrics: Metrics | None = None
    ) -> UserStates:
        made.append(UserStates(store, EventLog(tmp_path / "log"), metrics, circuit, pending))  # type: ignore[arg-type]
        return made[-1]

    yield one
    for states in made:
        states.close()


def within_20_s(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not what():
        assert time.monotonic() < until
        time.sleep(0.005)


# ---- many events


def test_many_events_of_one_user_at_once_are_folded_once(
    store: FakeStore, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once for each of them: 500 would take seconds."""
    folds: list[int] = []

    def counted(state, seen, events):  # type: ignore[no-untyped-def]
        folds.append(len(events))
        return state_merge.fold(state, seen, events)

    monkeypatch.setattr(known, "fold", counted)
    states = make()
    store.failing = True
    told = states.record_all([event(1, item, 100) for item in range(500)])
    assert folds == [500]
    assert {(one.applied, one.known.state.n_events) for one in told if one.known is not None} == {(False, 500)}
    assert len(told) == 500


def test_what_is_too_much_to_keep_is_taken_from_the_log(
    store: FakeStore, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    states = make(Pending(most=3), metrics=metrics)
    states.record(event(1, 10, 100))
    states.record(event(2, 10, 100))
    store.failing = True
    told = states.record_all([event(user, item, 200) for user, item in ((1, 11), (1, 12), (2, 11), (2, 12), (3, 11))])
    assert [one.applied for one in told] == [False] * 5
    assert [one.known.state.n_events for one in told if one.known] == [3, 3, 3, 3, 1]
    assert (len(states._pending), states._pending.users()) == (3, [1, 3])
    assert metrics.as_dict() == {"store.left_out": 1}
    assert "events of 1 user(s) are in the log only: too many wait for the store" in caplog.text
    assert states.last_known(2).state.item_ids == (10, 11, 12)  # in the order of what came last, no store needed
    store.failing = False
    with pytest.raises(StoreError, match="Events of user 2 are in the log, and in the store once it has caught up"):
        states.read(2)  # the store answers, but its state is an old one
    within_20_s(lambda: not states._pending.left_out(2))
    assert states.read(2).state.item_ids == (10, 11, 12)
    assert [store.rows[user][0].n_events for user in (1, 2, 3)] == [3, 3, 1]
    assert len(states._pending) == 0
    assert not states._pending.behind


def test_a_user_with_more_events_than_a_turn_should_fold_is_taken_from_the_log(store: FakeStore, make: Make) -> None:
    states = make(Pending(most_of_user=2))
    store.failing = True
    for item in range(4):
        assert not states.record(event(1, item, 100 + item))[1]
    assert (len(states._pending), states.last_known(1).state.n_events) == (2, 4)
    store.failing = False
    states._move_pending()
    assert store.rows[1][0].item_ids == (0, 1, 2, 3)
    assert states.read(1).state == store.rows[1][0]


def test_a_store_that_fails_while_it_catches_up_is_caught_up_later(
    store: FakeStore, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    states = make(Pending(most_of_user=0))
    store.failing = True
    states.record(event(1, 10, 100))
    states._move_pending()
    assert "events of 0 user(s) wait for the store: the store is away" in caplog.text
    assert states._pending.left_out(1)
    store.failing = False
    states._log_at = 0.0
    states._move_pending()
    assert store.rows[1][0].item_ids == (10,)
    assert not states._pending.left_out(1)


def test_an_event_left_out_while_the_log_is_read_is_read_the_next_time(store: FakeStore, make: Make) -> None:
    """The reader has passed the end that the log had."""
    states = make(Pending(most_of_user=0))
    states.record(event(1, 10, 100))
    catch_up = store.catch_up

    def with_one_more() -> int:
        count = catch_up()
        if store.log_read == 1:
            states.record(event(2, 10, 100))
        return count

    store.catch_up = with_one_more  # type: ignore[method-assign]
    states._move_pending()
    assert (sorted(store.rows), states._pending.left_out(1), states._pending.left_out(2)) == ([1], False, True)
    states._log_at = time.perf_counter() + 60.0
    states._move_pending()  # too soon
    assert (store.log_read, states._left) == (1, True)
    states._log_at = 0.0
    states._move_pending()
    assert (sorted(store.rows), states._pending.left_out(2)) == ([1, 2], False)


def test_one_at_a_time_reads_the_log(store: FakeStore, make: Make) -> None:
    states = make(Pending(most_of_user=0))
    states.record(event(1, 10, 100))
    assert states._pending.begin()  # by another thread
    states._move_pending()
    assert (store.log_read, states._left) == (0, True)
    states._pending.end(caught_up=True)


def test_what_no_one_expects_ends_no_retry(
    store: FakeStore, make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder for locks that cannot be written is no failure of the store, and nothing to refuse an event for, which
    is in the log."""
    states = make()

    def full(*_: int) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store.locks, "held", full)
        assert states.record(event(1, 10, 100))[1] is False
        states._move_pending()
    assert caplog.text.count("wait for the store: No space left on device") == 1
    assert states._left
    within_20_s(lambda: states.read(2).stored is False and 1 in store.rows)


# ---- a store that lost what it had


def test_a_store_that_was_away_is_held_against_the_log(store: FakeStore, make: Make) -> None:
    """Nothing is pending, and nothing is remembered here: another worker recorded it."""
    clock = Clock()
    states, other = make(circuit=Circuit(threshold=3, over_s=0.0, pause_s=1.0, clock=clock)), make()
    other.record(event(1, 10, 100))
    before = store.rows[1]
    other.record(event(1, 11, 200))
    store.failing = True
    for _ in range(3):
        with pytest.raises(StoreError):
            states.read(9)
    store.rows[1] = before  # a crash
    store.failing = False
    clock.now = 1.0
    states.read(9)
    within_20_s(lambda: store.rows[1][0].n_events == 2)
    assert store.log_read == 1


@pytest.mark.parametrize("left", ["an older state", "nothing"])
def test_what_the_store_lost_unnoticed_comes_back_with_the_user_s_next_read(
    store: FakeStore, make: Make, left: str
) -> None:
    states = make()
    states.record(event(1, 10, 100))
    before = store.rows[1]
    states.record(event(1, 11, 200))
    store.rows.pop(1)
    if left == "an older state":
        store.rows[1] = before
    with pytest.raises(StoreError, match="The store had more events of user 1 before; the state is made anew"):
        states.read(1)
    assert states.last_known(1).state.item_ids == (10, 11)
    within_20_s(lambda: states.read(2).stored is False and 1 in store.rows and store.rows[1][0].n_events == 2)
    within_20_s(lambda: not states._lost)
    assert states.read(1).state.item_ids == (10, 11)
    assert store.log_read == 0  # nor is anybody else looked at


def test_what_the_store_lost_comes_back_with_the_user_s_next_event(store: FakeStore, make: Make) -> None:
    states = make()
    states.record(event(1, 10, 100))
    before = store.rows[1]
    states.record(event(1, 11, 200))
    store.rows[1] = before
    known, applied = states.record(event(1, 12, 300))
    assert (known.state.item_ids, applied) == ((10, 11, 12), True)
    assert store.rows[1][0] == known.state


def test_an_event_whose_push_failed_is_not_taken_for_lost(
    store: FakeStore, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More is remembered than the store has, and it is pending: no reason to read all events of the user."""
    states = make()
    states.record(event(1, 10, 100))

    def fails(*_: object, **__: object) -> None:
        raise StoreError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(store, "push_state", fails)
        assert states.record(event(1, 11, 200))[1] is False
    assert states._last[1].state.n_events == 2
    monkeypatch.setattr(store, "whole_state", fails)
    assert states.read(1).state.item_ids == (10, 11)
    within_20_s(lambda: len(states._pending) == 0)
    assert store.rows[1][0].item_ids == (10, 11)


def test_an_event_that_waits_does_not_hide_one_that_was_lost(store: FakeStore, make: Make) -> None:
    """As many events as before, but not the same ones."""
    states = make()
    states.record(event(1, 10, 100))
    before = store.rows[1]
    states.record(event(1, 11, 200))
    store.failing = True
    assert states.record(event(1, 12, 300))[1] is False
    store.rows[1] = before
    store.failing = False
    with pytest.raises(StoreError, match="had more events of user 1"):
        states.read(1)
    within_20_s(lambda: store.rows[1][0].item_ids == (10, 11, 12))


def test_a_memory_that_tables_and_log_do_not_bear_out_is_given_up(store: FakeStore, make: Make) -> None:
    """As after tables were made of other events: one answer is degraded, not all to come."""
    states = make()
    states.record(event(1, 10, 100))
    states._last[1] = replace(states._last[1], state=replace(states._last[1].state, n_events=9))
    with pytest.raises(StoreError, match="had more events of user 1"):
        states.read(1)
    states._move_pending()
    assert states._last[1].state == states.read(1).state == store.rows[1][0]
    assert store.rows[1][0].n_events == 1


# ---- a read under way


class SlowReads:
    """Holds reads back once they have their answer."""

    def __init__(self, store: FakeStore) -> None:
        self.has_read, self.go_on = threading.Event(), threading.Event()
        self._read = store.online_state

    def __call__(self, user_id: int) -> Stored | None:
        found = self._read(user_id)
        self.has_read.set()
        self.go_on.wait(20)
        return found


def test_a_slow_read_does_not_replace_a_newer_memory(store: FakeStore, make: Make) -> None:
    states = make()
    states.record(event(1, 10, 100))
    states._read = slow = SlowReads(store)  # type: ignore[method-assign]
    reader = threading.Thread(target=states.read, args=(1,))
    reader.start()
    assert slow.has_read.wait(20)
    states.record(event(1, 11, 200))
    slow.go_on.set()
    reader.join()
    store.failing = True
    assert states.last_known(1).state.item_ids == (10, 11)


def test_the_higher_of_two_ratings_under_one_key_is_the_newer_memory(store: FakeStore, make: Make) -> None:
    states = make()
    states.record(event(1, 10, 100, rating=2.0))
    states._read = slow = SlowReads(store)  # type: ignore[method-assign]
    reader = threading.Thread(target=states.read, args=(1,))
    reader.start()
    assert slow.has_read.wait(20)
    states.record(replace(event(1, 10, 100, rating=5.0), event_id="other"))
    slow.go_on.set()
    reader.join()
    assert states.last_known(1).state.ratings == (5.0,)


def test_an_event_that_is_moved_during_a_read_is_in_its_answer(store: FakeStore, make: Make) -> None:
    """It was acknowledged before the read began, which has the state from before the move."""
    states = make()
    states.record(event(1, 10, 100))
    store.failing = True
    assert states.record(event(1, 11, 200))[1] is False
    store.failing = False
    states._left = False
    states._read = slow = SlowReads(store)  # type: ignore[method-assign]
    answers = []
    reader = threading.Thread(target=lambda: answers.append(states.read(1)))
    reader.start()
    assert slow.has_read.wait(20)
    states._move_pending()
    assert len(states._pending) == 0
    slow.go_on.set()
    reader.join()
    assert [known.state.item_ids for known in answers] == [(10, 11)]


def test_an_event_that_is_moved_while_the_last_is_looked_up_is_in_it(
    store: FakeStore, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = make()
    states.record(event(1, 10, 100))
    store.failing = True
    assert states.record(event(1, 11, 200))[1] is False
    store.failing = False
    of = states._pending.of

    def moved_before(user_id: int) -> tuple[Event, ...]:
        monkeypatch.setattr(states._pending, "of", of)
        states._move_pending()
        return of(user_id)

    monkeypatch.setattr(states._pending, "of", moved_before)
    assert states.last_known(1).state.item_ids == (10, 11)
    assert len(states._pending) == 0
