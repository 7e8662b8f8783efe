"""The search for many rows gives what Feast's join gives, and a file or a join that is wrong is an error."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.columns import EVENT_TIMESTAMP, ITEM_ID, USER_ID
from recsys.errors import StoreError
from recsys.feature_store import offline
from recsys.feature_store.offline import join_by_feast, search

from .feature_worlds import DAY, T0, World

STAMP = pa.timestamp("us", tz="UTC")


def write(path: Path, rows: list[tuple[int, int, float]]) -> Path:
    keys, stamps, values = zip(*rows, strict=True) if rows else ((), (), ())
    columns = {ITEM_ID: pa.array(keys, pa.int64()), EVENT_TIMESTAMP: pa.array(stamps, STAMP)}
    pq.write_table(pa.table({**columns, "value": pa.array(values, pa.float64())}), path)
    return path


def ask(path: Path, asked: list[tuple[int, int]]) -> list[float | None]:
    keys, moments = np.array(asked, dtype=np.int64).reshape(-1, 2).T
    found: list[float | None] = search(path, ITEM_ID, keys, moments, ["value"])["value"].to_pylist()
    return found


def test_the_newest_row_at_or_before_the_moment(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", [(3, 10, 0.1), (3, 20, 0.2), (7, 15, 0.3), (9, 5, 0.4)])
    asked = [(3, 9), (3, 10), (3, 19), (3, 20), (3, 99), (7, 14), (7, 15), (9, 99), (1, 99), (8, 99), (10, 99), (9, 4)]
    assert ask(path, asked) == [None, 0.1, 0.1, 0.2, 0.2, None, 0.3, 0.4, None, None, None, None]
    assert ask(path, []) == []
    assert ask(write(tmp_path / "empty.parquet", []), [(3, 9)]) == [None]


@pytest.mark.parametrize(
    "rows", [[(3, 20, 0.1), (3, 10, 0.2)], [(7, 1, 0.1), (3, 10, 0.2)], [(3, 1, 0.1), (3, 1, 0.2)]]
)
def test_an_unsorted_file_and_two_rows_of_one_moment_are_refused(
    tmp_path: Path, rows: list[tuple[int, int, float]]
) -> None:
    with pytest.raises(StoreError, match="is not sorted by item_id and time"):
        ask(write(tmp_path / "rows.parquet", rows), [(3, 9)])


def every_pair(world: World) -> pd.DataFrame:
    """Each item on each day from before the first to long after the last, in an order of no meaning."""
    days = np.arange(T0 // DAY - 2, world.store.last_snapshot_day() + 3)
    items = world.catalogue.item_ids
    pairs = pd.DataFrame({ITEM_ID: np.repeat(items, len(days)), "day": np.tile(days, len(items))})
    return pairs.sample(frac=1, random_state=0).reset_index(drop=True)


def test_it_equals_feasts_join_for_every_item_and_day(seeded: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = every_pair(seeded)
    monkeypatch.setattr(offline, "MOST_BY_FEAST", len(pairs))
    by_feast = seeded.store.historical_item_stats(pairs)
    monkeypatch.setattr(offline, "MOST_BY_FEAST", 5)
    searched = seeded.store.historical_item_stats(pairs)
    pd.testing.assert_frame_equal(searched, by_feast, check_exact=True)
    assert by_feast["n_ratings"].isna().any()
    assert by_feast["n_ratings"].notna().any()


def test_a_difference_from_feast_is_an_error(seeded: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def a_day_later(source: Path, key: str, keys: Any, moments_us: Any, columns: Any) -> Any:
        return search(source, key, keys, moments_us + DAY * 1_000_000, columns)

    monkeypatch.setattr(offline, "search", a_day_later)
    with pytest.raises(StoreError, match=r"Feast's answer for 'ranking' differs from the table's in \w+"):
        seeded.store.historical_item_stats(every_pair(seeded))


class Joining:
    """In the place of Feast: answers with what was asked, after `break_it`."""

    def __init__(self, break_it: Any) -> None:
        self.break_it = break_it

    def get_feature_service(self, name: str) -> str:
        return name

    def get_historical_features(self, entity_df: pd.DataFrame, features: Any) -> "Joining":
        assert features == "service"
        self.asked = len(entity_df)
        shuffled = entity_df.assign(value=entity_df[USER_ID] * 10).sample(frac=1, random_state=0)
        self.out = pa.Table.from_pandas(self.break_it(shuffled), preserve_index=False)
        return self

    def to_arrow(self) -> pa.Table:
        return self.out


KEYS, MOMENTS = np.array([5, 3, 5, 9, 3]), np.array([0, 0, 0, 0, 1])


def test_the_order_asked_for_is_restored_and_equal_rows_are_asked_once() -> None:
    store = Joining(lambda frame: frame)
    table = join_by_feast(store, "service", USER_ID, KEYS, MOMENTS, ["value"])
    assert table["value"].to_pylist() == [50, 30, 50, 90, 30]
    assert store.asked == 4


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda frame: frame.iloc[1:], "mixed rows: 3 for 4"),
        (lambda frame: pd.concat([frame, frame.iloc[:1]]), "mixed rows: 5 for 4"),
        (lambda frame: pd.concat([frame.iloc[1:], frame.iloc[1:2]]), "mixed rows: 4 for 4"),
        (lambda frame: frame.assign(**{USER_ID: frame[USER_ID].iloc[::-1].to_numpy()}), "mixed rows: 4 for 4"),
        (lambda frame: frame.drop(columns="value"), "no column 'value'"),
    ],
)
def test_a_broken_join_is_an_error(break_it: Any, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        join_by_feast(Joining(break_it), "service", USER_ID, KEYS, MOMENTS, ["value"])
