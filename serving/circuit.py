"""Knows when something outside is away, so that nobody waits to find out again.

Stage: serving. In: how each call went. Out: whether to make the next one. Absent: the calls, threads and time-outs.

Closed: every call is made. After `threshold` failures in a row it opens, if the first of them is `over_s` ago: several
calls that fail in the same moment are one piece of news. Then no call is made for `pause_s`, and one is let through; if
it succeeds the circuit is closed, if it fails the pause begins again.
"""

import threading
import time
from collections.abc import Callable


class Circuit:
    """Safe to share between threads. Each `admits()` that is true is followed by one `succeeded()` or `failed()`."""

    def __init__(
        self,
        threshold: int = 5,
        over_s: float = 0.25,
        pause_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threshold, self._over_s, self._pause_s, self._clock = threshold, over_s, pause_s, clock
        self._failing_since = 0.0
        self._lock = threading.Lock()
        self._closed = True
        self._asked_at = 0.0  # while open: when the pause, or the one call that was let through, began
        self.failures = 0  # in a row

    @property
    def open(self) -> bool:
        return not self._closed

    def admits(self) -> bool:
        """Whether to make a call now. While open, true for one caller a pause."""
        if self._closed:
            return True
        with self._lock:
            now = self._clock()
            if not self._closed and now - self._asked_at < self._pause_s:
                return False
            self._asked_at = now
            return True

    def succeeded(self) -> bool:
        """Whether this closed it."""
        if self._closed and not self.failures:
            return False
        with self._lock:
            closed_now = not self._closed
            self._closed, self.failures = True, 0
            return closed_now

    def failed(self) -> bool:
        """Whether this opened it."""
        with self._lock:
            self._asked_at = now = self._clock()
            if not self.failures:
                self._failing_since = now
            self.failures += 1
            long_enough = now - self._failing_since >= self._over_s
            opened_now = self._closed and self.failures >= self._threshold and long_enough
            if opened_now:
                self._closed = False
            return opened_now
