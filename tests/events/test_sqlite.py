"""What only a file can do to the event table: be damaged, locked, in an odd place, read-only, or on a full disk."""

import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from recsys.errors import StoreError
from recsys.events import EventTable, sqlite_url
from tests.stores.native import MISSING, REQUIRED

from .test_table import event


def mounted(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        why = f"nothing can be mounted here: {done.stderr.strip()}"
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{why}; root may ({REQUIRED}=1 asks for it)", pytrace=False)
        MISSING.append(why)
        pytest.skip(why)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("name", ["why?x", "a%41b", 'it\'s "so" # 100 % ü'])
def test_a_path_may_hold_any_character(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "events.db"
    table = EventTable(sqlite_url(path))
    table.append([event(1)])
    table.close()
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert EventTable(sqlite_url(path)).count() == 1


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
    assert (table.count(), table.safe_seq()) == (1, 1)  # a reader waits for no writer
    other.execute("COMMIT")
    other.close()
    assert not table.append([event(2)])[0].repeated
    table.close()


def test_a_full_disk_refuses_and_loses_nothing(small_disk: Path) -> None:
    table = EventTable(sqlite_url(small_disk / "events.db"))
    number = 0
    with pytest.raises(StoreError, match="failed: (database or disk is full|disk I/O error)"):
        while True:
            table.append([event(number)])
            number += 1
    assert number > 10
    assert [e.item_id for e in table.read()] == list(range(number))
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert not table.append([event(number)])[0].repeated
    table.close()


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that may not be written; a file in it was made before."""
    folder = tmp_path / "home"
    table = EventTable(sqlite_url(folder / "events.db"))
    table.append([event(1)])
    table.close()
    mounted("--bind", str(folder), str(folder))
    subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize(("name", "count"), [("events.db", 1), ("none.db", 0)])
def test_a_read_only_home_can_be_read(read_only: Path, name: str, count: int) -> None:
    table = EventTable(sqlite_url(read_only / name))
    assert (table.count(), len(table.after(1, 0)), table.safe_seq(), len(list(table.read()))) == (count,) * 4
    with pytest.raises(StoreError, match="readonly database"):
        table.append([event(2)])
    table.close()
