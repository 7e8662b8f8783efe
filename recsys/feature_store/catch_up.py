"""Put logged events on top of what the online store holds, each user in one turn.

Stage: features, at the end of a materialisation, and serving, when it starts. In: a store's reads and writes, logged
events. Out: an online store that holds them. Absent: the rule by which a state moves (`recsys.features.rebuild`).

An event that the store holds already changes nothing, so a range of the log may be given that is too long, and any
number of times. Users are done in batches; a batch is read, moved and written while the locks of its users are held,
and whoever records an event of theirs meanwhile waits for some tens of milliseconds.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Protocol

import numpy as np

from recsys.event_log import LoggedEvent
from recsys.feature_store.online import Stored
from recsys.feature_store.user_locks import UserLocks
from recsys.features.rebuild import fold
from recsys.features.state import Event, UserState

BATCH = 64  # users; two thirds of all events of others go on, because these share at most a quarter of the locks


class OnlineStates(Protocol):
    """The part of `FeatureStore` that is used here."""

    def online_states(self, user_ids: Sequence[int]) -> list[Stored | None]: ...

    def whole_state(self, profile: UserState) -> Stored: ...

    def push_states(self, rows: Sequence[Stored]) -> None: ...


def moved(stored: Stored | None, user_id: int, events: Iterable[Event], whole: Callable[[UserState], Stored]) -> Stored:
    """What the store should hold of a user once it knows `events`: folded where that is exact, else made anew.

    Somebody whom the store does not know may be new, or a Redis may have lost its rows: all events tell.
    """
    state, seen = stored if stored is not None else whole(UserState(user_id))
    folded = fold(state, seen, events)
    return whole(state) if folded is None else folded


def catch_up(
    store: OnlineStates,
    locks: UserLocks | None,
    events: Iterable[LoggedEvent],
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> int:
    """Push the state of every user whom these events move; their number. `locks` None: nobody else writes.

    Raises StoreError where the store fails.
    """
    by_user: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        if event.rating is not None:  # other kinds move no state
            by_user[event.user_id].append(Event(event.item_id, event.rating, event.timestamp))
    users = sorted(by_user)
    count = 0
    for low in range(0, len(users), BATCH):
        batch = users[low : low + BATCH]
        with locks.held(*batch) if locks else nullcontext():
            changed = []
            for user_id, stored in zip(batch, store.online_states(batch), strict=True):
                now = moved(stored, user_id, by_user[user_id], store.whole_state)
                if stored is None or not _same(stored, now):
                    changed.append(now)
            store.push_states(changed)
        count += len(changed)
        progress(low + len(batch), len(users))
    return count


def _same(left: Stored, right: Stored) -> bool:
    return left[0] == right[0] and np.array_equal(np.unique(left[1]), np.unique(right[1]))
