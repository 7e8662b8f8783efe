"""The event log's files: what is in them after every kind of failure, and that nothing acknowledged is missing."""

import errno
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from recsys.event_log import BEGINNING, LoggedEvent, end_of, read_log
from serving import event_log, recent_ids
from serving.event_log import EventIdError, EventLog
from serving.recent_ids import RecentIds

DAY = 86_400
NOON = 1_700_049_600  # 2023-11-15T12:00:00 UTC


def event(number: int, received: int = NOON, **more: object) -> LoggedEvent:
    return replace(LoggedEvent(f"id-{number}", 1, number, 4.0, 1_000 + number, received, "b"), **more)  # type: ignore[arg-type]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def ids(folder: Path) -> list[str]:
    return [e.event_id for e in read_log(folder)]


def broken_write(kept: int):  # type: ignore[no-untyped-def]
    """os.write as a full disk does it: some bytes, then an error."""
    write = os.write

    def broken(handle: int, data: bytes) -> int:
        write(handle, data[:kept])
        raise OSError(errno.ENOSPC, "No space left on device")

    return broken


# ---- kinds


def test_every_field_is_kept_and_what_is_none_is_not_written(tmp_path: Path) -> None:
    rating = event(1, received_us=NOON * 1_000_000 + 7)
    watch = event(2, rating=None, kind="watch", request_id="r-1")
    EventLog(tmp_path).append(rating, watch)
    assert list(EventLog(tmp_path).read()) == [rating, watch]
    first, second = (tmp_path / "events-2023-11-15.jsonl").read_bytes().splitlines()
    assert b"null" not in first + second
    assert b'"rating"' in first  # the field; its kind is written too
    assert b'"rating":' not in second


# ---- once


def test_an_id_is_logged_once_also_after_a_restart(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    first = event(1)
    assert log.append(first) == [first]
    later = replace(first, timestamp=9_999, received=NOON + 5)
    assert log.append(later) == [first]
    assert EventLog(tmp_path).append(later) == [first]
    assert list(log.read()) == [first]


def test_an_id_is_logged_once_by_two_processes_and_within_one_call(tmp_path: Path) -> None:
    one, other = EventLog(tmp_path), EventLog(tmp_path)
    one.append(event(1))
    other.append(event(2), event(2), event(1))
    assert one.append(event(2)) == [event(2)]
    assert ids(tmp_path) == ["id-1", "id-2"]


@pytest.mark.parametrize(
    "changed", [{"user_id": 2}, {"item_id": 9}, {"rating": 3.0}, {"kind": "watch", "rating": None}]
)
def test_an_id_of_another_event_is_refused_with_all_of_its_call(tmp_path: Path, changed: dict[str, object]) -> None:
    log = EventLog(tmp_path)
    log.append(event(1))
    with pytest.raises(EventIdError, match="The id 'id-1' was used before, for another event"):
        log.append(event(5), replace(event(1), **changed))  # type: ignore[arg-type]
    assert ids(tmp_path) == ["id-1"]
    assert log.append(event(5)) == [event(5)]


def test_the_index_is_bounded_and_says_what_it_knows(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append(*(event(n) for n in range(100)))
    recent = RecentIds(tmp_path, most=10)
    recent.refresh()
    assert len(recent) == 10
    assert [n for n in range(100) if recent.find(f"id-{n}") is not None] == list(range(90, 100))
    assert recent.find("id-95") == event(95)
    line = len(event_log._line(event(99)))
    recent = RecentIds(tmp_path, most_bytes=3 * line + 5)  # begins in the middle of a line
    recent.refresh()
    assert [n for n in range(100) if recent.find(f"id-{n}") is not None] == [97, 98, 99]


def test_a_log_that_was_taken_away_is_read_anew(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append(event(1), event(2))
    (path,) = tmp_path.iterdir()
    path.unlink()
    log.append(event(2))
    assert ids(tmp_path) == ["id-2"]
    path.write_bytes(b"")
    log.append(event(2))
    assert ids(tmp_path) == ["id-2"]


# ---- files


def test_files_by_day_and_size_in_the_order_of_reception(tmp_path: Path) -> None:
    line = len(event_log._line(event(10)))
    log = EventLog(tmp_path, most_bytes=2 * line)
    for number in range(10, 15):
        log.append(event(number))
    log.append(event(15, NOON + DAY))
    day = "events-2023-11-15"
    assert names(tmp_path) == [f"{day}.jsonl", f"{day}_0002.jsonl", f"{day}_0003.jsonl", "events-2023-11-16.jsonl"]
    assert ids(tmp_path) == [f"id-{n}" for n in range(10, 16)]
    assert EventLog(tmp_path).append(event(10)) == [event(10)]


def test_a_clock_that_goes_back_changes_no_order(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append(event(1, NOON))
    position = end_of(tmp_path)
    log.append(event(2, NOON - 3 * DAY))
    EventLog(tmp_path).append(event(3, NOON - 400 * DAY))
    log.append(event(4, NOON + DAY))
    assert names(tmp_path) == ["events-2023-11-15.jsonl", "events-2023-11-16.jsonl"]
    assert ids(tmp_path) == ["id-1", "id-2", "id-3", "id-4"]
    assert [e.event_id for e in read_log(tmp_path, after=position)] == ["id-2", "id-3", "id-4"]


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "events-restored.jsonl").write_bytes(b"torn")
    log = EventLog(tmp_path)
    log.recover()
    log.append(event(1))
    assert (tmp_path / "events-restored.jsonl").read_bytes() == b"torn"
    assert ids(tmp_path) == ["id-1"]


# ---- torn ends


@pytest.mark.parametrize("torn", [b'{"event_id":"to', b"\0" * 300, b"x" * 100_000])
def test_a_torn_end_is_cut_off_at_the_start(tmp_path: Path, torn: bytes, caplog: pytest.LogCaptureFixture) -> None:
    EventLog(tmp_path).append(event(1))
    EventLog(tmp_path).append(event(2, NOON + DAY))
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for path, content in whole.items():
        path.write_bytes(content + torn)
    with caplog.at_level(logging.WARNING):
        EventLog(tmp_path).recover()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == whole
    assert caplog.text.count(f"{len(torn)} bytes of a torn line cut off") == 2


def test_recovering_an_empty_log_makes_nothing(tmp_path: Path) -> None:
    EventLog(tmp_path / "events").recover()
    assert names(tmp_path) == []


@pytest.mark.parametrize("at", [0, 1, 60, 150, 300])
def test_what_did_not_fit_is_taken_back_whole(tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch breaks off at any byte, also after whole lines: none of it is there, and the log goes on."""
    log = EventLog(tmp_path)
    log.append(event(1))
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(event_log.os, "write", broken_write(at))
        with pytest.raises(OSError, match="No space left on device"):
            log.append(*(event(n) for n in range(2, 10)))
        assert path.read_bytes() == before
    log.append(*(event(n) for n in range(2, 4)))
    assert ids(tmp_path) == ["id-1", "id-2", "id-3"]


def test_what_could_not_be_synced_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path)
    log.append(event(1))

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(event_log.os, "fsync", broken)
        with pytest.raises(OSError, match="Input/output error"):
            log.append(event(2))
        with pytest.raises(OSError, match="Input/output error"):
            log.append(event(1))  # a repeat says that it is on disk, and cannot
    assert ids(tmp_path) == ["id-1"]
    assert log.append(event(2)) == [event(2)]


def test_a_line_that_cannot_be_taken_back_is_cut_off_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path)
    log.append(event(1))

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(event_log.os, "write", broken_write(40))
        patch.setattr(event_log.os, "ftruncate", broken)
        with pytest.raises(OSError, match="No space left"):
            log.append(event(2))
    assert ids(tmp_path) == ["id-1"]
    log.append(event(3))
    assert ids(tmp_path) == ["id-1", "id-3"]


def test_a_position_is_never_behind_what_may_be_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader asks where the log ends while a write, whole in the file already, waits for an fsync that will fail."""
    log = EventLog(tmp_path)
    log.append(event(1))
    before = end_of(tmp_path)
    at_fsync, going = threading.Event(), threading.Event()

    def stuck(_: int) -> None:
        at_fsync.set()
        going.wait(20)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(event_log.os, "fsync", stuck)
    failed: list[Exception] = []

    def write() -> None:
        try:
            log.append(event(2))
        except OSError as error:
            failed.append(error)

    found: list[object] = []
    writer, reader = threading.Thread(target=write), threading.Thread(target=lambda: found.append(end_of(tmp_path)))
    writer.start()
    assert at_fsync.wait(20)
    reader.start()
    time.sleep(0.05)
    assert found == []  # it waits
    going.set()
    writer.join()
    reader.join()
    assert len(failed) == 1
    assert found == [before]


def test_a_write_under_way_is_not_taken_for_a_torn_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog(tmp_path)
    log.append(event(0))
    writer = threading.Thread(target=lambda: [log.append(event(n)) for n in range(1, 200)])
    writer.start()
    seen = []
    with caplog.at_level(logging.WARNING):
        while writer.is_alive():
            seen.append(len(list(log.read())))
    writer.join()
    assert seen == sorted(seen)
    assert caplog.text == ""
    assert len(list(log.read())) == 200


# ---- together


def test_calls_that_wait_share_one_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path)
    log.append(event(0))
    synced, at_fsync, going = [], threading.Event(), threading.Event()
    fsync = os.fsync

    def slow(handle: int) -> None:
        synced.append(handle)
        at_fsync.set()
        going.wait(20)
        fsync(handle)

    monkeypatch.setattr(event_log.os, "fsync", slow)
    threads = [threading.Thread(target=log.append, args=(event(n),)) for n in range(1, 21)]
    threads[0].start()
    assert at_fsync.wait(20)
    for thread in threads[1:]:
        thread.start()
    until = time.monotonic() + 20
    while len(log._waiting) < 19:
        assert time.monotonic() < until
        time.sleep(0.002)
    going.set()
    for thread in threads:
        thread.join()
    assert len(synced) == 2  # the first alone, the nineteen others together
    assert sorted(ids(tmp_path)) == sorted(f"id-{n}" for n in range(21))


def test_a_failure_reaches_every_call_of_its_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path)
    calls = [event_log._Call([event(n)]) for n in range(3)]
    monkeypatch.setattr(event_log.os, "write", broken_write(10))
    log._commit(calls)
    assert [(call.done, str(call.error)) for call in calls] == [(True, "[Errno 28] No space left on device")] * 3

    def unforeseen(*_: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(recent_ids.RecentIds, "refresh", unforeseen)
    with pytest.raises(RuntimeError, match="a mistake"):
        log.append(event(9))


WRITER = """
import sys
from pathlib import Path
from recsys.event_log import LoggedEvent
from serving.event_log import EventLog
folder, own = Path(sys.argv[1]), int(sys.argv[2])
log = EventLog(folder, most_bytes=20_000)
for n in range(300):
    whose = "both" if n % 3 == 0 else own
    log.append(LoggedEvent(f"{whose}-{n}", 1, n, 4.0, 1_000 + n, 1_700_049_600, "b" * (n % 7)))
"""


def test_two_processes_write_every_id_once_and_no_line_is_torn(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(n)]) for n in (1, 2)]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    counted = Counter(ids(folder))
    assert set(counted.values()) == {1}
    assert len(counted) == 100 + 2 * 200
    assert len(names(folder)) > 2
    lines = sum(path.read_bytes().count(b"\n") for path in folder.iterdir())
    assert lines == 500
    assert len(list(read_log(folder, after=BEGINNING))) == 500
