"""Events that are in the log and not yet known to be in the store, in bounded memory.

Stage: serving. In: ratings as they are logged; word of what is in the store now. Out: what waits of one user, and
whether there was more than was kept. Absent: folding, the store and the log itself (`states`).

The log has every event, so that nothing is lost where there is no room: of such events only the user is kept, the store
counts as `behind`, and whoever catches up with the log says so, before (`begin`) and after (`end`).
"""

import sys
import threading
from collections.abc import Collection, Sequence

from recsys.features.state import Event

MOST = 50_000  # events, about 12 MB; and users of whom there are more
MOST_OF_USER = 1_000  # each of them is folded into every answer to that user, 24 us each
EVERYBODY: Collection[int] = range(sys.maxsize)


class Pending:
    """Safe to share between threads. Asking takes no lock: what is asked about is replaced, not changed."""

    def __init__(self, most: int = MOST, most_of_user: int = MOST_OF_USER) -> None:
        self._most, self._most_of_user = most, most_of_user
        self._events: dict[int, tuple[Event, ...]] = {}
        self._count = 0
        # users of whom only the log has everything: since a catch-up began, and before it, until it ends
        self._left_out: tuple[Collection[int], Collection[int]] = ((), ())
        self._catching_up = False
        self._lock = threading.Lock()
        self.behind = False  # the store may lack what is not here either

    def __len__(self) -> int:
        """How many events wait."""
        return self._count

    def users(self) -> list[int]:
        return list(self._events)

    def of(self, user_id: int) -> tuple[Event, ...]:
        return self._events.get(user_id, ())

    def left_out(self, user_id: int) -> bool:
        """Whether events of this user may be in the log alone."""
        later, earlier = self._left_out
        return user_id in later or user_id in earlier

    def add(self, user_id: int, events: Sequence[Event]) -> bool:
        """Keep the events of one user, all or none. False: there is no room, and they are to be had from the log, which
        must have them already."""
        with self._lock:
            waiting = self._events.get(user_id, ())
            if len(waiting) + len(events) > self._most_of_user or self._count + len(events) > self._most:
                later, earlier = self._left_out
                self._left_out = self._both(later, (user_id,)), earlier
                self.behind = True
                return False
            self._events[user_id] = (*waiting, *events)
            self._count += len(events)
            return True

    def remove(self, user_id: int, count: int) -> None:
        """The first `count` events of a user are in the store; later ones may have come meanwhile."""
        with self._lock:
            waiting = self._events.pop(user_id, ())
            self._count -= len(waiting[:count])
            if waiting[count:]:
                self._events[user_id] = waiting[count:]

    def begin(self) -> bool:
        """Before the log is read, to its end. False: somebody else is at it.

        An event is in the log before it is left out here, so that every one of whom this knows by now will be read.
        """
        with self._lock:
            if self._catching_up:
                return False
            self._catching_up, self.behind = True, False
            self._left_out = (), self._left_out[0]
            return True

    def end(self, caught_up: bool) -> None:
        """After that. Where the store failed in between, it is as far behind as before."""
        with self._lock:
            later, earlier = self._left_out
            self._catching_up = False
            self._left_out = (later if caught_up else self._both(later, earlier)), ()
            self.behind = self.behind or not caught_up

    def _both(self, some: Collection[int], others: Collection[int]) -> Collection[int]:
        """The users of both, or everybody where that are too many. Changes a set that is given first."""
        if EVERYBODY in (some, others):
            return EVERYBODY
        users = some if isinstance(some, set) else set(some)
        users.update(others)
        return users if len(users) <= self._most else EVERYBODY
