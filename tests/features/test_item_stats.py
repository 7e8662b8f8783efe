"""Daily item statistics against loops over the events."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest

from recsys.columns import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.features.catalogue import Catalogue
from recsys.features.item_stats import (
    DECAYED,
    HALF_LIVES_DAYS,
    ITEM_FEATURES,
    SECONDS_PER_DAY,
    STATS_COLUMNS,
    ItemStats,
    ItemStatsTimeline,
    day_of,
    snapshots,
)

DAY = SECONDS_PER_DAY
D0 = 10_000
IDS = [4, 8, 15, 16, 23]
CATALOGUE = Catalogue(np.array(IDS), ("",) * 5, np.zeros(5), np.zeros((5, 0)), (), np.zeros((5, 6), np.int64), (), ())


@dataclass(frozen=True)
class Row:
    item: int
    stars: float
    time: int
    user: int | None = None  # None: somebody of their own


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            USER_ID: np.array([1_000 + n if r.user is None else r.user for n, r in enumerate(rows)], dtype=np.int64),
            ITEM_ID: np.array([r.item for r in rows], dtype=np.int64),
            RATING: np.array([r.stars for r in rows], dtype=np.float32),
            TIMESTAMP: np.array([r.time for r in rows], dtype=np.int64),
        }
    )


def sparse_rows(seed: int = 0) -> list[Row]:
    """Bursts, pauses of weeks, midnight exactly; item 23 is never rated and 99 is in no catalogue."""
    rng = np.random.default_rng(seed)
    days = D0 + np.cumsum(rng.choice([0, 0, 0, 1, 2, 40], 80))
    rows = [
        Row(int(rng.choice([4, 8, 15, 16, 99])), float(rng.integers(1, 11) / 2), int(d * DAY + rng.integers(DAY)))
        for d in days
    ]
    return [*rows, Row(4, 4.0, (D0 + 3) * DAY), Row(8, 3.5, (D0 + 3) * DAY - 1)]


def oracle(rows: Sequence[Row], item: int, day: int) -> dict[str, float]:
    """What is known of one item at the start of `day`: of each user the latest rating."""
    known = sorted((r for r in rows if r.item == item and r.time < day * DAY), key=lambda r: r.time)
    past = list({(n if r.user is None else -r.user): r for n, r in enumerate(known, start=1)}.values())
    out = {
        "n_ratings": len(past),
        "n_liked": sum(r.stars >= 4.0 for r in past),
        "rating_sum": sum(r.stars for r in past),
        "first_rated": min((r.time for r in known), default=0),
        "last_rated": max((r.time for r in known), default=0),
    }
    for name, half_life in zip(DECAYED, HALF_LIVES_DAYS, strict=True):
        # a day's ratings have age 0 at the end of that day
        out[name] = sum(2.0 ** (-(day - (r.time // DAY + 1)) / half_life) for r in past)
    return out


def test_snapshots_are_one_row_a_item_and_day_as_the_loop_says() -> None:
    rows = sparse_rows()
    table = snapshots(frame(rows[::-1]))
    assert tuple(table.columns) == (ITEM_ID, EVENT_TIMESTAMP, CREATED_TIMESTAMP, *STATS_COLUMNS)
    keys = sorted({(r.item, r.time // DAY + 1) for r in rows})
    assert list(zip(table[ITEM_ID], table["snapshot_day"], strict=True)) == keys
    for record in table.to_dict("records"):
        expected = oracle(rows, record[ITEM_ID], record["snapshot_day"])
        for name, value in expected.items():
            assert record[name] == pytest.approx(value, rel=1e-12), name
        assert record[EVENT_TIMESTAMP] == record[CREATED_TIMESTAMP]
        assert record[EVENT_TIMESTAMP] == pd.Timestamp(record["snapshot_day"] * DAY, unit="s", tz="UTC")
    assert str(table[EVENT_TIMESTAMP].dtype) == "datetime64[us, UTC]"


def test_the_timeline_equals_the_loop_on_every_day_and_long_after() -> None:
    rows = sparse_rows()
    timeline = ItemStatsTimeline(CATALOGUE, snapshots(frame(rows)))
    last = max(r.time for r in rows) // DAY + 1
    assert timeline.last_day == last
    for day in [*range(D0 - 1, D0 + 60), last - 1, last, last + 1, last + 500]:
        stats = timeline.as_of(day)
        assert stats.day == day
        assert len(stats) == len(IDS)
        for row, item in enumerate(IDS):
            expected = oracle(rows, item, day)
            for name in ("n_ratings", "n_liked", "rating_sum", "first_rated", "last_rated"):
                assert getattr(stats, name)[row] == expected[name], (day, item, name)
            np.testing.assert_allclose(stats.decayed[row], [expected[n] for n in DECAYED], rtol=1e-5)


def test_a_user_counts_once_however_often_they_rate_an_item() -> None:
    few = [replace(row, user=1 + n % 3) for n, row in enumerate(sparse_rows(seed=1))]
    rows = [*few, *sparse_rows(seed=2), *(Row(16, 5.0, (D0 + 9) * DAY + n, user=7) for n in range(500))]
    table = snapshots(frame(rows))
    for record in table.to_dict("records"):
        for name, value in oracle(rows, record[ITEM_ID], record["snapshot_day"]).items():
            assert record[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name
    assert table[table[ITEM_ID] == 16]["n_ratings"].max() < 60


def test_a_day_never_sees_itself_and_midnight_belongs_to_the_day_that_begins() -> None:
    rows = [Row(4, 4.0, D0 * DAY - 1), Row(4, 5.0, D0 * DAY), Row(4, 1.0, D0 * DAY + DAY - 1)]
    timeline = ItemStatsTimeline(CATALOGUE, snapshots(frame(rows)))
    assert [timeline.as_of(D0 + i).n_ratings[0] for i in (-1, 0, 1, 2)] == [0.0, 1.0, 3.0, 3.0]
    assert timeline.as_of(D0).rating_sum[0] == 4.0
    assert day_of([D0 * DAY - 1, D0 * DAY]).tolist() == [D0 - 1, D0]


def test_without_events_everything_is_0() -> None:
    timeline = ItemStatsTimeline(CATALOGUE, snapshots(frame([])))
    assert timeline.last_day == 0
    stats = timeline.as_of(D0)
    for name in ("n_ratings", "n_liked", "rating_sum", "decayed", "first_rated", "last_rated"):
        assert not getattr(stats, name).any()


def rows_of(day: int) -> pd.DataFrame:
    table = snapshots(frame([Row(4, 4.0, D0 * DAY), Row(8, 2.0, (D0 + 5) * DAY)]))
    return table[table["snapshot_day"] <= day]


def test_a_row_of_the_future_and_an_item_given_twice_are_refused() -> None:
    rows = rows_of(D0 + 6)
    with pytest.raises(ValueError, match="the same item twice"):
        ItemStats.from_rows(CATALOGUE, pd.concat([rows, rows]), D0 + 6)
    with pytest.raises(ValueError, match="item statistics of day 10006 were given for a prediction on day 10005"):
        ItemStats.from_rows(CATALOGUE, rows, D0 + 5)
    assert ItemStats.from_rows(CATALOGUE, rows, D0 + 6).n_ratings.tolist() == [1, 1, 0, 0, 0]


def test_null_rows_and_unknown_items_leave_zeros() -> None:
    rows = rows_of(D0 + 6)
    null = pd.DataFrame({ITEM_ID: [15, 16]}).reindex(columns=rows.columns)
    new_user = rows.iloc[:1].assign(**{ITEM_ID: 99})
    stats = ItemStats.from_rows(CATALOGUE, pd.concat([rows, new_user, new_user]), D0 + 6)
    assert stats.n_ratings.tolist() == [1, 1, 0, 0, 0]
    assert not ItemStats.from_rows(CATALOGUE, null, D0 + 6).n_ratings.any()


def test_the_columns_of_the_ranking_features_by_hand_made_once() -> None:
    """Item 4 was rated 4 and 2 stars, ten and three days before; the others never."""
    rows = [Row(4, 4.0, D0 * DAY), Row(4, 2.0, (D0 + 7) * DAY)]
    stats = ItemStatsTimeline(CATALOGUE, snapshots(frame(rows))).as_of(D0 + 10)
    row = dict(zip(ITEM_FEATURES, stats.columns[0].tolist(), strict=True))
    decayed = [2 ** (-9 / h) + 2 ** (-2 / h) for h in (7, 30, 365)]
    assert stats.columns.dtype == np.float32
    assert row == pytest.approx(
        {
            "popularity_7d": np.log(1 + decayed[0]),
            "popularity_30d": np.log(1 + decayed[1]),
            "popularity_365d": np.log(1 + decayed[2]),
            "popularity_all": np.log(3),
            "popularity_trend": np.log((1 + decayed[0]) / (1 + decayed[1])),
            "mean_rating": (6 + 5 * 3.5) / 7,
            "liked_share": (1 + 2.5) / 7,
            "days_since_first_rated": np.log(11),
            "days_since_last_rated": np.log(4),
        },
        rel=1e-5,
    )
    never = stats.columns[1].tolist()
    assert never[:5] == [0.0] * 5
    assert never[5:7] == [3.5, 0.5]
    assert np.isnan(never[7:]).all()
    assert stats.columns is stats.columns
