"""The stored state: the fold, the batch, and that they are the same, repeats included."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.columns import AGE, GENDER, GENRES, ITEM_ID, OCCUPATION, RATING, TIMESTAMP, TITLE, USER_ID, YEAR
from recsys.features.catalogue import Catalogue
from recsys.features.histories import Histories
from recsys.features.state import HISTORY_LENGTH, Event, StateBatch, UserState, fold, state_batch

USERS = pd.DataFrame(
    {
        USER_ID: [7, 9],
        GENDER: ["F", None],
        AGE: pd.array([24, None], dtype="Int32"),
        OCCUPATION: ["artist", None],
    }
)
ITEMS = pd.DataFrame(
    {
        ITEM_ID: np.arange(10, 130),
        TITLE: "Film",
        YEAR: pd.array([2000] * 120, dtype="Int32"),
        GENRES: [[] for _ in range(120)],
    }
)
CATALOGUE = Catalogue.from_tables(ITEMS, USERS)
PROFILE = {"gender": "F", "age": 24, "occupation": "artist"}


def histories(events: list[Event], user: int = 7, catalogue: Catalogue = CATALOGUE) -> Histories:
    frame = pd.DataFrame(
        {
            USER_ID: np.full(len(events), user, dtype=np.int64),
            ITEM_ID: np.array([e.item_id for e in events], dtype=np.int64),
            RATING: np.array([e.rating for e in events], dtype=np.float32),
            TIMESTAMP: np.array([e.timestamp for e in events], dtype=np.int64),
        }
    )
    return Histories.from_tables(catalogue, frame, USERS)


def known_by(events: Sequence[Event]) -> UserState:
    return fold(UserState(7, **PROFILE), events)  # type: ignore[arg-type]


def assert_same(left: StateBatch, right: StateBatch) -> None:
    for name in StateBatch.__dataclass_fields__:
        a, b = getattr(left, name), getattr(right, name)
        if name == "seen_idx":
            assert [x.tolist() for x in a] == [x.tolist() for x in b]
        else:
            assert a.dtype == b.dtype, name
            np.testing.assert_array_equal(a, b, err_msg=name)


# Few items and seconds: many repeats, equal times, and histories that outgrow the window.
received = st.lists(
    st.builds(
        Event,
        item_id=st.integers(10, 129) | st.integers(10, 14),
        rating=st.integers(1, 10).map(lambda s: s / 2),
        timestamp=st.integers(1_000, 1_040),
    ),
    max_size=2 * HISTORY_LENGTH,
)


@settings(max_examples=150, deadline=None)
@given(events=received, data=st.data())
def test_folding_in_any_split_equals_the_batch_computation(events: list[Event], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(events)), max_size=4)))
    state = known_by([])
    for low, high in pairwise([0, *cuts, len(events)]):
        state = fold(state, events[low:high])
    assert state == known_by(events)
    assert fold(state, events) == state  # what is known already changes nothing


@settings(max_examples=100, deadline=None)
@given(events=received, data=st.data())
def test_the_order_of_reception_matters_for_equal_times_alone(events: list[Event], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(events))))
    by_time: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for e in events:
        by_time[e.item_id, e.timestamp].append(e)
    arrived = [by_time[e.item_id, e.timestamp].pop(0) for e in (events[i] for i in order)]
    assert known_by(arrived) == known_by(events)


@settings(max_examples=100, deadline=None)
@given(events=received, moment=st.integers(999, 1_042))
def test_a_state_as_of_any_moment_equals_the_fold_of_what_was_known(events: list[Event], moment: int) -> None:
    folded = known_by([e for e in events if e.timestamp < moment])
    batch = histories(events).states_at([9, 7], moment)
    assert_same(batch.rows(slice(1, 2)), state_batch(CATALOGUE, [folded], moment))
    assert batch.cold.tolist()[0]


def test_values_of_a_state_worked_out_by_hand() -> None:
    """Items 11 and 12 are rated again: later, in the same second, and, received late, before."""
    events = [Event(11, 2.0, 10), Event(12, 4.0, 20), Event(11, 5.0, 30), Event(11, 3.5, 30), Event(12, 1.0, 5)]
    sums = histories(events).states_at(np.full(3, 7), np.array([21, 30, 31])).rating_sum
    assert sums.tolist() == [6.0, 6.0, 7.5]
    expected = UserState(7, (12, 11), (4.0, 3.5), (20, 30), 2, 1, 7.5, 28.25, **PROFILE)  # type: ignore[arg-type]
    assert known_by(events) == expected


def test_the_moment_itself_is_not_known() -> None:
    h = histories([Event(12, 4.0, 200), Event(11, 3.5, 200), Event(13, 5.0, 100), Event(14, 1.0, 201)])
    counts = h.states_at(np.full(5, 7), np.array([100, 101, 200, 201, 202])).n_events
    assert counts.tolist() == [0, 1, 1, 3, 4]
    at_200 = h.states_at([7], 200)
    assert at_200.item_idx[0, -1] == 3
    assert at_200.item_idx[0, -2] == -1
    assert at_200.seen_idx[0].tolist() == [3]
    assert at_200.now.tolist() == [200]


def test_the_window_keeps_the_last_events_and_the_older_ones_stay_known() -> None:
    events = [Event(10 + i, 1.0 if i < 36 else 5.0, i) for i in range(100)]
    state = known_by(events)
    assert state.item_ids == tuple(range(10 + 36, 110))
    assert state.older_item_ids == tuple(range(10, 46))
    assert state.seen_item_ids == tuple(range(10, 110))
    assert (state.n_events, state.n_liked, state.rating_sum, state.rating_square_sum) == (100, 64, 356.0, 1636.0)
    older = fold(state, [Event(120, 2.0, -5)])
    assert (older.item_ids, older.older_item_ids[0]) == (state.item_ids, 120)
    assert (older.n_events, older.rating_sum) == (101, 358.0)
    batch = histories(events).states_at([7], 1_000)
    assert len(batch.seen_idx[0]) == 100
    assert batch.item_idx[0].tolist() == list(range(36, 100))


def test_an_item_that_the_catalogue_does_not_hold_leaves_the_window_but_not_the_sums() -> None:
    state = known_by([Event(11, 4.0, 1), Event(5_000, 3.0, 2), Event(12, 2.0, 3)])
    batch = state_batch(CATALOGUE, [state], 10)
    assert batch.item_idx[0, -3:].tolist() == [-1, 1, 2]
    assert batch.ratings[0, -3:].tolist() == [0.0, 4.0, 2.0]
    assert batch.timestamps[0, -3:].tolist() == [0, 1, 3]
    assert batch.seen_idx[0].tolist() == [1, 2]
    assert (batch.n_events[0], batch.rating_sum[0]) == (3.0, 9.0)


def test_users_unknown_to_one_of_the_tables() -> None:
    """8 is in the events alone, 9 in the users table alone, 1 and 1000 in neither."""
    h = histories([Event(11, 4.0, 1)], user=8)
    assert h.user_idx([7, 8, 9, 1_000, -3]).tolist() == [0, 1, 2, -1, -1]
    batch = h.states_at([8, 9, 7, 1, 1_000], [50, 60, 70, 80, 90])
    assert batch.cold.tolist() == [False, True, True, True, True]
    assert batch.profile.tolist() == [[0, 0, 0], [0, 0, 0], [1, 2, 1], [0, 0, 0], [0, 0, 0]]
    assert (batch.item_idx[1:] == -1).all()
    assert [len(seen) for seen in batch.seen_idx] == [1, 0, 0, 0, 0]
    assert batch.now.tolist() == [50, 60, 70, 80, 90]


def test_without_events_or_users_everybody_is_cold() -> None:
    batch = histories([]).states_at([7, 8], 5)
    assert batch.cold.all()
    assert batch.profile.tolist() == [[1, 2, 1], [0, 0, 0]]
    columns = {USER_ID: np.int64, ITEM_ID: np.int64, RATING: np.float32, TIMESTAMP: np.int64}
    nothing = pd.DataFrame({name: np.zeros(0, kind) for name, kind in columns.items()})
    nobody = Histories.from_tables(CATALOGUE, nothing, USERS.iloc[:0])
    assert_same(nobody.states_at([7], 5), state_batch(CATALOGUE, [UserState(7)], 5))


def test_rows_restricts_and_reorders_every_field() -> None:
    batch = histories([Event(11, 4.0, 1), Event(12, 2.0, 5)]).states_at([7, 9, 7, 7], [9, 9, 2, 3])
    chosen = batch.rows(np.array([3, 0]))
    assert len(chosen) == 2
    assert_same(chosen, histories([Event(11, 4.0, 1), Event(12, 2.0, 5)]).states_at([7, 7], [3, 9]))
    assert_same(batch.rows(slice(1, 3)), batch.rows(np.array([1, 2])))
