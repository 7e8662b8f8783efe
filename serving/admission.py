"""Who is computed for, and who is told to come back: the threads of the service and the queue before them.

Stage: serving. In: work to do off the event loop. Out: its result, or a 503 early where the wait would be too long.
Absent: what the work is, and clients (`access`).

Two lanes. Answers need the processor: a few compute threads, since Python code runs one thread at a time and more of
them would only take turns. Events and plain reads of the store wait for a disk: threads of their own, so that an
fsync never stands in front of a recommendation.
"""

import asyncio
import contextvars
import math
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from serving.metrics import Metrics
from serving.model import single_threaded
from serving.problems import ProblemError
from serving.threads import Threads

P = ParamSpec("P")
T = TypeVar("T")
WEIGHT = 0.1  # of the newest duration in the running mean
# A refusal takes as long as the wait it spares, and no longer than this. Clients that ask again at once would otherwise
# keep the event loop so busy with refusals that those who were let in miss their budget.
LONGEST_REFUSAL_S = 0.05


class Lane:
    """Threads, and a bounded queue before them. Every method is called on the event loop, so nothing is locked.

    threads      work done at once
    max_queue    work that may wait for them
    max_wait_ms  nobody has to wait who is not expected to be through by then; None for no such limit
    waits        told how many more, or fewer, wait
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
        self._pool = Threads(name, threads, begin)
        self._threads, self._max_queue, self._max_wait_ms = threads, max_queue, max_wait_ms
        self._metrics, self._waits = metrics, waits
        self._inside = 0  # waiting or computed
        self._mean_ms = 0.0  # of the work alone, without its wait

    @property
    def expected_wait_ms(self) -> float:
        """Until a thread is free for somebody who comes now."""
        return self._mean_ms * max(self._inside - self._threads + 1, 0) / self._threads

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work(...)` on one of the threads. Raises ProblemError 503 `overloaded`, within LONGEST_REFUSAL_S, where the
        queue is full or the wait would be too long."""
        await self._admit()
        self._moved(1)
        here = contextvars.copy_context()  # log lines of the thread carry the request's id
        try:
            result, took_ms = await asyncio.wrap_future(self._pool.submit(here.run, _timed, work, args, kwargs))
        finally:
            self._moved(-1)
        self._mean_ms += WEIGHT * (took_ms - self._mean_ms)
        return result

    def close(self) -> None:
        self._pool.close()

    def _moved(self, by: int) -> None:
        before = max(self._inside - self._threads, 0)
        self._inside += by
        self._waits(max(self._inside - self._threads, 0) - before)

    async def _admit(self) -> None:
        wait_ms = self.expected_wait_ms
        if self._inside >= self._threads + self._max_queue:
            reason = "queue_full"
        elif self._max_wait_ms is not None and wait_ms > 0 and wait_ms + self._mean_ms > self._max_wait_ms:
            reason = "budget"
        else:
            return
        self._metrics().shed(reason)
        await asyncio.sleep(min(wait_ms / 1e3, LONGEST_REFUSAL_S))
        raise overloaded(wait_ms)


class Admission:
    """The lanes of one process: `run` for answers, `run_io` for events and reads of the store."""

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
        self._compute = Lane("compute", threads, max_queue, max_wait_ms, metrics, self._waits, single_threaded)
        self._io = Lane("io", io_threads, max_queue, None, metrics, self._waits)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Computing, on a compute thread."""
        return await self._compute.run(work, *args, **kwargs)

    async def run_io(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Waiting for a disk or a store, on a thread that no answer needs."""
        return await self._io.run(work, *args, **kwargs)

    def close(self) -> None:
        self._compute.close()
        self._io.close()

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
