"""One state for one set of events, whatever their order and however often each arrived.

Stage: features; both tracks. In: a user's events, or a stored state and events that arrived since. Out: the state and
the seen items; or None, where the stored state does not say enough and all events must be read again. Absent: where
events are kept (`recsys.feature_store.latest`), and the fold of one new event (`state.state_after`).

What a set of events is:

- The key of an event is user, item and second. A key that arrives again counts once. Two ratings under one key are a
  contradiction that no order decides, because orders differ between a log, a queue and a client that tries again: the
  higher one counts, by whichever way it comes.
- An item rated again in another second is another event. The history says what a user did; a state as of a moment in
  between knows the first rating and not the second. (MovieLens keeps the last rating of an item only, so its files hold
  no such pair.)

A stored state shows the last L events and counts all. Folding an event into it is exact if the state can tell whether
it holds the event: always while the window holds the whole history; for an event at or after the oldest of the
window; and for an item never seen. What remains is an event older than a full window of an item that was seen: it may
be counted already, or be a second rating. That, and a higher rating under a key of the window, needs all events.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from recsys.arrays import IntArray
from recsys.columns import ITEM_ID, LIKED_RATING, RATING, TIMESTAMP, USER_ID
from recsys.features.state import HISTORY_LENGTH, Event, UserState, state_after


def distinct(events: Iterable[Event]) -> list[Event]:
    """One user's events in order, each key once.

    >>> [e.rating for e in distinct([Event(7, 2.0, 20), Event(7, 3.0, 10), Event(7, 4.0, 20), Event(7, 2.0, 20)])]
    [3.0, 4.0]
    """
    best: dict[tuple[int, int], Event] = {}
    for event in events:
        key = (event.timestamp, event.item_id)
        if key not in best or event.rating > best[key].rating:
            best[key] = event
    return [best[key] for key in sorted(best)]


def distinct_rows(events: pd.DataFrame) -> pd.DataFrame:
    """The same for a table of many users: sorted by user, second and item, each key once, the higher rating kept."""
    names = [USER_ID, TIMESTAMP, ITEM_ID]
    order = np.lexsort([events[name].to_numpy() for name in (RATING, *reversed(names))])
    keys = np.stack([events[name].to_numpy(np.int64)[order] for name in names])
    last_of_key = np.append((keys[:, 1:] != keys[:, :-1]).any(axis=0), True)[: len(order)]
    kept: pd.DataFrame = events.iloc[order[last_of_key]].reset_index(drop=True)
    return kept


def state_from_events(profile: UserState, events: Iterable[Event]) -> tuple[UserState, IntArray]:
    """State and seen items (ascending) of all events of a user; only the static profile is taken from `profile`."""
    kept = distinct(events)
    window = kept[-HISTORY_LENGTH:]
    state = replace(
        profile,
        item_ids=tuple(e.item_id for e in window),
        ratings=tuple(e.rating for e in window),
        timestamps=tuple(e.timestamp for e in window),
        n_events=len(kept),
        n_liked=sum(e.rating >= LIKED_RATING for e in kept),
        rating_sum=float(sum(e.rating for e in kept)),
        rating_square_sum=float(sum(e.rating**2 for e in kept)),
    )
    return state, np.unique(np.array([e.item_id for e in kept], dtype=np.int64))


def can_apply_incrementally(state: UserState, seen: Iterable[int] | IntArray, event: Event) -> bool:
    """Whether `state_after(state, event)` is the state of all events, those of `state` and `event`."""
    key = (event.timestamp, event.item_id)
    keys = list(zip(state.timestamps, state.item_ids, strict=True))
    if state.n_events > len(keys) and key < keys[0]:
        return event.item_id not in seen
    at = bisect_left(keys, key)
    return at == len(keys) or keys[at] != key or event.rating <= state.ratings[at]


def fold(state: UserState, seen_ids: npt.ArrayLike, events: Iterable[Event]) -> tuple[UserState, IntArray] | None:
    """State and seen items once `events` are known as well, in any order, known ones among them.

    None where an event does not fold exactly: then only `state_from_events` over all events knows.
    """
    seen = set(np.asarray(seen_ids, dtype=np.int64).tolist())
    for event in distinct(events):
        if not can_apply_incrementally(state, seen, event):
            return None
        state = state_after(state, event)
        seen.add(event.item_id)
    return state, np.array(sorted(seen), dtype=np.int64)
