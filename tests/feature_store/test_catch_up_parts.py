"""The log is caught up with in parts: the same states, and nobody's is made anew twice."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from recsys.event_log import LoggedEvent
from recsys.feature_store import catch_up as module
from recsys.feature_store.online import Stored
from recsys.features.state import HISTORY_LENGTH, Event, UserState
from recsys.features.state_merge import state_from_events
from serving.event_log import EventLog
from tests.serving.fake_store import FakeStore, event


@pytest.mark.parametrize("part", [1, 7, 1_000])
def test_parts_of_any_size_make_the_same_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr(module, "PART", part)
    monkeypatch.setattr(module, "BATCH", 2)
    rng = random.Random(1)
    events = [event(rng.randint(1, 5), item, rng.randint(0, 10**6)) for item in range(60)]
    events[3:3] = [replace(events[0], event_id="watched", kind="watch", rating=None)]
    EventLog(tmp_path / "log").append(*events)
    store = FakeStore(tmp_path)
    first = events[0]
    store.rows[first.user_id] = state_from_events(
        UserState(first.user_id), [Event(first.item_id, 4.0, first.timestamp)]
    )
    assert store.catch_up() == 5
    for user in range(1, 6):
        own = [Event(e.item_id, 4.0, e.timestamp) for e in events if e.user_id == user and e.kind == "rating"]
        state, seen = state_from_events(UserState(user), own)
        assert store.rows[user][0] == state
        assert store.rows[user][1].tolist() == seen.tolist()
    assert store.catch_up() == 0


def test_no_more_than_a_part_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 10)
    store = FakeStore(tmp_path)
    given, given_at_push = 0, []

    def counted() -> Iterator[LoggedEvent]:
        nonlocal given
        for user in range(25):
            given += 1
            yield event(user, 1, 100)

    monkeypatch.setattr(store, "push_states", lambda _: given_at_push.append(given))
    assert module.catch_up(store, store.locks, counted()) == 25
    assert given_at_push == [10, 20, 25]


def test_whoever_is_made_anew_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All events of user 1 are in the store, the older half outside the window: only the whole log tells that."""
    monkeypatch.setattr(module, "PART", 10)
    EventLog(tmp_path / "log").append(*(event(1, item, 100 + item) for item in range(2 * HISTORY_LENGTH)))
    store = FakeStore(tmp_path)
    before = store.rows[1] = store.whole_state(UserState(1))
    made_anew: list[int] = []

    def whole_state(profile: UserState) -> Stored:
        made_anew.append(profile.user_id)
        return FakeStore.whole_state(store, profile)

    monkeypatch.setattr(store, "whole_state", whole_state)
    assert store.catch_up() == 0
    assert (made_anew, store.rows[1]) == ([1], before)
