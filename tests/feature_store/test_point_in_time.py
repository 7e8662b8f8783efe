"""Every trap of a point-in-time join: rows stay, moments are strict, and a broken join is an error."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.columns import EVENT_TIMESTAMP, ITEM_ID, USER_ID
from recsys.errors import StoreError
from recsys.feature_store.offline import ROW_ID, point_in_time
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
    job = planted.store._opened().get_historical_features(
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


class _FakeStore:
    """Answers with what was asked, after `break_it`."""

    def __init__(self, break_it: Any) -> None:
        self.break_it = break_it
        self.parts: list[int] = []

    def get_feature_service(self, name: str) -> str:
        return name

    def get_historical_features(self, entity_df: pd.DataFrame, features: Any) -> "_FakeStore":
        assert features == "service"
        self.parts.append(len(entity_df))
        shuffled = entity_df.assign(value=entity_df[USER_ID] * 10).sample(frac=1, random_state=0)
        self.out = pa.Table.from_pandas(self.break_it(shuffled), preserve_index=False)
        return self

    def to_arrow(self) -> pa.Table:
        return self.out


def _join(source: Path, break_it: Any, max_pairs: int = 1_000) -> tuple[list[int], list[int]]:
    store = _FakeStore(break_it)
    keys = np.array([5, 3, 5, 9, 3])
    table = point_in_time(store, "service", source, USER_ID, keys, np.arange(5) // 4, ["value"], max_pairs)
    return table["value"].to_pylist(), store.parts


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three rows of user 3, two of user 5, none of user 9."""
    pq.write_table(pa.table({USER_ID: [3, 3, 3, 5, 5]}), tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def test_the_order_asked_for_is_restored_and_equal_rows_are_asked_once(source: Path) -> None:
    assert _join(source, lambda frame: frame) == ([50, 30, 50, 90, 30], [4])


def test_parts_stay_below_the_bound(source: Path) -> None:
    """Rows asked for pair with 3, 3, 2 and 1 rows; a part of at most three pairs takes one, one, two of them."""
    values, parts = _join(source, lambda frame: frame, max_pairs=3)
    assert values == [50, 30, 50, 90, 30]
    assert parts == [1, 1, 2]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda frame: frame.iloc[1:], "gave 3 rows for 4 asked"),
        (lambda frame: pd.concat([frame, frame.iloc[:1]]), "gave 5 rows for 4 asked"),
        (lambda frame: pd.concat([frame.iloc[1:], frame.iloc[1:2]]), "lost some rows and doubled others"),
        (lambda frame: frame.assign(**{USER_ID: frame[USER_ID].iloc[::-1].to_numpy()}), "with another user_id"),
        (lambda frame: frame.drop(columns="value"), "no column 'value'"),
    ],
)
def test_a_broken_join_is_an_error(source: Path, break_it: Any, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        _join(source, break_it)


def test_a_store_that_loses_rows_never_reaches_the_caller(planted: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Losing:
        def to_arrow(self) -> pa.Table:
            return pa.table({name: [] for name in (ROW_ID, USER_ID, *_state_columns())})

    store = planted.store._opened()
    monkeypatch.setattr(store, "get_historical_features", lambda **_: Losing())
    with pytest.raises(StoreError, match="gave 0 rows for 1 asked"):
        planted.store.historical_states([1], [T0])


def _state_columns() -> tuple[str, ...]:
    from recsys.feature_store.tables import STATE_COLUMNS

    return STATE_COLUMNS
