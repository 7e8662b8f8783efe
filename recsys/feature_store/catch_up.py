"""Put logged events on top of what the online store holds, each user in one turn.

Stage: features, at the end of a materialisation, and serving, when it or its store comes back. In: a store's reads and
writes, logged events. Out: an online store that holds them. Absent: the rule by which a state moves
(`recsys.features.state_merge`).

An event that the store holds already changes nothing, so a range of the log may be given that is too long, and any
number of times. The log is done in parts that fit into memory, as the order of events does not matter; users are done
in batches. A batch is read, moved and written while the locks of its users are held, and whoever records an event of
theirs meanwhile waits for some tens of milliseconds.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Protocol

import numpy as np

from recsys.event_log import LoggedEvent
from recsys.feature_store.online import Stored
from recsys.feature_store.user_locks import UserLocks
from recsys.features.state import Event, UserState
from recsys.features.state_merge import fold

PART = 100_000  # ratings that are held at once, about 26 MB
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


def catch_up(store: OnlineStates, locks: UserLocks | None, events: Iterable[LoggedEvent]) -> int:
    """Push the state of every user whom these events of the log move; their number. `locks` None: nobody else writes.

    Raises StoreError where the store fails.
    """
    ratings = (  # other kinds move no state
        (event.user_id, Event(event.item_id, event.rating, event.timestamp))
        for event in events
        if event.rating is not None
    )
    changed: set[int] = set()
    anew: set[int] = set()  # made from the whole log, with the parts to come

    def whole(profile: UserState) -> Stored:
        anew.add(profile.user_id)
        return store.whole_state(profile)

    while part := list(islice(ratings, PART)):
        by_user: dict[int, list[Event]] = defaultdict(list)
        for user_id, rated in part:
            if user_id not in anew:
                by_user[user_id].append(rated)
        users = sorted(by_user)
        for low in range(0, len(users), BATCH):
            batch = {user_id: by_user[user_id] for user_id in users[low : low + BATCH]}
            changed.update(_move(store, locks, batch, whole))
    return len(changed)


def _move(
    store: OnlineStates,
    locks: UserLocks | None,
    by_user: Mapping[int, Sequence[Event]],
    whole: Callable[[UserState], Stored],
) -> list[int]:
    """One batch, in one turn. Returns the users whose state was pushed."""
    with locks.held(*by_user) if locks else nullcontext():
        changed = []
        for user_id, stored in zip(by_user, store.online_states(list(by_user)), strict=True):
            now = moved(stored, user_id, by_user[user_id], whole)
            if stored is None or not _same(stored, now):
                changed.append(now)
        store.push_states(changed)
    return [state.user_id for state, _ in changed]


def _same(left: Stored, right: Stored) -> bool:
    return left[0] == right[0] and np.array_equal(np.unique(left[1]), np.unique(right[1]))
