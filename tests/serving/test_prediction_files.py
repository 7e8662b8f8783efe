"""The files of the prediction log: merged by the hour, whole after a crash, bounded, and readable by others."""

import os
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest

from recsys.errors import DataError
from recsys.monitoring import prediction_files
from recsys.monitoring.prediction_files import merge_finished_hours, remove_oldest, write_parts
from recsys.monitoring.prediction_log import PARTS, hour_of, log_files, merged_from, n_logged, read_predictions

from .logged_answers import HOUR, NOON, found, logged, one


def test_parts_become_one_file_an_hour_once_it_has_ended(tmp_path: Path) -> None:
    """Two processes; an answer of the hour that comes late; nothing twice."""
    write_parts(tmp_path, [one("a", NOON), one("b", NOON + HOUR)], "1-x")
    write_parts(tmp_path, [one("c", NOON + 10)], "2-y")
    assert merge_finished_hours(tmp_path, NOON + HOUR + 59, 60) == (0, 0)
    assert merge_finished_hours(tmp_path, NOON + HOUR + 60, 60) == (1, 0)
    hour = tmp_path / "predictions-2026-11-21T12.parquet"
    assert log_files(tmp_path) == [hour, tmp_path / PARTS / "predictions-2026-11-21T13-1-x.parquet"]
    assert [p.request_id for p in logged(tmp_path)] == ["a", "c", "b"]
    write_parts(tmp_path, [one("late", NOON + 20)], "2-z")
    assert merge_finished_hours(tmp_path, NOON + 2 * HOUR, 60) == (1, 0)
    assert [p.request_id for p in logged(tmp_path)] == ["a", "c", "late", "b"]
    assert len(merged_from(hour)) == 3
    assert n_logged(tmp_path) == 4


def test_a_crash_between_renaming_and_removing_doubles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parts(tmp_path, [one("a")], "1-x")
    write_parts(tmp_path, [one("b")], "1-y")
    with monkeypatch.context() as patch:

        def killed(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(Path, "unlink", lambda path, **_: killed() if PARTS in path.parts else None)
        with pytest.raises(KeyboardInterrupt):
            merge_finished_hours(tmp_path, NOON + 2 * HOUR, 60)
    assert len(list((tmp_path / PARTS).glob("*.parquet"))) == 2
    assert [p.request_id for p in logged(tmp_path)] == ["a", "b"]
    write_parts(tmp_path, [one("c")], "1-z")
    assert merge_finished_hours(tmp_path, NOON + 2 * HOUR, 60) == (1, 0)
    assert not list((tmp_path / PARTS).glob("*.parquet"))
    assert [p.request_id for p in logged(tmp_path)] == ["a", "b", "c"]


def test_only_one_process_merges(tmp_path: Path) -> None:
    write_parts(tmp_path, [one("a")], "1-x")
    with prediction_files._alone(tmp_path / PARTS / ".merging") as ours:
        assert ours
        assert merge_finished_hours(tmp_path, NOON + 2 * HOUR, 60) == (0, 0)
    assert merge_finished_hours(tmp_path, NOON + 2 * HOUR, 60) == (1, 0)


def test_a_broken_part_is_set_aside_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_parts(tmp_path, [one("a")], "1-x")
    broken = tmp_path / PARTS / "predictions-2026-11-21T12-1-y.parquet"
    broken.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"T12-1-y\.parquet cannot be read .* move it out of the folder"):
        logged(tmp_path)
    assert merge_finished_hours(tmp_path, NOON + 2 * HOUR, 60) == (1, 1)
    assert broken.name in caplog.text
    assert [p.request_id for p in logged(tmp_path)] == ["a"]
    assert [p.name for p in (tmp_path / PARTS).glob("*.unreadable")] == [f"{broken.name}.unreadable"]


def test_the_oldest_files_go_first(tmp_path: Path) -> None:
    for hour in range(4):
        write_parts(tmp_path, [one(f"r{hour}", NOON + hour * HOUR)], "1-x")
    merge_finished_hours(tmp_path, NOON + 3 * HOUR + 60, 60)
    begun = tmp_path / f".predictions-2026-11-21T12.parquet.{os.getpid()}.part"
    begun.write_bytes(b"")
    os.utime(begun, (0, 0))
    size = log_files(tmp_path)[0].stat().st_size
    assert remove_oldest(tmp_path, NOON + 4 * HOUR, 10**9, 1.0) == 0
    assert not begun.exists()
    assert remove_oldest(tmp_path, NOON + 4 * HOUR, 10**9, 3 / 24) == 1
    assert [p.request_id for p in logged(tmp_path)] == ["r1", "r2", "r3"]
    assert remove_oldest(tmp_path, NOON + 4 * HOUR, int(1.5 * size), 30.0) == 2
    assert [p.request_id for p in logged(tmp_path)] == ["r3"]


def test_pandas_and_duckdb_read_finished_files_directly(tmp_path: Path) -> None:
    write_parts(tmp_path, [one("a"), one("b", NOON + 1)], "1-x")
    merge_finished_hours(tmp_path, NOON + 2 * HOUR, 60)
    frame = pd.read_parquet(tmp_path / f"predictions-{hour_of(int(NOON * 1e6))}.parquet")
    assert frame["received"].tolist() == [
        pd.Timestamp(NOON, unit="s", tz="UTC"),
        pd.Timestamp(NOON + 1, unit="s", tz="UTC"),
    ]
    opened = frame.explode(["item_ids", "positions", "scores", "features"])
    assert opened["item_ids"].tolist() == [70, 40, 50] * 2
    query = f"""
        SELECT request_id, unnest(item_ids), unnest(positions) AS position, unnest(features)[4] AS mean_rating
        FROM '{tmp_path}/predictions-*.parquet' WHERE bundle_id = 'b-1' ORDER BY request_id, position"""
    rows = duckdb.connect().sql(query).fetchall()
    want = found().features
    assert want is not None
    assert [row[:3] for row in rows] == [(r, i, n) for r in "ab" for n, i in enumerate((70, 40, 50), start=1)]
    assert rows[0][3] == want[0, 2, 3]


def test_since_and_until(tmp_path: Path) -> None:
    write_parts(tmp_path, [one(f"r{i}", NOON + i) for i in range(4)], "1-x")
    batches = read_predictions(tmp_path, since_us=int((NOON + 1) * 1e6), until_us=int((NOON + 3) * 1e6), batch=2)
    assert [[p.request_id for p in batch] for batch in batches] == [["r1"], ["r2"]]
    assert not list(read_predictions(tmp_path / "nowhere"))
