"""The state of users as requests read it and events move it.

Stage: serving. In: the feature store, the event log, events. Out: state and seen movies of one user, with every
acknowledged event. Absent: how a state moves (`recsys.features.state.state_after`).

Order of an event: log, then read, fold and push under the user's lock. If the push fails, the event stays pending:
it is folded into whatever is read, and pushed with the user's next event, or after a restart by `replay`. Locks and
pending events live in this process: one process serves a home.
"""

import logging
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.errors import StoreError
from recsys.feature_store import FeatureStore
from recsys.features.state import HISTORY_LENGTH, Event, UserState, state_after
from serving.event_log import EventLog, LoggedEvent

Ids = npt.NDArray[np.int64]
LOCKS = 256  # users share locks by number; a lock each would grow without end
STORE_THREADS = 4
REMEMBERED = 20_000  # users whose last state stays in memory, about 2 kB each
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """What is known of one user. `stored` False: nobody has heard of this user."""

    state: UserState
    seen_ids: Ids
    stored: bool


class UserStates:
    """Safe to share between threads."""

    def __init__(self, store: FeatureStore, event_log: EventLog) -> None:
        self._store = store
        self._log = event_log
        self._locks = [threading.Lock() for _ in range(LOCKS)]
        self._pending: dict[int, list[Event]] = {}
        self._last: OrderedDict[int, Known] = OrderedDict()
        self._last_lock = threading.Lock()
        self._pool = ThreadPoolExecutor(STORE_THREADS, thread_name_prefix="store")

    def read(self, user_id: int, timeout_s: float | None = None) -> Known:
        """One read of the store. Raises StoreError where it fails or takes longer than `timeout_s`.

        A read cannot be interrupted, only given up; a store that hangs holds STORE_THREADS threads, not the service.
        """
        reading: Future[tuple[UserState, Ids] | None] = self._pool.submit(self._store.online_state, user_id)
        try:
            stored = reading.result(timeout_s)
        except TimeoutError as error:
            reading.cancel()
            raise StoreError(f"The state of user {user_id} was not read within {timeout_s:.3f} s") from error
        known = _folded(user_id, stored, self._pending.get(user_id, ()))
        self._remember(known)
        return known

    def last_known(self, user_id: int) -> Known:
        """What was read or recorded last, for a moment in which the store cannot be read; nothing for a stranger.
        Events that wait for the store are in it."""
        with self._last_lock:
            known = self._last.get(user_id)
        stored = None if known is None else (known.state, known.seen_ids)
        return _folded(user_id, stored, self._pending.get(user_id, ()))

    def _remember(self, known: Known) -> None:
        if not known.stored:
            return
        with self._last_lock:
            self._last[known.state.user_id] = known
            self._last.move_to_end(known.state.user_id)
            if len(self._last) > REMEMBERED:
                self._last.popitem(last=False)

    def record(self, event: LoggedEvent) -> tuple[Known, bool]:
        """Log an event and move the user's state. Returns the state and whether the store has it already.

        OSError means that the event was not logged, and nothing has moved.
        """
        user_id = event.user_id
        with self._locks[user_id % LOCKS]:
            self._log.append(event)
            waiting = [*self._pending.get(user_id, ()), Event(event.item_id, event.rating, event.timestamp)]
            self._pending[user_id] = waiting  # whoever reads meanwhile knows the event already
            known = _folded(user_id, None, waiting)
            try:
                known = _folded(user_id, self._store.online_state(user_id), waiting)
                self._push(known)
                self._remember(known)
            except StoreError as error:
                log.warning("event %s is in the log, but not yet in the store: %s", event.event_id, error)
                return known, False
            del self._pending[user_id]
            return known, True

    def replay(self, events: Iterable[LoggedEvent]) -> int:
        """Push what the log knows and the store does not, as after a new materialisation. Returns the users moved."""
        by_user: dict[int, list[Event]] = defaultdict(list)
        for event in events:
            by_user[event.user_id].append(Event(event.item_id, event.rating, event.timestamp))
        moved = 0
        for user_id, stored in zip(by_user, self._store.online_states(list(by_user)), strict=True):
            known = _folded(user_id, stored, by_user[user_id])
            if stored is None or known.state != stored[0] or len(known.seen_ids) != len(np.unique(stored[1])):
                self._push(known)
                moved += 1
        return moved

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _push(self, known: Known) -> None:
        self._store.push_state(known.state, known.seen_ids, stamped=known.state.timestamps[-1])


def _folded(user_id: int, stored: tuple[UserState, Ids] | None, events: Iterable[Event]) -> Known:
    state, seen = stored if stored is not None else (UserState(user_id), np.empty(0, dtype=np.int64))
    for event in events:
        if not _counted(state, seen, event):
            state = state_after(state, event)
            seen = np.union1d(seen, [event.item_id]).astype(np.int64)
    return Known(state, seen, stored is not None or state.n_events > 0)


def _counted(state: UserState, seen: Ids, event: Event) -> bool:
    """Whether an event is in the state's sums although its window no longer shows it.

    `state_after` knows an event again while it is in the window. One that is older than a full window was counted if
    its movie is among the seen; that is exact for users who rate a movie once, as MovieLens users do.
    """
    full = len(state.timestamps) == HISTORY_LENGTH
    older = full and (event.timestamp, event.item_id) < (state.timestamps[0], state.item_ids[0])
    return older and event.item_id in seen
