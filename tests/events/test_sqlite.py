"""What only a file can do to the event table: be damaged, locked, in an odd place, read-only, or on a full disk."""

import sqlite3
from pathlib import Path

import pytest

from recsys.errors import StoreError
from recsys.events import EventTable, sqlite_url
from tests.mounts import read_only, resize, small_disk

from .test_table import event


@pytest.mark.parametrize("name", ["why?x", "a%41b", 'it\'s "so" # 100 % ü'])
def test_a_path_may_hold_any_character(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "events.db"
    table = EventTable(sqlite_url(path))
    table.append([event(1)])
    table.close()
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert EventTable(sqlite_url(path)).safe_seq() == 1


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    path.write_bytes(b"no database at all" * 1_000)
    with pytest.raises(StoreError, match=r"events.db failed: file is not a database. Check that database"):
        EventTable(sqlite_url(path)).append([event(1)])


def test_another_writer_is_waited_for_and_then_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.events.engine.BUSY_S", 0.2)
    table = EventTable(sqlite_url(tmp_path / "events.db"))
    table.append([event(1)])
    other = sqlite3.connect(tmp_path / "events.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="failed: database is locked"):
        table.append([event(2)])
    assert table.safe_seq() == 1  # a reader waits for no writer
    other.execute("COMMIT")
    other.close()
    assert not table.append([event(2)])[0].repeated
    table.close()


def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        table = EventTable(sqlite_url(disk / "events.db"))
        acknowledged: list[int] = []

        def fill() -> None:
            while True:
                table.append([event(len(acknowledged))])
                acknowledged.append(len(acknowledged))

        with pytest.raises(StoreError, match=r"failed: (database or disk is full|disk I/O error)"):
            fill()
        assert len(acknowledged) > 10
        assert [e.item_id for e in table.read()] == acknowledged
        resize(disk, "4m")
        assert not table.append([event(len(acknowledged))])[0].repeated
        table.close()


@pytest.mark.parametrize(("name", "count"), [("events.db", 1), ("none.db", 0)])
def test_a_read_only_home_can_be_read(tmp_path: Path, name: str, count: int) -> None:
    made = EventTable(sqlite_url(tmp_path / "home" / "events.db"))
    made.append([event(1)])
    made.close()
    with read_only(tmp_path / "home") as home:
        table = EventTable(sqlite_url(home / name))
        assert (len(table.after(1, 0)), table.safe_seq(), len(list(table.read()))) == (count,) * 3
        with pytest.raises(StoreError, match="readonly database"):
            table.append([event(2)])
        table.close()
