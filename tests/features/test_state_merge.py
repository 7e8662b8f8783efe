"""Any order and any duplication of events gives one state: that of the sorted set, each key once."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.features.state import HISTORY_LENGTH, Event, UserState, state_after
from recsys.features.state_merge import can_apply_incrementally, distinct, distinct_rows, fold, state_from_events

from .test_state import histories

PROFILE = UserState(7, gender="F", age=24, occupation="artist")
FULL = [Event(10 + i, 3.0, 1_000 + i) for i in range(HISTORY_LENGTH + 10)]  # ten items have left the window

# Few items and seconds: many repeated ratings, equal keys with other stars, and histories that outgrow the window.
some_events = st.lists(
    st.builds(
        Event,
        item_id=st.integers(10, 40),
        rating=st.integers(1, 10).map(lambda s: s / 2),
        timestamp=st.integers(1_000, 1_040),
    ),
    max_size=3 * HISTORY_LENGTH,
)


def frame(events: Sequence[Event], user: int = 7) -> pd.DataFrame:
    return pd.DataFrame(
        {
            USER_ID: np.full(len(events), user, dtype=np.int64),
            ITEM_ID: np.array([e.item_id for e in events], dtype=np.int64),
            RATING: np.array([e.rating for e in events], dtype=np.float32),
            TIMESTAMP: np.array([e.timestamp for e in events], dtype=np.int64),
        }
    )


def moved_one_by_one(arrived: Sequence[Event]) -> tuple[UserState, list[int], int]:
    """As a service does it: fold where that is exact, else read all events so far again. Also how often it did."""
    state, seen, rebuilt = PROFILE, np.empty(0, dtype=np.int64), 0
    for count, event in enumerate(arrived, start=1):
        folded = fold(state, seen, [event])
        if folded is None:
            folded = state_from_events(PROFILE, arrived[:count])
            rebuilt += 1
        state, seen = folded
    return state, seen.tolist(), rebuilt


@settings(max_examples=150, deadline=None)
@given(events=some_events, data=st.data())
def test_any_order_and_duplication_gives_the_state_of_the_sorted_set(events: list[Event], data: st.DataObject) -> None:
    repeated = data.draw(st.lists(st.sampled_from(events), max_size=30)) if events else []
    arrived = data.draw(st.permutations([*events, *repeated]))
    state, seen, _ = moved_one_by_one(arrived)
    expected, expected_seen = state_from_events(PROFILE, events)
    assert state == expected
    assert seen == expected_seen.tolist()
    # and that is what the batch computation gives for the table of distinct events
    batch = histories(distinct(events))
    end = int(batch.offset[1])
    assert expected == batch.stored_state(0, end)
    assert expected_seen.tolist() == batch.seen_ids(0, end).tolist()


@settings(max_examples=60, deadline=None)
@given(events=some_events, data=st.data())
def test_a_batch_folds_to_the_same_state_or_says_that_it_cannot(events: list[Event], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(events)))
    shuffled = data.draw(st.permutations(events))
    state, seen = state_from_events(PROFILE, shuffled[:cut])
    folded = fold(state, seen, shuffled[cut:])
    if folded is not None:
        expected, expected_seen = state_from_events(PROFILE, events)
        assert folded[0] == expected
        assert folded[1].tolist() == expected_seen.tolist()


@settings(max_examples=60, deadline=None)
@given(events=some_events)
def test_rows_of_a_table_are_made_distinct_like_a_list(events: list[Event]) -> None:
    both = pd.concat([frame(events, user=9), frame(events, user=7)])
    kept = distinct_rows(both)
    expected = [(e.item_id, e.rating, e.timestamp) for e in distinct(events)]
    for user in (7, 9):
        own = kept[kept[USER_ID] == user]
        assert list(zip(own[ITEM_ID], own[RATING], own[TIMESTAMP], strict=True)) == expected
    assert kept[USER_ID].is_monotonic_increasing


def test_what_the_plain_fold_gets_wrong() -> None:
    """Why `can_apply_incrementally` is asked at all: `state_after` counts an old event again, and keeps the first
    rating."""
    state, seen = state_from_events(PROFILE, FULL)
    old = FULL[3]
    assert state_after(state, old).n_events == len(FULL) + 1
    assert not can_apply_incrementally(state, seen, old)
    higher = Event(FULL[-1].item_id, 5.0, FULL[-1].timestamp)
    assert state_after(state, higher).ratings[-1] == 3.0
    assert not can_apply_incrementally(state, seen, higher)


@pytest.mark.parametrize(
    ("event", "exact"),
    [
        (Event(500, 4.0, 10), True),  # older than the window, never seen: new for certain
        (Event(13, 4.0, 10), False),  # seen, and older: a second rating or one counted already
        (Event(13, 4.0, 1_000 + HISTORY_LENGTH), True),  # seen, but within the window's time: not in it, so it is new
        (Event(30, 3.0, 1_020), True),  # in the window
        (Event(30, 2.0, 1_020), True),  # in the window with more stars
        (Event(30, 3.5, 1_020), False),  # in the window with fewer
        (FULL[10], True),  # the oldest of the window itself
        (Event(19, 3.0, 1_010), False),  # a key just before it
        (Event(13, 4.0, 9_999), True),
    ],
)
def test_when_folding_is_exact(event: Event, exact: bool) -> None:
    state, seen = state_from_events(PROFILE, FULL)
    assert can_apply_incrementally(state, seen, event) is exact
    folded = fold(state, seen, [event])
    assert (folded is not None) is exact
    if folded is not None:
        assert folded[0] == state_from_events(PROFILE, [*FULL, event])[0]


def test_a_window_that_holds_the_whole_history_says_everything() -> None:
    exactly_full = FULL[:HISTORY_LENGTH]
    state, seen = state_from_events(PROFILE, exactly_full)
    assert can_apply_incrementally(state, seen, Event(13, 4.0, 10))  # another rating, long before
    folded = fold(state, seen, [Event(13, 4.0, 10)])
    assert folded is not None
    assert folded[0].n_events == HISTORY_LENGTH + 1
    assert folded[0].item_ids == state.item_ids


def test_a_item_rated_again_is_another_event() -> None:
    state, seen = state_from_events(PROFILE, [Event(11, 2.0, 10), Event(11, 5.0, 20)])
    assert (state.item_ids, state.ratings, state.n_events, state.n_liked) == ((11, 11), (2.0, 5.0), 2, 1)
    assert seen.tolist() == [11]


def test_no_events_keep_the_profile() -> None:
    state, seen = state_from_events(UserState(7, (1,), (2.0,), (3,), 1, 0, 2.0, 4.0, "F", 24, "artist"), [])
    assert state == PROFILE
    assert seen.tolist() == []
    assert len(distinct_rows(frame([]))) == 0
