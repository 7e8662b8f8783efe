"""Reads of a store that may be slow or away: a limit of time for each, and none at all while it is known to be away.

Closed, every read is made. After `threshold` failures in a row the breaker opens. Then one read a `pause_s` is let
through, and the first that succeeds closes it. Others fail at once: nobody waits to find out again.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from recsys.errors import StoreError

T = TypeVar("T")
log = logging.getLogger(__name__)


class CircuitBreaker:
    """Used on the event loop alone, so nothing is locked."""

    def __init__(self, threshold: int = 5, pause_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._threshold, self._pause_s, self._clock = threshold, pause_s, clock
        self._tried_at = 0.0  # while open: when the last read was let through
        self.failures = 0  # in a row

    @property
    def open(self) -> bool:
        return self.failures >= self._threshold

    def admits(self) -> bool:
        """Whether to read now. While open, true once a pause."""
        now = self._clock()
        if self.open and now - self._tried_at < self._pause_s:
            return False
        self._tried_at = now
        return True

    def succeeded(self) -> None:
        self.failures = 0

    def failed(self) -> None:
        self.failures += 1


class GuardedStore:
    """Reads of one store. `name` is for people."""

    def __init__(
        self,
        name: str,
        threads: ThreadPoolExecutor | None,
        count: Callable[[str], None] = lambda _: None,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        """`threads` None: read on the event loop, for a file that answers sooner than a thread would be woken up."""
        self.name, self._threads, self._count = name, threads, count
        self._breaker = breaker or CircuitBreaker()

    async def read(self, work: Callable[[], T], limit_s: float) -> T:
        """`work()`. Raises StoreError where it fails, takes longer than `limit_s`, or is not tried.

        A read on a thread that takes too long is left behind: a store that hangs holds the threads, not the service.
        """
        if not self._breaker.admits():
            self._count("store.not_asked")
            raise StoreError(f"The {self.name} failed {self._breaker.failures} times and is asked again shortly.")
        try:
            result = work() if self._threads is None else await self._on_a_thread(self._threads, work, limit_s)
        except StoreError:
            self._breaker.failed()
            if self._breaker.failures == self._breaker._threshold:
                log.error("the %s failed %d times; it is left alone for a while", self.name, self._breaker.failures)
                self._count("store.left_alone")
            raise
        if self._breaker.open:
            log.warning("the %s answers again", self.name)
        self._breaker.succeeded()
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
