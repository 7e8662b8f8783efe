"""The search for many rows gives what Feast's join gives, and a file or a join that is wrong is an error."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.columns import EVENT_TIMESTAMP, ITEM_ID
from recsys.errors import StoreError
from recsys.feature_store import store as store_module
from recsys.feature_store.as_of import newest_rows

from .feature_worlds import DAY, T0, World

STAMP = pa.timestamp("us", tz="UTC")


def write(path: Path, rows: list[tuple[int, int, float]]) -> Path:
    keys, stamps, values = zip(*rows, strict=True) if rows else ((), (), ())
    columns = {ITEM_ID: pa.array(keys, pa.int64()), EVENT_TIMESTAMP: pa.array(stamps, STAMP)}
    pq.write_table(pa.table({**columns, "value": pa.array(values, pa.float64())}), path)
    return path


def ask(path: Path, asked: list[tuple[int, int]]) -> list[float | None]:
    keys, moments = np.array(asked, dtype=np.int64).reshape(-1, 2).T
    found: list[float | None] = newest_rows(path, ITEM_ID, keys, moments, ["value"])["value"].to_pylist()
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
    by_feast = seeded.store.historical_item_stats(pairs)
    monkeypatch.setattr(store_module, "STATS_BY_FEAST", 5)
    searched = seeded.store.historical_item_stats(pairs)
    pd.testing.assert_frame_equal(searched, by_feast, check_exact=True)
    assert by_feast["n_ratings"].isna().any()
    assert by_feast["n_ratings"].notna().any()


def test_a_difference_from_feast_is_an_error(seeded: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "STATS_BY_FEAST", 200)
    monkeypatch.setattr(
        store_module, "newest_rows", lambda *given: newest_rows(*given[:3], given[3] + DAY * 1_000_000, *given[4:])
    )
    with pytest.raises(StoreError, match=r"differ from the table's in \w+"):
        seeded.store.historical_item_stats(every_pair(seeded))
