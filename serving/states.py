"""The state of users as requests read it and events move it.

Stage: serving. In: the feature store, the event log, events. Out: state and seen items of one user, with every
acknowledged event. Absent: how a state moves (`recsys.features.state_merge`), and the log's format.

Order of an event: log, then read, fold and push in one turn of that user, held against threads and other processes
alike (`store.locks`). If the store fails, the event stays pending (`pending`): it is folded into whatever this process
reads, and pushed when the store answers again, with the user's next event, or after a restart from the log. Only
ratings move a state; events of other kinds are logged, and that is all.

A store that is a file of this machine is read where the answer is computed (`at_hand`): handing a read of a fifth of a
millisecond to a thread, and the result back, takes longer than the read. Every other store is waited for on threads,
and so is a file that has failed, or has been slow, until it was quick again.

A store that fails time after time is known to be away (`circuit`): nobody waits for it then, and one request at a
time finds out whether it is back. Then the log is read, for events that were too many to keep, and because what the
store had acknowledged may be gone: a Redis that crashes has lost its last second.
"""

import asyncio
import logging
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from recsys.errors import StoreError
from recsys.feature_store import FeatureStore
from recsys.feature_store.catch_up import catch_up, moved
from recsys.features.state import Event
from serving.circuit import Circuit
from serving.event_log import EventLog, LoggedEvent
from serving.known import Known, Stored, folded, known_of, lacks, older
from serving.observability.metrics import Metrics
from serving.pending import Pending
from serving.threads import Threads

A = TypeVar("A")
T = TypeVar("T")
STORE_THREADS = 4
REMEMBERED = 20_000  # users whose last state stays in memory, about 2 kB each
SLOW_S = 0.25  # a store that takes longer is as good as away, as budgets are a fifth of that
QUICK_S = 0.02  # a read that took longer is made on a thread the next time
READ_LIMIT_S = 10.0  # for whoever has no budget
RECORD_LIMIT_S = 2.0  # an event waits that long for the store, then stays pending
AGAIN_S = 1.0  # how often pending events are tried again while the store answers
LOG_PAUSES, LOG_PAUSE_S = 10, 60.0  # after the log was read: ten times as long as that took, a minute at most
TOGETHER = 64  # users moved in one turn, with a write for all
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of an event.

    event     as the log has it: of an event sent again, the first one
    repeated  it was in the log already
    known     the user after it; None for kinds that move no state
    applied   the store has it, or need not; False: it counts here, and is pushed later
    """

    event: LoggedEvent
    repeated: bool
    known: Known | None
    applied: bool


class UserStates:
    """Safe to share between threads, and between processes that serve one home."""

    def __init__(
        self,
        store: FeatureStore,
        event_log: EventLog,
        metrics: Metrics | None = None,
        circuit: Circuit | None = None,
        pending: Pending | None = None,
    ) -> None:
        self._store, self._log, self._metrics = store, event_log, metrics
        self._circuit = circuit or Circuit()
        self._pending = Pending() if pending is None else pending
        self._quick = False  # until a read was
        self._left, self._again_at = False, 0.0  # events are pending without anybody at them; when to try next
        self._log_at = 0.0  # when to read the log next, if it must be read
        self._lost: set[int] = set()  # users whose state the store had, and has no more
        self._last: OrderedDict[int, Known] = OrderedDict()
        self._last_lock = threading.Lock()
        self._reading = Threads("store-read", STORE_THREADS)
        self._moving = Threads("store-move", STORE_THREADS)

    @property
    def at_hand(self) -> bool:
        """Whether the store is a file that was quick the last time, so that to read it is no waiting."""
        return self._store.local and self._quick and not self._circuit.failures

    def open(self) -> None:
        """Read once in each way, so that no request is the first to."""
        self.read(0)
        if self._store.local:
            self._store.online_state(0, at_once=True)
            self._quick = True

    def read(self, user_id: int, timeout_s: float = READ_LIMIT_S, at_once: bool = False) -> Known:
        """One read of the store. Raises StoreError where it fails, takes longer than `timeout_s`, or is known to be
        away; then at once. Also where it answers, but lacks an acknowledged event that is not pending.

        A read cannot be interrupted, only given up; a store that hangs holds STORE_THREADS threads, not the service.
        `at_once`: where the store is `at_hand` read right here, however long that takes.
        """
        before = self._before(user_id)
        if at_once and self.at_hand:
            with self._telling(_not_read(user_id), 0.0):
                stored = self._timed(self._read_at_once, user_id)
        else:
            stored = self._within(self._reading, timeout_s, _not_read(user_id), self._read, user_id)
        return self._seen(user_id, stored, *before)

    async def read_soon(self, user_id: int, timeout_s: float) -> Known:
        """The same for an event loop, which goes on meanwhile."""
        before = self._before(user_id)
        running = self._begun(self._reading, _not_read(user_id), self._read, user_id)
        with self._telling(_not_read(user_id), timeout_s):
            waiting = asyncio.wrap_future(running)
            try:
                await asyncio.wait([waiting], timeout=timeout_s)
                if not running.done():  # not `wait_for`, which gives up reads that came in time while the loop was busy
                    raise TimeoutError
                stored = waiting.result() if waiting.done() else running.result()
            finally:
                waiting.cancel()
        return self._seen(user_id, stored, *before)

    def last_known(self, user_id: int) -> Known:
        """What was read or recorded last, for a moment in which the store cannot be read; nothing for a stranger.
        Events that wait for the store are in it."""
        waiting = self._pending.of(user_id)  # first: what waits no longer was remembered before
        known = self._last.get(user_id)
        return folded(user_id, None if known is None else (known.state, known.seen_ids), waiting)

    def record(self, event: LoggedEvent) -> tuple[Known, bool]:
        """Log a rating and move the user's state. Returns the state and whether the store has it already.

        OSError means that the event was not logged, and nothing has moved.
        """
        (outcome,) = self.record_all([event])
        assert outcome.known is not None
        return outcome.known, outcome.applied

    def record_all(self, events: Sequence[LoggedEvent]) -> list[Outcome]:
        """Log events, all or none, and move the states of their users. One that was sent before is folded once more,
        which changes nothing, unless its state was not moved then.

        OSError and EventIdError mean that none was logged, and nothing has moved.
        """
        logged = self._log.append(*events)
        by_user: dict[int, list[Event]] = defaultdict(list)
        for event in logged:
            if event.rating is not None:
                by_user[event.user_id].append(Event(event.item_id, event.rating, event.timestamp))
        # before anything else is done: whoever reads meanwhile knows the events already
        left_out = {user_id: own for user_id, own in by_user.items() if not self._pending.add(user_id, own)}
        if left_out:
            self._leave_out(left_out)
        moved = self._moved_in_time([user_id for user_id in by_user if user_id not in left_out])
        after = {user_id: moved.get(user_id) or self.last_known(user_id) for user_id in by_user}
        return [
            Outcome(event, event is not given, None, applied=True)
            if event.rating is None
            else Outcome(event, event is not given, after[event.user_id], applied=event.user_id in moved)
            for given, event in zip(events, logged, strict=True)
        ]

    def catch_up(self) -> int:
        """Push what the log knows and the store does not, as after a restart. Returns the users moved."""
        return self._store.catch_up()

    def replay(self, events: Iterable[LoggedEvent]) -> int:
        """The same for some events only."""
        return catch_up(self._store, self._store.locks, events)

    def close(self) -> None:
        self._reading.close()
        self._moving.close()

    # -- parts ----------------------------------------------------------------------------------------------------

    def _moved_in_time(self, user_ids: Sequence[int]) -> dict[int, Known]:
        """The users whose states were moved. Of the others the events are pending: after a turn that fails, or takes
        longer than RECORD_LIMIT_S, no other is tried."""
        moved: dict[int, Known] = {}
        try:
            for some in _turns(user_ids):
                what = f"The state of {f'user {some[0]}' if len(some) == 1 else f'{len(some)} users'} was not moved"
                moved |= self._within(self._moving, RECORD_LIMIT_S, what, self._move, some)
        except (StoreError, OSError) as error:  # OSError: no file for a user's lock
            self._left = True
            left = len(user_ids) - len(moved)
            log.warning("events of %d user(s) are in the log, but not yet in the store: %s", left, error)
        return moved

    def _leave_out(self, by_user: dict[int, list[Event]]) -> None:
        """Too many events are pending to keep these as well. Only the log has them, until the store has caught up with
        it; meanwhile they are in what is known last, as far as that reaches back."""
        self._left = True
        self._count("store.left_out")
        log.warning("events of %d user(s) are in the log only: too many wait for the store", len(by_user))
        for user_id, own in by_user.items():
            known = self.last_known(user_id)
            self._remember(folded(user_id, (known.state, known.seen_ids), own))

    def _before(self, user_id: int) -> tuple[Known | None, Sequence[Event], bool]:
        """What is remembered, what waits for the store, and whether that is not all.

        To be asked for before the store is, and in this order: an event is remembered before it is pushed, and pending
        or left out until it was. Afterwards one that was pushed meanwhile would be neither here nor in what was read.
        """
        return self._last.get(user_id), self._pending.of(user_id), self._pending.left_out(user_id)

    def _seen(
        self, user_id: int, stored: Stored | None, remembered: Known | None, waiting: Sequence[Event], left_out: bool
    ) -> Known:
        """What the store told, held against what was known before it was asked."""
        if left_out:
            raise StoreError(f"Events of user {user_id} are in the log, and in the store once it has caught up")
        known = known_of(user_id, stored)
        if remembered is not None and lacks(known, remembered, waiting):
            self._lost.add(user_id)
            self._left = True
            raise StoreError(f"The store had more events of user {user_id} before; the state is made anew")
        self._remember(known)
        return folded(user_id, stored, waiting)

    def _within(self, threads: Threads, limit_s: float, what: str, work: Callable[[A], T], asked: A) -> T:
        """`work(asked)` on a thread that can be left behind. Its outcome tells the circuit how the store is."""
        running = self._begun(threads, what, work, asked)
        with self._telling(what, limit_s):
            try:
                return running.result(limit_s)
            except TimeoutError:
                running.cancel()
                raise

    def _begun(self, threads: Threads, what: str, work: Callable[[A], T], asked: A) -> Future[T]:
        if not self._circuit.admits():
            self._count("store.not_asked")
            raise StoreError(f"{what}: the store failed {self._circuit.failures} times and is asked again shortly")
        return threads.submit(self._timed, work, asked)

    @contextmanager
    def _telling(self, what: str, limit_s: float) -> Iterator[None]:
        """Tell the circuit of a failure. A request that is given up tells nothing of the store."""
        try:
            yield
        except TimeoutError as error:
            self._failed()
            raise StoreError(f"{what} within {limit_s:.3f} s") from error
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._failed()
            raise

    def _timed(self, work: Callable[[A], T], asked: A) -> T:
        """The store's own time tells how it is, also where the caller has given up: on a busy machine a caller may run
        out of time although the store answers at once."""
        started = time.perf_counter()
        result = work(asked)
        ended = time.perf_counter()
        if ended - started < SLOW_S and self._circuit.succeeded():
            log.warning("the store answers again")
            self._pending.behind = True  # whatever it had, it may have lost
            self._moving.submit(self._move_pending)
        elif self._left and ended >= self._again_at:  # too few failures for the circuit, or writes alone fail
            self._left, self._again_at = False, ended + AGAIN_S
            self._moving.submit(self._move_pending)
        return result

    def _failed(self) -> None:
        if self._circuit.failed():
            log.error("the store failed %d times; it is left alone for a while", self._circuit.failures)
            self._count("store.left_alone")

    def _read(self, user_id: int) -> Stored | None:
        return self._noting(lambda: self._store.online_state(user_id))

    def _read_at_once(self, user_id: int) -> Stored | None:
        return self._noting(lambda: self._store.online_state(user_id, at_once=True))

    def _noting(self, read: Callable[[], Stored | None]) -> Stored | None:
        started = time.perf_counter()
        stored = read()
        self._quick = time.perf_counter() - started < QUICK_S
        return stored

    def _move(self, user_ids: Sequence[int]) -> dict[int, Known]:
        """Read, fold what is pending, push: one turn. Also where the caller has given up waiting, the turn is ended
        here, so that no later turn is overtaken by an earlier one."""
        now: dict[int, Known] = {}
        rows: list[Stored] = []
        whole = self._store.whole_state
        with self._store.locks.held(*user_ids):
            waiting = {user_id: self._pending.of(user_id) for user_id in user_ids}
            for user_id in user_ids:
                stored = self._store.online_state(user_id)
                known, remembered = known_of(user_id, stored), self._last.get(user_id)
                lost = remembered is not None and lacks(known, remembered, waiting[user_id])
                if lost:  # by a store that crashed, or left out here; the tables and the log have it
                    known = Known(*whole(known.state), stored=True)
                elif waiting[user_id]:  # else another turn has taken them along
                    known = Known(*moved(stored, user_id, waiting[user_id], whole), stored=True)
                if lost or waiting[user_id]:
                    rows.append((known.state, known.seen_ids))
                now[user_id] = known
            for known in now.values():  # before the push: if it fails, this is what is known
                self._remember(known, newest=True)
            if len(rows) == 1:
                self._store.push_state(*rows[0], stamped=max(rows[0][0].timestamps, default=0))
            else:
                self._store.push_states(rows)
            for user_id in user_ids:
                self._pending.remove(user_id, len(waiting[user_id]))
                self._lost.discard(user_id)
        return now

    def _move_pending(self) -> None:
        """After a failure of the store: every user who has an event that it does not know, then what only the log has.
        Nobody waits for the outcome; what is left is tried again."""
        try:
            for some in _turns(list({*self._pending.users(), *self._lost})):
                self._move(some)
            if self._pending.behind:
                self._follow_log()
        except Exception as error:
            self._left = True
            left, unexpected = len(self._pending.users()), not isinstance(error, StoreError)
            log.warning("events of %d user(s) wait for the store: %s", left, error, exc_info=unexpected)

    def _follow_log(self) -> None:
        """Catch up with the log, unless somebody is at it, or was just now; then later."""
        started = time.perf_counter()
        if started < self._log_at or not self._pending.begin():
            self._left = True
            return
        caught_up = False
        try:
            count = self.catch_up()
            caught_up = True
            log.info("event log read, %d user state(s) moved forward", count)
        finally:
            self._pending.end(caught_up)
            ended = time.perf_counter()
            self._log_at = ended + min(LOG_PAUSES * (ended - started), LOG_PAUSE_S)

    def _remember(self, known: Known, newest: bool = False) -> None:
        """What a turn of the user has made is the newest. A read may be older than what is remembered: turns have
        ended since it began."""
        if not known.stored:
            return
        user_id = known.state.user_id
        with self._last_lock:
            last = self._last.get(user_id)
            if newest or last is None or not older(known.state, last.state):
                self._last[user_id] = known
            self._last.move_to_end(user_id)
            if len(self._last) > REMEMBERED:
                self._last.popitem(last=False)

    def _count(self, name: str) -> None:
        if self._metrics is not None:
            self._metrics.count(name)


def _not_read(user_id: int) -> str:
    return f"The state of user {user_id} was not read"


def _turns(user_ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (user_ids[low : low + TOGETHER] for low in range(0, len(user_ids), TOGETHER))
