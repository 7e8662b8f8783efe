"""The event table, the same on SQLite and on PostgreSQL."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from recsys.errors import StoreError
from recsys.events import EventConflictError, EventTable, NewEvent


def event(number: int, user_id: int = 1, *, value: float = 4.0, at: int = 100) -> NewEvent:
    return NewEvent(f"event-{number}", user_id, number, "rating", value, at, at + 0.25, f"request-{number}")


def in_parallel(work: Callable[[int], Any], times: int) -> list[Any]:
    with ThreadPoolExecutor(times) as threads:
        return list(threads.map(work, range(times)))


def test_events_come_back_as_they_were_given(table: EventTable) -> None:
    given = [event(1), NewEvent("watched", 2, 5, "watch", None, 101, 102.5), event(2)]
    stored = table.append(given)
    assert [(e.event_id, e.repeated) for e in stored] == [(e.event_id, False) for e in given]
    assert stored[0].seq < stored[1].seq < stored[2].seq
    assert list(table.read()) == stored
    assert table.after(1, 0) == [stored[0], stored[2]]
    assert table.after(1, stored[0].seq) == [stored[2]]
    assert (stored[1].value, stored[1].received_at, stored[1].request_id) == (None, 102.5, None)


def test_an_empty_table_answers(table: EventTable) -> None:
    assert (table.safe_seq(), list(table.read()), table.after(1, 0)) == (0, [], [])
    assert table.append([]) == []


def test_an_event_sent_again_is_stored_once(table: EventTable) -> None:
    first = table.append([event(1), event(2)])
    again = table.append([event(3), event(2), event(3)])
    assert [(e.event_id, e.repeated) for e in again] == [("event-3", False), ("event-2", True), ("event-3", True)]
    assert again[1].seq == first[1].seq
    assert len(list(table.read())) == 3


@pytest.mark.parametrize("other", [event(2, user_id=9), event(2, value=1.0)])
def test_an_id_used_for_another_event_is_refused_with_its_whole_batch(table: EventTable, other: NewEvent) -> None:
    table.append([event(2)])
    with pytest.raises(EventConflictError, match="'event-2' was used for another event: user 1, item 2, rating"):
        table.append([event(1), other, event(3)])
    assert [e.event_id for e in table.read()] == ["event-2"]


def test_a_batch_is_stored_whole_or_not_at_all(table: EventTable) -> None:
    broken = NewEvent("broken", 1, 1, None, 4.0, 100, 100.0)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match=r"The event table at .* failed: "):
        table.append([event(1), broken, event(2)])
    assert not list(table.read())


def test_a_batch_of_thousands_keeps_its_order(table: EventTable) -> None:
    stored = table.append([event(n) for n in range(5_000, 0, -1)])
    assert [e.item_id for e in table.read()] == [e.item_id for e in stored] == list(range(5_000, 0, -1))


def test_a_part_of_the_table_is_read(table: EventTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.events.table.ROWS_AT_ONCE", 2)
    seqs = [e.seq for e in table.append([event(n) for n in range(1, 8)])]
    assert [e.item_id for e in table.read(after=seqs[0], through=seqs[5])] == [2, 3, 4, 5, 6]
    assert [e.item_id for e in table.read(through=seqs[3])] == [1, 2, 3, 4]


def test_batches_in_other_orders_do_not_block_each_other(table: EventTable) -> None:
    events = [event(n) for n in range(300)]

    def send(number: int) -> int:
        own = events if number % 2 else events[::-1]
        return sum(not e.repeated for low in range(0, 300, 60) for e in table.append(own[low : low + 60]))

    assert sum(in_parallel(send, 4)) == 300
    assert len(list(table.read())) == 300


def test_many_can_be_the_first_to_use_a_table(url: sa.URL) -> None:
    tables = [EventTable(url) for _ in range(6)]
    together = threading.Barrier(6)

    def first(number: int) -> None:
        together.wait()
        tables[number].append([event(number)])

    in_parallel(first, 6)
    assert len(list(tables[0].read())) == 6
    for table in tables:
        table.close()
