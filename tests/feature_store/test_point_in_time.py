"""Every trap of a point-in-time read: rows stay, and moments are strict."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from recsys.columns import EVENT_TIMESTAMP, ITEM_ID, USER_ID
from recsys.feature_store.offline import ROW_ID
from recsys.feature_store.registry import open_feast
from recsys.features.state import UserState

from .feature_worlds import DAY, T0, World

YEAR = 365 * DAY


def test_a_row_stamped_t_holds_the_event_at_t_and_a_prediction_at_t_does_not(planted: World) -> None:
    rows = pq.read_table(planted.home.features / "user_state.parquet").to_pylist()
    stamped = {r[EVENT_TIMESTAMP].timestamp(): r["history_item_ids"] for r in rows if r[USER_ID] == 1}
    assert stamped[T0 + 200] == [3, 1, 2]
    before, after = planted.store.historical_states([1, 1], [T0 + 200, T0 + 201])
    assert before.item_ids == (3,)
    assert after.item_ids == (3, 1, 2)


def test_two_labels_at_one_moment_stay_two(planted: World) -> None:
    states = planted.store.historical_states([1, 2, 1, 1], [T0 + 200, T0 + 3 * DAY, T0 + 200, T0 + 300])
    assert [s.user_id for s in states] == [1, 2, 1, 1]
    assert [s.n_events for s in states] == [1, 0, 1, 3]


def test_users_whose_rows_all_lie_later_stay_and_are_cold(planted: World) -> None:
    assert planted.store.historical_states([2, 1, 77], T0 - DAY) == [UserState(2), UserState(1), UserState(77)]


def test_the_empty_row_before_the_first_event_has_the_profile(planted: World) -> None:
    (state,) = planted.store.historical_states([2], T0 + 3 * DAY)
    assert state == UserState(2, gender="M", age=25, occupation="doctor")


def test_old_states_never_expire(planted: World) -> None:
    for now in (T0, T0 + 20 * YEAR):
        (state,) = planted.store.historical_states([3], now)
        assert state.item_ids == (6,)


def test_three_candidates_of_one_request_stay_three_with_a_user_view_first(planted: World) -> None:
    """What Dask, Feast's default store, gives back as one row."""
    moment = pd.Timestamp(T0 + DAY, unit="s", tz="UTC").as_unit("us")
    asked = pd.DataFrame({ROW_ID: [0, 1, 2], USER_ID: 1, ITEM_ID: [1, 2, 40], EVENT_TIMESTAMP: moment})
    job = open_feast(planted.store.config).get_historical_features(
        entity_df=asked, features=["user_state:n_events", "item_stats:n_ratings"]
    )
    out = job.to_df().sort_values(ROW_ID)
    assert out[ROW_ID].tolist() == [0, 1, 2]
    assert out["n_events"].tolist() == [4, 4, 4]
    assert out["n_ratings"].fillna(0).tolist() == [1, 1, 0]


def test_item_statistics_of_the_day_itself_are_the_snapshot_at_its_start(planted: World) -> None:
    day = T0 // DAY
    pairs = pd.DataFrame({ITEM_ID: [1, 40, 1, 1, 1], "day": [day + 1, day, day, day + 3, day + 4]})
    out = planted.store.historical_item_stats(pairs)
    assert out[[ITEM_ID, "day"]].equals(pairs)
    np.testing.assert_array_equal(out["n_ratings"], [1, np.nan, np.nan, 1, 2])


def test_nothing_asked_gives_nothing(planted: World) -> None:
    assert planted.store.historical_states([], []) == []
    assert len(planted.store.historical_item_stats(pd.DataFrame({ITEM_ID: [], "day": []}))) == 0
