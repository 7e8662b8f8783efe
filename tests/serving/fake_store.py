"""A feature store of one dictionary, for tests of what the service does while a store fails.

Stage: tests of serving. In: a folder. Out: `FakeStore`, a clock, events. Absent: Feast.
"""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recsys.errors import StoreError
from recsys.feature_store.catch_up import catch_up
from recsys.feature_store.online import Stored
from recsys.feature_store.user_locks import UserLocks
from recsys.features.state import Event, UserState
from recsys.features.state_merge import state_from_events
from serving.event_log import EventLog, LoggedEvent


class FakeStore:
    """The part of the feature store that `UserStates` uses; it fails or hangs when told to."""

    local = False  # whether it says of itself that it is a file

    def __init__(self, folder: Path) -> None:
        self.rows: dict[int, Stored] = {}
        self.locks = UserLocks(folder / "locks")
        self.failing = False
        self.going = threading.Event()
        self.going.set()
        self.reads = 0
        self.log_read = 0  # times that it caught up with the log
        self._log = EventLog(folder / "log")

    def online_state(self, user_id: int, *, at_once: bool = False) -> Stored | None:
        assert self.local or not at_once
        self.reads += 1
        self.going.wait(30)
        if self.failing:
            raise StoreError("the store is away")
        return self.rows.get(user_id)

    def catch_up(self) -> int:
        self.log_read += 1
        return catch_up(self, self.locks, self._log.read())

    def online_states(self, user_ids: Sequence[int]) -> list[Stored | None]:
        return [self.online_state(user_id) for user_id in user_ids]

    def whole_state(self, profile: UserState) -> Stored:
        own = [e for e in self._log.read() if e.user_id == profile.user_id]
        return state_from_events(profile, [Event(e.item_id, e.rating, e.timestamp) for e in own])

    def push_state(self, state: UserState, seen: np.ndarray, *, stamped: int) -> None:
        assert stamped == state.timestamps[-1]
        if self.failing:
            raise StoreError("the store is away")
        self.rows[state.user_id] = (state, seen)

    def push_states(self, rows: Sequence[Stored]) -> None:
        for state, seen in rows:
            self.push_state(state, seen, stamped=state.timestamps[-1])


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def event(user_id: int, item_id: int, timestamp: int, rating: float = 4.0) -> LoggedEvent:
    return LoggedEvent(f"{user_id}-{item_id}-{timestamp}", user_id, item_id, rating, timestamp, 1_700_000_000, "b")
