"""Pending events in bounded memory, and what is said of those that were too many."""

import pytest

from recsys.features.state import Event
from serving.pending import Pending


def some(*items: int) -> list[Event]:
    return [Event(item, 4.0, 100 + item) for item in items]


def test_events_wait_in_order_until_they_are_removed() -> None:
    pending = Pending()
    assert pending.of(1) == ()
    assert pending.add(1, some(5, 3))
    asked = pending.of(1)
    assert pending.add(1, some(7))
    assert pending.add(2, some(9))
    assert asked == tuple(some(5, 3))  # whoever asked folds what there was
    assert (pending.of(1), pending.users(), len(pending)) == (tuple(some(5, 3, 7)), [1, 2], 4)
    pending.remove(1, 2)
    assert (pending.of(1), len(pending)) == (tuple(some(7)), 2)
    pending.remove(1, 1)
    pending.remove(1, 1)
    assert (pending.users(), len(pending)) == ([2], 1)
    assert not pending.behind
    assert not pending.left_out(1)


@pytest.mark.parametrize("pending", [Pending(most=3), Pending(most_of_user=3)], ids=["of all", "of one user"])
def test_what_finds_no_room_is_left_out_whole(pending: Pending) -> None:
    assert pending.add(1, some(1, 2))
    assert not pending.add(1, some(3, 4))
    assert (pending.of(1), len(pending)) == (tuple(some(1, 2)), 2)
    assert (pending.left_out(1), pending.left_out(2), pending.behind) == (True, False, True)
    assert pending.add(1, some(3))
    pending.remove(1, 3)
    assert pending.add(1, some(1, 2, 3))
    assert pending.left_out(1)  # until somebody has caught up with the log


def test_whoever_is_left_out_while_somebody_catches_up_stays_so() -> None:
    pending = Pending(most_of_user=0)
    pending.add(1, some(1))
    assert pending.begin()
    assert not pending.begin()
    assert pending.left_out(1)
    assert not pending.behind
    pending.add(2, some(1))
    pending.end(caught_up=True)
    assert [pending.left_out(user) for user in (1, 2)] == [False, True]
    assert pending.behind
    assert pending.begin()
    pending.add(3, some(1))
    pending.end(caught_up=False)
    assert [pending.left_out(user) for user in (1, 2, 3)] == [False, True, True]
    assert pending.behind
    assert pending.begin()
    pending.end(caught_up=True)
    assert [pending.left_out(user) for user in (1, 2, 3)] == [False] * 3
    assert not pending.behind


def test_too_many_users_are_everybody() -> None:
    pending = Pending(most=2, most_of_user=0)
    for user in (1, 2):
        pending.add(user, some(1))
    assert [pending.left_out(user) for user in (1, 2, 3, 2**62)] == [True, True, False, False]
    pending.add(3, some(1))
    assert [pending.left_out(user) for user in (0, 3, 2**62)] == [True] * 3
    assert pending.begin()
    pending.add(4, some(1))
    pending.end(caught_up=False)
    assert [pending.left_out(user) for user in (0, 3, 4, 2**62)] == [True] * 4
    assert pending.begin()
    pending.end(caught_up=True)
    assert not pending.left_out(3)
