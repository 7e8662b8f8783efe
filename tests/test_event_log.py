"""Reading the event log: whole, from a position, of one user, and past what broke."""

import logging
from dataclasses import asdict
from pathlib import Path

import orjson
import pytest

from recsys.event_log import LoggedEvent, end_of, parse, read_log


def event(user_id: int, item_id: int = 1) -> LoggedEvent:
    return LoggedEvent(f"{user_id}-{item_id}", user_id, item_id, 4.0, 1_000 + item_id, 2_000, "bundle")


def write(folder: Path, day: str, *events: LoggedEvent, torn: bytes = b"") -> None:
    with (folder / f"events-{day}.jsonl").open("ab") as handle:
        handle.writelines(orjson.dumps(asdict(e)) + b"\n" for e in events)
        handle.write(torn)


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path, "2026-01-02", event(3))
    write(tmp_path, "2026-01-01", event(1), event(2))
    (tmp_path / "notes.txt").write_text("not a log")
    assert list(read_log(tmp_path)) == [event(1), event(2), event(3)]


def test_a_position_divides_the_log_without_loss_or_repetition(tmp_path: Path) -> None:
    write(tmp_path, "2026-01-01", event(1), event(2))
    first = end_of(tmp_path)
    write(tmp_path, "2026-01-01", event(3))  # a clock that went back writes to an older file
    write(tmp_path, "2026-01-02", event(4))
    second = end_of(tmp_path)
    write(tmp_path, "2026-01-02", event(5))
    assert list(read_log(tmp_path, through=first)) == [event(1), event(2)]
    assert list(read_log(tmp_path, after=first, through=second)) == [event(3), event(4)]
    assert list(read_log(tmp_path, after=second)) == [event(5)]
    assert list(read_log(tmp_path, after=end_of(tmp_path))) == []
    assert end_of(tmp_path / "nowhere") == {}
    assert list(read_log(tmp_path / "nowhere")) == []


@pytest.mark.parametrize("block", [7, 1 << 16])
def test_a_position_never_lies_behind_a_torn_line(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("recsys.event_log.end_of_last_line.__defaults__", (block,))
    write(tmp_path, "2026-01-01", event(1), torn=b'{"event_id": "to')
    write(tmp_path, "2026-01-02", torn=b"x" * 100)
    ends = end_of(tmp_path)
    assert ends == {"events-2026-01-01.jsonl": len(orjson.dumps(asdict(event(1)))) + 1, "events-2026-01-02.jsonl": 0}
    with caplog.at_level(logging.WARNING):
        assert list(read_log(tmp_path)) == [event(1)]
    assert caplog.text.count("1 torn line(s) skipped") == 2
    # the writer goes on with a new line; what was torn stays one broken line
    write(tmp_path, "2026-01-01", torn=b"\n")
    write(tmp_path, "2026-01-01", event(2))
    caplog.clear()
    assert list(read_log(tmp_path, after=ends)) == [event(2)]
    assert "2026-01-01.jsonl: 1 torn line(s)" in caplog.text


@pytest.mark.parametrize("block", [100, 1 << 22])
def test_one_user_is_found_among_all(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the number is part of another's, where another field has it, and where a block ends within a line."""
    monkeypatch.setattr("recsys.event_log._lines_naming.__defaults__", (block,))
    write(tmp_path, "2026-01-01", event(12), event(1, 7), event(121), event(2, 12), event(1, 8))
    middle = end_of(tmp_path)
    write(tmp_path, "2026-01-02", event(1, 9), event(12, 3))
    for user in (1, 2, 12, 121, 99):
        assert list(read_log(tmp_path, user_id=user)) == [e for e in read_log(tmp_path) if e.user_id == user]
    assert list(read_log(tmp_path, user_id=1, after=middle)) == [event(1, 9)]
    assert list(read_log(tmp_path, user_id=1, through=middle)) == [event(1, 7), event(1, 8)]
    assert list(read_log(tmp_path, user_id=12, after=end_of(tmp_path))) == []


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"[]\n",
        b'{"event_id":"a"}\n',
        b'{"event_id":"a","user_id":"x","item_id":1,"rating":1,"timestamp":1,"received":1,"bundle_id":"b"}\n',
        b'{"event_id":"a","user_id":null,"item_id":1,"rating":1,"timestamp":1,"received":1,"bundle_id":"b"}\n',
        b'{"event_id":"a","user_id":1,"item_id":1,"rating":1,"timestamp":1,"received":1,"bundle_id":"b"}',
        b"\xff\xfe\n",
    ],
)
def test_what_is_not_a_whole_event_is_none(line: bytes) -> None:
    assert parse(line) is None
