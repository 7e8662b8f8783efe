"""The files of the prediction log: merged by the hour, whole after a crash, bounded, and readable by others."""

import errno
import fcntl
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest

from recsys.atomic_io import locked_folder
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
    with locked_folder(tmp_path / PARTS, fcntl.LOCK_EX):
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


def damage(path: Path) -> None:
    """Its first pages; the footer stays whole, so that the file opens."""
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 200 + content[204:])
    assert merged_from(path) is not None


def test_a_part_that_breaks_while_it_is_read_is_set_aside_and_the_others_are_merged(tmp_path: Path) -> None:
    for name in ("w", "x", "y"):
        write_parts(tmp_path, [one(name), one(name * 2, NOON + HOUR)], f"1-{name}")
    broken = tmp_path / PARTS / "predictions-2026-11-21T12-1-x.parquet"
    damage(broken)
    assert merge_finished_hours(tmp_path, NOON + 3 * HOUR, 60) == (2, 1)
    assert [p.request_id for p in logged(tmp_path)] == ["w", "y", "ww", "xx", "yy"]
    assert [p.name for p in (tmp_path / PARTS).iterdir()] == [f"{broken.name}.unreadable"]
    assert merge_finished_hours(tmp_path, NOON + 3 * HOUR, 60) == (0, 0)
    assert remove_oldest(tmp_path, NOON + 3 * HOUR, 1, 30.0) == 3, "what was set aside is within the bounds as well"


def test_an_hour_that_breaks_is_set_aside_and_begun_again(tmp_path: Path) -> None:
    hour = tmp_path / "predictions-2026-11-21T12.parquet"
    write_parts(tmp_path, [one("a")], "1-x")
    merge_finished_hours(tmp_path, NOON + 2 * HOUR, 60)
    damage(hour)
    write_parts(tmp_path, [one("late")], "1-y")
    assert merge_finished_hours(tmp_path, NOON + 2 * HOUR, 60) == (1, 1)
    assert [p.request_id for p in logged(tmp_path)] == ["late"]
    hour.write_bytes(b"PAR1 and no more")
    write_parts(tmp_path, [one("later")], "1-z")
    assert merge_finished_hours(tmp_path, NOON + 2 * HOUR, 60) == (1, 1)
    assert [p.request_id for p in logged(tmp_path)] == ["later"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), TypeError("a bug")])
def test_an_hour_that_cannot_be_written_keeps_its_parts_and_no_other_hour_from_being_merged(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_parts(tmp_path, [one("a"), one("b", NOON + HOUR)], "1-x")
    write = prediction_files._write

    def full(path: Path, *rest: Any) -> None:
        if "T12" in path.name:
            raise error
        write(path, *rest)

    monkeypatch.setattr(prediction_files, "_write", full)
    assert merge_finished_hours(tmp_path, NOON + 3 * HOUR, 60) == (1, 1)
    assert f"the answers of 2026-11-21T12 are not merged: {error}" in caplog.text
    assert ("Traceback" in caplog.text) == isinstance(error, TypeError)
    assert [p.request_id for p in logged(tmp_path)] == ["a", "b"]
    monkeypatch.undo()
    assert merge_finished_hours(tmp_path, NOON + 3 * HOUR, 60) == (1, 0)
    assert [p.request_id for p in logged(tmp_path)] == ["a", "b"]


def test_a_machine_that_refuses_to_read_does_not_make_a_file_a_broken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parts(tmp_path, [one("a")], "1-x")

    def refuse(*_: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(prediction_files.pq, "ParquetFile", refuse)
        assert merge_finished_hours(tmp_path, NOON + 2 * HOUR, 60) == (0, 1)
    assert merge_finished_hours(tmp_path, NOON + 2 * HOUR, 60) == (1, 0)
    assert [p.request_id for p in logged(tmp_path)] == ["a"]


def test_nothing_is_merged_while_somebody_reads(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_parts(tmp_path, [one(name)], f"1-{name}")
    reading = read_predictions(tmp_path)
    assert [p.request_id for p in next(reading)] == ["a"]
    assert merge_finished_hours(tmp_path, NOON + 2 * HOUR, 60) == (0, 0)
    assert [p.request_id for batch in reading for p in batch] == ["b", "c"]
    assert merge_finished_hours(tmp_path, NOON + 2 * HOUR, 60) == (1, 0)
    assert [p.request_id for p in logged(tmp_path)] == ["a", "b", "c"]


def test_what_is_removed_while_somebody_reads_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for hour, name in enumerate(("a", "b", "c")):
        write_parts(tmp_path, [one(name, NOON + hour * HOUR)], f"1-{name}")
    listed = log_files(tmp_path)
    reading = read_predictions(tmp_path)
    next(reading)
    size = listed[0].stat().st_size
    assert remove_oldest(tmp_path, NOON + 3 * HOUR, int(1.5 * size), 30.0) == 2, "the bounds wait for nobody"
    assert [p.request_id for batch in reading for p in batch] == ["c"]
    assert caplog.messages == [f"{listed[1]} has been removed; its answers are left out"]
    monkeypatch.setattr("recsys.monitoring.prediction_log.log_files", lambda _: listed)
    assert n_logged(tmp_path) == 1
    assert merged_from(listed[0]) == []


def test_an_answer_that_is_no_parquet_keeps_every_part_from_being_written(tmp_path: Path) -> None:
    bad = replace(one("bad", NOON + HOUR), version=2**70)
    with pytest.raises(OverflowError):
        write_parts(tmp_path, [one("a"), bad], "1-x")
    assert not (tmp_path / PARTS).exists()


def test_a_clock_that_jumps_ahead_does_not_remove_everything(tmp_path: Path) -> None:
    for hour in range(4):
        write_parts(tmp_path, [one(f"r{hour}", NOON + hour * HOUR)], "1-x")
        write_parts(tmp_path, [one(f"s{hour}", NOON + hour * HOUR)], "1-y")
    assert remove_oldest(tmp_path, NOON + 365 * 24 * HOUR, 10**9, 30.0) == 2
    assert [p.request_id for p in logged(tmp_path)] == ["r1", "s1", "r2", "s2", "r3", "s3"]
    assert remove_oldest(tmp_path, NOON + 4 * HOUR, 10**9, 30.0) == 0
    assert remove_oldest(tmp_path, NOON + 365 * 24 * HOUR, 10**9, 30.0) == 2
    assert remove_oldest(tmp_path, NOON + 365 * 24 * HOUR, 1, 30.0) == 4, "the bound on bytes is not about time"


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
