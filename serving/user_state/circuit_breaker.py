"""Reads of a store that may be slow or away: a limit of time for each, and none at all while it is known to be away."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from recsys.errors import StoreError

THRESHOLD = 5  # failures in a row that open the breaker
PAUSE_S = 1.0  # while it is open, one read a pause is let through, and the first that succeeds closes it
T = TypeVar("T")
log = logging.getLogger(__name__)


class CircuitBreaker:
    """Around the reads of one store; `name` is for people. Used on the event loop alone, so nothing is locked."""

    def __init__(
        self,
        name: str,
        threads: ThreadPoolExecutor | None,
        count: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`threads` None: read on the event loop, for a file that answers sooner than a thread would be woken up."""
        self.name, self._threads, self._count, self._clock = name, threads, count, clock
        self._failures = 0  # in a row
        self._tried_at = 0.0

    async def read(self, work: Callable[[], T], limit_s: float) -> T:
        """`work()`. Raises StoreError where it fails, takes longer than `limit_s`, or is not tried: while the breaker
        is open nobody waits to find out again.

        A read on a thread that takes too long is left behind: a store that hangs holds the threads, not the service.
        """
        now = self._clock()
        if self._failures >= THRESHOLD and now - self._tried_at < PAUSE_S:
            self._count("store.not_asked")
            raise StoreError(f"The {self.name} failed {self._failures} times and is asked again shortly.")
        self._tried_at = now
        try:
            result = work() if self._threads is None else await self._on_a_thread(self._threads, work, limit_s)
        except StoreError:
            self._failures += 1
            if self._failures == THRESHOLD:
                log.error("the %s failed %d times; it is left alone for a while", self.name, THRESHOLD)
                self._count("store.left_alone")
            raise
        if self._failures >= THRESHOLD:
            log.warning("the %s answers again", self.name)
        self._failures = 0
        return result

    async def _on_a_thread(self, threads: ThreadPoolExecutor, work: Callable[[], T], limit_s: float) -> T:
        running = threads.submit(work)
        waiting = asyncio.wrap_future(running)
        try:
            await asyncio.wait([waiting], timeout=limit_s)
            if not running.done():  # not whether the loop has heard of it: a busy loop must not look like a slow store
                raise StoreError(f"The {self.name} did not answer within {limit_s:.3f} s.")
            return running.result()
        finally:
            waiting.cancel()
