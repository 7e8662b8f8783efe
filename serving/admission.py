"""Who is computed for, and who is told to come back: where work is done, and the queue before it.

Stage: serving. In: work to do. Out: its result, or a 503 early where the wait would be too long. Absent: what the work
is, and clients (`access`).

Two lanes. Answers need the processor, and Python code runs one thread at a time: they are computed on the event loop
itself, one after another, and between two of them the loop reads what has arrived. Handing each to a thread and back
costs more than the loop gains by it (ADR 0028). Events wait for a disk or a store: threads of their own, so that an
fsync never stands in front of a recommendation.
"""

import asyncio
import contextvars
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar

from serving.model import single_threaded
from serving.observability.metrics import Metrics
from serving.problems import ProblemError
from serving.threads import Threads

P = ParamSpec("P")
T = TypeVar("T")
WEIGHT = 0.1  # of the newest duration in the running mean
# A refusal takes as long as the wait it spares, and no longer than this. Clients that ask again at once would otherwise
# keep the event loop so busy with refusals that those who were let in miss their budget.
LONGEST_REFUSAL_S = 0.05
ROUNDS = 2  # of the event loop between two turns: one reads what has arrived, in the next one that is begun


class Turns:
    """Work done on the event loop, one piece a turn of the loop. `begin` is called once, before the first."""

    def __init__(self, begin: Callable[[], None] = lambda: None) -> None:
        self._begin: Callable[[], None] | None = begin
        self._jobs: deque[tuple[asyncio.Future[Any], Callable[[], Any]]] = deque()
        self._closed = False

    def submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """Call `work` in its turn; not at all if its caller was cancelled. Raises RuntimeError after `close`."""
        if self._closed:
            raise RuntimeError("the turns were closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.append((future, lambda: work(*args, **kwargs)))
        if len(self._jobs) == 1:
            self._soon(loop)
        return future

    def close(self) -> None:
        """Take no more; what was submitted is still done."""
        self._closed = True

    def _soon(self, loop: asyncio.AbstractEventLoop, rounds: int = ROUNDS) -> None:
        if rounds:
            loop.call_soon(self._soon, loop, rounds - 1)
        else:
            loop.call_soon(self._turn, loop)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        future, job = self._jobs[0]
        try:
            if self._begin is not None:
                self._begin()
                self._begin = None
            if not future.cancelled():
                future.set_result(job())
        except BaseException as error:  # whatever it is, the turn goes on to the next
            if not future.done():
                future.set_exception(RuntimeError(repr(error)) if isinstance(error, StopIteration) else error)
        finally:
            self._jobs.popleft()
            if self._jobs:
                self._soon(loop)


class Lane:
    """A place where work is done, and a bounded queue before it. Every method is called on the event loop, so nothing
    is locked.

    threads      that work, as many at once; 0: the event loop itself, which does one at a time
    max_queue    work that may wait for them
    max_wait_ms  nobody has to wait who is not expected to be through by then; None for no such limit
    waits        told how many more, or fewer, wait
    begin        called once on each of the threads, or on the loop
    """

    def __init__(
        self,
        name: str,
        threads: int,
        max_queue: int,
        max_wait_ms: float | None,
        metrics: Callable[[], Metrics],
        waits: Callable[[int], None],
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self._done_by = Threads(name, threads, begin) if threads else Turns(begin)
        self._at_once, self._max_queue, self._max_wait_ms = max(threads, 1), max_queue, max_wait_ms
        self._metrics, self._waits = metrics, waits
        self._inside = 0  # waiting or computed
        self._mean_ms = 0.0  # of the work alone, without its wait

    @property
    def expected_wait_ms(self) -> float:
        """Until somebody's turn would come who comes now."""
        return self._mean_ms * max(self._inside - self._at_once + 1, 0) / self._at_once

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work(...)` in its turn. Raises ProblemError 503 `overloaded` as `place` does."""
        async with self.place():
            return await self.turn(work, *args, **kwargs)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place in the queue, for `turn` and what comes before it. Raises ProblemError 503 `overloaded`, within
        LONGEST_REFUSAL_S, where the queue is full or the wait would be too long."""
        await self._admit()
        self._moved(1)
        try:
            yield
        finally:
            self._moved(-1)

    async def turn(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work(...)` in its turn, for whoever has a place."""
        here = contextvars.copy_context()  # log lines of a thread carry the request's id
        submitted = self._done_by.submit(here.run, _timed, work, args, kwargs)
        result, took_ms = await (asyncio.wrap_future(submitted) if isinstance(submitted, Future) else submitted)
        self._mean_ms += WEIGHT * (took_ms - self._mean_ms)
        return result

    def close(self) -> None:
        self._done_by.close()

    def _moved(self, by: int) -> None:
        before = max(self._inside - self._at_once, 0)
        self._inside += by
        self._waits(max(self._inside - self._at_once, 0) - before)

    async def _admit(self) -> None:
        wait_ms = self.expected_wait_ms
        if self._inside >= self._at_once + self._max_queue:
            reason = "queue_full"
        elif self._max_wait_ms is not None and wait_ms > 0 and wait_ms + self._mean_ms > self._max_wait_ms:
            reason = "budget"
        else:
            return
        self._metrics().shed(reason)
        await asyncio.sleep(min(wait_ms / 1e3, LONGEST_REFUSAL_S))
        raise overloaded(wait_ms)


class Admission:
    """The lanes of one process: `answers`, and `io` for events and reads of the store."""

    def __init__(
        self,
        *,
        threads: int,
        io_threads: int,
        max_queue: int,
        max_wait_ms: float | None,
        metrics: Callable[[], Metrics],
    ) -> None:
        self._metrics = metrics
        self._waiting = 0  # in both lanes
        self.answers = Lane("compute", threads, max_queue, max_wait_ms, metrics, self._waits, single_threaded)
        self.io = Lane("io", io_threads, max_queue, None, metrics, self._waits)

    def close(self) -> None:
        self.answers.close()
        self.io.close()

    def _waits(self, more: int) -> None:
        self._waiting += more
        if more:
            self._metrics().queue(self._waiting)


def overloaded(wait_ms: float) -> ProblemError:
    seconds = max(math.ceil(wait_ms / 1e3), 1)
    return ProblemError(503, "overloaded", f"Too many requests at once; try again in {seconds} s.", retry_after=seconds)


def _timed(work: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[T, float]:
    started = time.perf_counter()
    result = work(*args, **kwargs)
    return result, (time.perf_counter() - started) * 1e3
