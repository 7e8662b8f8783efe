"""What is known of one user, and how two such pieces of knowledge compare.

Stage: serving. In: what a store told, events. Out: `Known`. Absent: stores, and who asks them when (`states`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys.arrays import IntArray
from recsys.features.state import Event, UserState, state_after
from recsys.features.state_merge import fold

Stored = tuple[UserState, IntArray]


@dataclass(frozen=True)
class Known:
    """What is known of one user. `stored` False: nobody has heard of this user."""

    state: UserState
    seen_ids: IntArray
    stored: bool


def known_of(user_id: int, stored: Stored | None) -> Known:
    state, seen = stored if stored is not None else (UserState(user_id), np.empty(0, dtype=np.int64))
    return Known(state, seen, stored is not None)


def folded(user_id: int, stored: Stored | None, waiting: Sequence[Event]) -> Known:
    """With what is pending. An event that does not fold exactly is shown all the same: the state is made anew from the
    log once it is pushed."""
    if not waiting:
        return known_of(user_id, stored)
    state, seen = stored if stored is not None else (UserState(user_id), np.empty(0, dtype=np.int64))
    exact = fold(state, seen, waiting)
    if exact is None:
        for event in waiting:
            state = state_after(state, event)
        exact = state, np.union1d(seen, [event.item_id for event in waiting]).astype(np.int64)
    return Known(*exact, stored=True)


def lacks(known: Known, remembered: Known, waiting: Sequence[Event]) -> bool:
    """Whether what was read lacks an event that is remembered, other than those that wait."""
    user_id = known.state.user_id
    if not older(known.state, remembered.state):
        return False
    now, before = (folded(user_id, (one.state, one.seen_ids), waiting).state for one in (known, remembered))
    return older(now, before)


def older(state: UserState, other: UserState) -> bool:
    """Whether `state` is of fewer events. Events are never taken back, and of two ratings under one key the higher one
    counts: neither number can fall."""
    return (state.n_events, state.rating_sum) < (other.n_events, other.rating_sum)
